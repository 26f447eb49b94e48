"""Builds on the target's own device. None was at hand: TensorRT-RTX builds in TensorRT's place."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import target
from edgekd.artifact import Artifact
from edgekd.engine import build as build_module
from edgekd.engine import trt, wheel
from edgekd.engine.build import build, find_device
from edgekd.engine.sparsity import Sparsity
from edgekd.errors import ContractError, UnsupportedError

Models = Callable[..., Artifact]
ORIN = target.load("jetson-agx-orin-64gb-jp6.2")
pytestmark = pytest.mark.usefixtures("offline")


class Driver:
    """Stands for libcuda: no machine with a device was at hand."""

    def __init__(self, name: str, attributes: dict[int, int], count: int = 1) -> None:
        self.name, self.attributes, self.count = name, attributes, count

    def cuInit(self, _: int) -> int:
        return 0 if self.count else 100

    def cuDeviceGetCount(self, number: Any) -> int:
        number._obj.value = self.count
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:
        handle._obj.value = index
        return 0

    def cuDeviceGetName(self, buffer: Any, size: int, _: Any) -> int:
        buffer.value = self.name.encode()[: size - 1]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12060
        return 0

    def cuDeviceGetAttribute(self, value: Any, index: int, _: Any) -> int:
        value._obj.value = self.attributes[index]
        return 0


ORIN_DRIVER = Driver("Orin", {75: 8, 76: 7, 16: 16})


def test_a_device_is_described_as_its_driver_does() -> None:
    device = find_device(ORIN_DRIVER)  # type: ignore[arg-type]
    assert device == build_module.Device("Orin", [8, 7], 16, 12060)
    assert find_device(Driver("none", {}, count=0)) is None  # type: ignore[arg-type]


def test_here_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert find_device() is None


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver, str], None]:
    """Pretends that a device and a TensorRT are present; TensorRT-RTX stands in for the builder."""

    def pretend(driver: Driver, version: str) -> None:
        device = find_device(driver)  # type: ignore[arg-type]
        module = types.ModuleType("tensorrt")
        module.__version__ = version  # type: ignore[attr-defined]
        module.__spec__ = importlib.util.spec_from_loader("tensorrt", None)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(build_module, "find_device", lambda: device)

    return pretend


@pytest.mark.parametrize(
    "driver",
    [Driver("Orin", {75: 8, 76: 7, 16: 8}), Driver("NVIDIA H200", {75: 9, 76: 0, 16: 132})],
    ids=["an Orin NX", "H200"],
)
def test_another_device_than_the_targets_makes_a_bundle(
    onnx_model: Models,
    tmp_path: Path,
    on_a_device: Callable[[Driver, str], None],
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_a_device(driver, "10.3.0.30")
    monkeypatch.setattr(wheel, "device_wheels", lambda _: wheel.Wheels({}, ()))
    made = build(onnx_model(), ORIN, tmp_path / "out")
    assert made.kind == "Bundle"
    assert made.config["reason"] == "no such device here"


def test_another_tensorrt_on_the_targets_device_is_refused(
    onnx_model: Models, tmp_path: Path, on_a_device: Callable[[Driver, str], None]
) -> None:
    on_a_device(ORIN_DRIVER, "10.7.0")
    with pytest.raises(UnsupportedError) as caught:
        build(onnx_model(), ORIN, tmp_path / "out")
    assert "has TensorRT 10.3, this Orin has 10.7.0" in str(caught.value)
    assert "`edgekd build --bundle`" in str(caught.value)


@pytest.fixture
def asked(
    on_a_device: Callable[[Driver, str], None], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """Builds are for Orin, which is here; fills with what its TensorRT was asked for."""
    on_a_device(ORIN_DRIVER, "10.3.0.30")
    real, asked = trt.build_plan, []

    def stand_in(path: Path, **options: Any) -> trt.Plan:
        asked.append(options)
        made = real(path, **{**options, "runtime": "tensorrt-rtx", "compute_capability": (8, 0)})
        return replace(made, sparsity=Sparsity(12, 0))

    monkeypatch.setattr(trt, "build_plan", stand_in)
    return asked


def test_on_the_device_the_same_verb_builds_the_engine(
    onnx_model: Models, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    engine = build(onnx_model(), ORIN, tmp_path / "out")
    assert (engine.kind, engine.config["runtime"]) == ("Engine", "tensorrt")
    assert engine.results["evidence"] is False
    assert engine.results["sparse_kernels"] == {"eligible": 12, "chosen": 0, "layers": []}
    assert engine.config["device"]["multiprocessors"] == 16
    assert engine.config["version"] == "10.3.0.30"
    assert asked[0]["runtime"] == "tensorrt"
    assert asked[0]["compute_capability"] is None
    assert np.load(engine.file("outputs.npz"))["logits"].shape == (20, 10)


def test_sparse_kernels_are_asked_for_in_the_sparse_arm_alone(
    onnx_model: Models, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    made = [build(onnx_model(arm=arm), ORIN, tmp_path / "out") for arm in ("sparse", "dense")]
    assert [options["sparse_weights"] for options in asked] == [True, False]
    assert [engine.config["sparse_weights"] for engine in made] == [True, False]


@pytest.mark.usefixtures("asked")
def test_on_the_device_too_a_layer_in_float_stops_the_stage(
    onnx_model: Models, tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match=r"1 of 2 planned linears are not .* head ran as"):
        build(onnx_model(head_int8=True), ORIN, tmp_path / "out")
    assert not list((tmp_path / "out").glob("engine-*"))


@pytest.mark.usefixtures("asked")
def test_each_run_of_a_layer_is_proven(onnx_model: Models, tmp_path: Path) -> None:
    """A layer that runs twice has two nodes, here one in INT8 and one in float."""

    def runs_twice(rows: list[dict[str, Any]]) -> None:
        rows[0]["node"] = "/fc/MatMul + /head/MatMul"

    with pytest.raises(ContractError, match=r"1 of 2 planned linears are not .* fc ran as"):
        build(onnx_model(plan=runs_twice), ORIN, tmp_path / "out")


def test_the_next_arm_is_built_with_the_timings_of_the_last(
    onnx_model: Models,
    tmp_path: Path,
    on_a_device: Callable[[Driver, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, given = trt.build_plan, []

    def stand_in(path: Path, **options: Any) -> trt.Plan:
        given.append(options["timing_cache"])
        changes = {"runtime": "tensorrt-rtx", "compute_capability": (8, 0), "timing_cache": b""}
        timings = {"timing_cache": given[-1] + b"timed ", "timings_given": bool(given[-1])}
        return replace(real(path, **{**options, **changes}), **timings)

    monkeypatch.setattr(trt, "build_plan", stand_in)
    on_a_device(ORIN_DRIVER, "10.3.0.30")
    made = [build(onnx_model(arm=arm), ORIN, tmp_path / "out") for arm in ("dense", "sparse")]
    assert given == [b"", b"timed "]
    assert [engine.results["timings_given"] for engine in made] == [False, True]
    on_a_device(ORIN_DRIVER, "10.3.0.31")
    build(onnx_model(), ORIN, tmp_path / "out")
    assert given[2] == b""  # another version takes none of them


def test_on_the_device_a_bundle_is_still_made_on_request(
    onnx_model: Models, tmp_path: Path, on_a_device: Callable[[Driver, str], None]
) -> None:
    on_a_device(ORIN_DRIVER, "10.3.0.30")
    assert build(onnx_model(), ORIN, tmp_path / "out", bundle=True).kind == "Bundle"
