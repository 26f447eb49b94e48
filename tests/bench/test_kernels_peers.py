"""The libraries beside our kernels: equal work and equal numbers, or no time of theirs is told."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from edgekd.engine.native import Kernels


class Cslt:
    """cuSPARSELt as torch has it, by a float64 product; `wrong` is added to its sums."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, searched: bool = True) -> None:
        self.wrong, self.rows, self.best = 0, 16, (3, 4, 1) if searched else (3,)
        self.asked: list[Any] = []
        monkeypatch.setattr(torch, "_cslt_compress", lambda weights: weights)
        monkeypatch.setattr(torch, "_cslt_sparse_mm", self.product)
        if searched:
            found = SimpleNamespace(mm_search=lambda *rest: (*self.search(*rest), 9))
            monkeypatch.setattr(torch._C, "_cusparselt", found, raising=False)
        else:
            monkeypatch.delattr(torch._C, "_cusparselt", raising=False)
            monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda *r: self.search(*r)[0])

    def search(self, *operands: Any) -> tuple[int, ...]:
        self.asked.append(operands[2:])
        return self.best

    def product(self, weights: torch.Tensor, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        bias, alpha, answer, transposed, *best = rest
        assert transposed
        assert tuple(best) == self.best
        if tokens.shape[1] % self.rows:
            raise RuntimeError(f"CUSPARSE_STATUS_NOT_SUPPORTED: rows of {self.rows}")
        y = (weights.double() @ tokens.double()).t() + self.wrong
        if answer == torch.int32:
            assert bias is alpha is None
            return y.int().contiguous()
        return (y * alpha + bias).round().clamp(-128, 127).to(answer).contiguous()


@pytest.mark.parametrize("searched", [True, False], ids=["mm_search", "the older search"])
@pytest.mark.parametrize(
    ("n", "k", "output", "residual"),
    [(384, 128, "s8", False), (512, 128, "gelu_s8", False), (128, 128, "f16", True),
     (128, 512, "f16", True)],
)  # fmt: skip
def test_every_peer_does_the_layers_own_work(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch, searched: bool,
    n: int, k: int, output: Any, residual: bool,
) -> None:  # fmt: skip
    cslt = Cslt(monkeypatch, searched)
    layer = gpu.Layer(Kernels(emulator), n, k)
    assert (layer.output, layer.residual) == (output, residual)
    case = gpu.Case(layer, 8)
    case.whole(True)()
    sparse = case.y(output).clone()
    case.whole(False)()
    assert torch.equal(case.y(output), sparse)
    assert case.peers.not_measured == {}
    how = (
        "torch._C._cusparselt.mm_search: algorithm 3, split_k 4, mode 1"
        if searched
        else "torch._cslt_sparse_mm_search, which cuts no k: algorithm 3"
    )
    libraries = {"cublaslt": "torch._int_mm's own choice", "cusparselt": how}
    fused = {"cusparselt_fused": how} if output == "s8" else {}
    assert case.peers.algorithms == libraries | fused
    for name in libraries:
        assert torch.equal(case.peers.calls[f"{name}_s32"]()[:8], case.y("s32"))
        finished = case.peers.calls[f"{name}_and_epilogue"]()
        assert finished.is_contiguous()
        assert finished.dtype == sparse.dtype
        if output == "f16":
            torch.testing.assert_close(finished, sparse)
            continue
        steps = (finished.int() - sparse.int()).abs()
        assert steps.max() <= 1
        assert steps.double().mean() < 1e-3
    assert [each[2:] for each in cslt.asked[1:]] == [(torch.int8, True)] * len(fused)


def test_a_peer_with_other_numbers_is_not_measured(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cslt = Cslt(monkeypatch)
    layer = gpu.Layer(Kernels(emulator), 384, 128)
    cslt.wrong = 1
    peers = gpu.Case(layer, 8).peers
    assert peers.not_measured == {"cusparselt": "not measured: 3072 sums are not ours"}
    ours = {"cublaslt_s32", "cublaslt_and_epilogue"}
    assert set(peers.calls) == {*ours, "cusparselt_fused"}  # a sum one off is no step
    cslt.wrong = 10_000
    refusal = gpu.Case(layer, 8).peers.not_measured["cusparselt_fused"]
    sentence = r"not measured: \d+ of 3072 results are more than a step from ours"
    assert re.fullmatch(sentence, refusal)


@pytest.mark.parametrize(("n", "k"), [(384, 128), (512, 128), (128, 128)])
def test_a_peer_whose_epilogue_is_wrong_is_not_measured(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch, n: int, k: int
) -> None:
    Cslt(monkeypatch)
    right = gpu.cases.peers_epilogue

    def wrong(output: Any) -> Any:
        epilogue, how = right(output)
        return lambda acc, *rest: epilogue(acc.roll(1), *rest), how

    monkeypatch.setattr(gpu.cases, "peers_epilogue", wrong)
    peers = gpu.Case(gpu.Layer(Kernels(emulator), n, k), 8).peers
    for name in ("cublaslt", "cusparselt"):
        assert "results are more than a step from ours" in peers.not_measured[name]
    assert set(peers.calls) <= {"cusparselt_fused"}


def test_a_peer_that_is_right_alone_and_wrong_in_a_graph_is_not_measured(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cslt, case = Cslt(monkeypatch), gpu.Case(gpu.Layer(Kernels(emulator), 128, 128), 8)
    right = torch.cuda.CUDAGraph.replay

    def replay(graph: Any) -> None:
        right(graph)
        cslt.last.fill_(7)

    def product(*operands: Any) -> torch.Tensor:
        cslt.last = cslt.product(*operands)  # type: ignore[attr-defined]
        return cslt.last  # type: ignore[attr-defined,no-any-return]

    cslt.last = torch.zeros(1)  # type: ignore[attr-defined]
    monkeypatch.setattr(torch, "_cslt_sparse_mm", product)
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", replay)
    assert "sums are not ours" in case.peers.not_measured["cusparselt"]


def test_a_peer_that_fails_in_whatever_way_ends_nothing(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise KeyError

    monkeypatch.setattr(torch, "_cslt_compress", fails)
    peers = gpu.Case(gpu.Layer(Kernels(emulator), 64, 64), 8).peers
    assert peers.not_measured == {"cusparselt": "not measured: KeyError"}
    assert set(peers.calls) == {"cublaslt_s32", "cublaslt_and_epilogue"}


@pytest.mark.parametrize("rows", [16, 32, 64])
def test_tokens_are_padded_to_what_cusparselt_takes(
    gpu: ModuleType, emulator: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    cslt, case = Cslt(monkeypatch), gpu.Case(gpu.Layer(Kernels(emulator), 128, 128), 8)
    cslt.rows = rows
    refused = {"cusparselt": "not measured: CUSPARSE_STATUS_NOT_SUPPORTED: rows of 64"}
    assert case.peers.not_measured == (refused if rows == 64 else {})
