"""Sizes as the page tells them."""

from __future__ import annotations

from edgekd import kinds
from edgekd.report import layers
from edgekd.report.collection import Collection
from edgekd.report.page import render

from .conftest import Maker, rows


def test_a_graph_is_as_large_as_it_is_with_the_weights_beside_it(maker: Maker) -> None:
    source = maker.student(maker.teacher(), "sparse")
    small = maker.model(source)
    files = {"trt.onnx": "1" * 20, "trt.onnx.data": "2" * 3000, "ort.onnx": "3" * 40,
             "layers.json": rows("sparse")}  # fmt: skip
    large = maker.make(kinds.ONNX_MODEL, small.config, files, small.results, {"source": source})
    (found,) = layers.sizes(Collection([large]))
    assert found.files == (("trt.onnx", "3.0 kB"), ("ort.onnx", "40 B"))


PERMUTED = {
    "kept_before": 0.8129,
    "kept_after": 0.84,
    "layers": {"net.fc1": {"kept_before": 0.8, "kept_after": 0.85}},
    "undone": [],
    "accuracy_before": 0.61,
    "accuracy_after": 0.745,
}


def test_what_a_permutation_gained_stands_beside_the_layers(maker: Maker) -> None:
    teacher = maker.teacher()
    dense, sparse = (
        maker.student(teacher, "dense"),
        maker.student(teacher, "sparse", permutation=PERMUTED),
    )
    run = Collection([teacher, dense, sparse, maker.model(sparse)])
    (row,) = layers.permutations(run)
    assert (row.arm, row.layers, row.undone, row.samples) == ("2:4 INT8", "1", "", "200 samples")
    assert (row.kept, row.accuracy) == (("81.29%", "84.00%"), ("61.0%", "74.5%"))
    page = render(run)
    assert page.count("Channels reordered for 2:4") == 1
    cells = "".join(f'<td class="num">{text}</td>' for text in row.kept + row.accuracy)
    assert (
        f'2:4 INT8<span class="note">200 samples</span></th><td class="num">1</td>{cells}' in page
    )


def test_a_permutation_that_was_put_back_or_could_not_be_scored(maker: Maker) -> None:
    unscored = {"accuracy_before": None, "accuracy_after": None, "undone": ["net.<fc0>", "net.b"]}
    student = maker.student(maker.teacher(), "sparse", permutation={**PERMUTED, **unscored})
    (row,) = layers.permutations(Collection([student]))
    assert (row.accuracy, row.samples) == (("not measured", "not measured"), "")
    assert row.undone == "put back, for they changed the answers: net.<fc0> and net.b"
    assert "they changed the answers: net.&lt;fc0&gt; and net.b" in render(Collection([student]))


def test_without_a_permutation_the_page_says_nothing_of_one(maker: Maker) -> None:
    student = maker.student(maker.teacher(), "sparse")
    assert layers.permutations(Collection([student])) == []
    assert "Channels reordered" not in render(Collection([student]))
