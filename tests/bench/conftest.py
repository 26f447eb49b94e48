"""Engines of the `cpu` target, small, a scenario with few queries, and a stand-in for CUDA."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from edgekd.artifact import Artifact
from edgekd.bench.scenario import Scenario

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import programs, reports


@pytest.fixture
def engine(tmp_path: Path) -> Artifact:
    return reports.engine(tmp_path / "out")


@pytest.fixture
def new_engine(tmp_path: Path) -> Callable[..., Artifact]:
    """A function: an arm, and facts in which its target differs from `cpu`."""
    return lambda arm="sparse", **where: reports.engine(tmp_path / "out", arm, where)


@pytest.fixture(scope="session")
def quick() -> Scenario:
    return reports.few(name="quick", repetitions=9)


@pytest.fixture(scope="module")
def three_engines(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """The arms of the issue, in one directory: float teacher, dense INT8, 2:4 INT8."""
    out = tmp_path_factory.mktemp("bench") / "out"
    return [reports.engine(out, arm) for arm in ("fp16", "dense", "sparse")]


class Cuda:
    """What `torch.cuda` does for our programs, on a clock that only `spend` moves.

    Attributes:
        now_us: The clock.
        log: Events and replays in their order.
    """

    def __init__(self) -> None:
        self.now_us = 0.0
        self.log: list[str] = []

    def spend(self, us: float) -> None:
        self.now_us += us

    def parts(self) -> dict[str, Any]:
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at_us = cuda.now_us
                cuda.log.append("event")

            def elapsed_time(self, end: Event) -> float:
                return (end.at_us - self.at_us) / 1e3

        class Graph:
            cost_us = 0.0

            def replay(self) -> None:
                cuda.now_us += self.cost_us
                cuda.log.append(f"replay {self.cost_us:g}")

        @contextlib.contextmanager
        def graph(into: Graph) -> Iterator[None]:
            before = cuda.now_us
            yield
            into.cost_us = cuda.now_us - before

        device = SimpleNamespace(name="Stand-In (no GPU)", major=8, minor=0,
                                 multi_processor_count=108, L2_cache_size=64)  # fmt: skip
        return {
            "is_available": lambda: True,
            "get_device_properties": lambda _: device,
            "current_stream": lambda: SimpleNamespace(cuda_stream=0),
            "synchronize": lambda: None,
            "CUDAGraph": Graph,
            "graph": graph,
            "Event": Event,
        }


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    import torch

    stand_in = Cuda()
    for name, value in stand_in.parts().items():
        monkeypatch.setattr(torch.cuda, name, value)
    return stand_in


RATES = {"sparse": 40.0, "dense": 20.0, "r": 2.0}


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from kernels.conftest import SOURCES, compile_emulator

    folder = tmp_path_factory.mktemp("emulator")
    compile_emulator(SOURCES, folder)
    return folder / "libedgekd_emulator.so"


@pytest.fixture
def gpu(cuda: Cuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The kernels' program, small; our sparse GEMMs take 10 us, dense ones 15, cuBLAS's 30."""
    import torch

    from edgekd import torch_ops
    from edgekd.engine.native import Kernels

    module = programs.load("bench/kernels/gpu.py")
    right, product = Kernels.gemm, torch._int_mm

    def gemm(self: Kernels, *rest: Any, **more: Any) -> None:
        right(self, *rest, **more)
        cuda.spend(10 if more.get("sparse", True) else 15)

    def int_mm(*operands: torch.Tensor) -> torch.Tensor:
        cuda.spend(30)
        return product(*operands)

    monkeypatch.setattr(Kernels, "gemm", gemm)
    monkeypatch.setattr(torch, "_int_mm", int_mm)
    monkeypatch.setattr(torch_ops, "_libraries", {})
    monkeypatch.setattr(module.cases, "DEVICE", "cpu")
    monkeypatch.setattr(sys.modules["results"], "FOLDER", tmp_path)
    for owner, name, small in (
        (module, "LAYERS", ((256, 128), (384, 384))), (module, "TOKENS", (8, 200)),
        (module, "COMPARED_TOKENS", (3,)), (module.timing, "REPETITIONS", 2),
        (module.timing, "CALLS", 2), (module.timing, "bandwidth", lambda: 1000.0),
        (module.timing, "raw_rates", lambda _: RATES), (module.roofline, "LARGE_M", 200),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, small)
    return module
