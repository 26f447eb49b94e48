"""Lines of both forms, as users post them publicly; no TensorRT was run to get them."""

from __future__ import annotations

from edgekd.engine.sparsity import Sparsity, parse


def test_older_logs_list_the_layers() -> None:
    log = [
        "[TRT] (Sparsity) Layers eligible for sparse math: Conv_22, MatMul_51, Conv_0 + Relu_1",
        "[TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: Conv_22",
    ]
    assert parse(log) == Sparsity(3, 1, ("Conv_22",))


def test_an_empty_list_is_zero_and_not_unknown() -> None:
    log = [
        "(Sparsity) Layers eligible for sparse math: MatMul_1, MatMul_2",
        "(Sparsity) TRT inference plan picked sparse implementation for layers:",
    ]
    assert parse(log) == Sparsity(2, 0)


def test_newer_logs_count_them_and_the_largest_line_counts() -> None:
    log = [
        "(Sparsity) Found 3 layer(s) eligible to use sparse tactics",
        "(Sparsity) Chose 1 layer(s) using sparse tactics",
        "(Sparsity) Found 196 layer(s) eligible to use sparse tactics",
        "(Sparsity) Chose 140 layer(s) using sparse tactics",
    ]
    assert parse(log) == Sparsity(196, 140)


def test_a_log_without_a_word_of_it_is_unknown() -> None:
    assert parse(["Engine built in 31 sec."]) == Sparsity(None, None)
    assert parse([]).as_json() == {"eligible": None, "chosen": None, "layers": ()}
