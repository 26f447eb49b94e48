"""Building plans, with the real TensorRT-RTX builder, which needs no GPU.

Full TensorRT cannot be installed without one; what differs there is tested as far as it can be.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.engine import trt
from edgekd.engine.layers import Planned, parse_dump, prove
from edgekd.engine.sparsity import Sparsity
from edgekd.errors import ArtifactError, ConfigError, ToolchainError, UnsupportedError, install

PROFILES: dict[str, trt.ShapeRange] = {"x": ((1, 64), (8, 64), (64, 64))}


def one_node(op: str, inputs: tuple[str, ...] = ("x",), domain: str = "") -> onnx.ModelProto:
    """A model of one fp16 node on x [b, 64]."""
    return model([helper.make_node(op, list(inputs), ["y"], f"/odd/{op}", domain=domain)], [])


def model(
    nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], batch: str | int = "b"
) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [batch, 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], initializers)
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def int8_linear(
    zero_dtype: type[np.generic] = np.int8, zero_point: int = 0, batch: str | int = "b"
) -> onnx.ModelProto:
    """y [b, n=64] = x [b, k=64] @ w [k, n], float weight behind Q/DQ, all else fp16."""
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16)
    constants = {
        "w": w,
        "x_scale": np.array(0.05, np.float16),
        "x_zero": np.array(zero_point, zero_dtype),
        "w_scale": np.full(64, 0.03, np.float16),
        "w_zero": np.zeros(64, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"], "/fc/xq"),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"], "/fc/xd"),
        helper.make_node("QuantizeLinear", ["w", "w_scale", "w_zero"], ["wq"], "/fc/wq", axis=1),
        helper.make_node("DequantizeLinear", ["wq", "w_scale", "w_zero"], ["wd"], "/fc/wd", axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], "/fc/MatMul"),
    ]
    return model(nodes, [numpy_helper.from_array(a, n) for n, a in constants.items()], batch)


def build(path: Path, content: onnx.ModelProto | bytes, **changes: Any) -> trt.Plan:
    path = path / "m.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    arguments: dict[str, Any] = {
        "runtime": "tensorrt-rtx",
        "profiles": PROFILES,
        "compute_capability": (8, 0),
    }
    return trt.build_plan(path, **(arguments | changes))


def test_a_real_plan_and_its_table(tmp_path: Path) -> None:
    plan = build(tmp_path, int8_linear())
    assert len(plan.plan) > 1000
    assert plan.runtime == "tensorrt-rtx"
    assert plan.version == trt.version(trt.load("tensorrt-rtx"))
    assert (plan.timing_cache, plan.timings_given) == (b"", False)
    assert plan.log == ()
    (row,) = prove(plan.layers, [Planned("fc", "/fc/MatMul", 64 * 64)], 0, "demo")
    assert (row.type, row.weight_count, row.output_dtype) == ("gemm", 4096, "Half")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    assert build(tmp_path, int8_linear()).plan == build(tmp_path, int8_linear()).plan


def test_a_static_model_needs_no_profile(tmp_path: Path) -> None:
    plan = build(tmp_path, int8_linear(batch=8), profiles={})
    assert (8, 64) in [tensor.dims for layer in plan.layers for tensor in layer.inputs]


def test_garbage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"m\.onnx is not an ONNX model \(MODEL_DESERIALIZE_F"):
        build(tmp_path, b"not an onnx file" * 10)


def test_an_empty_file_is_refused_although_the_parser_takes_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"\(0 bytes\) gave a network of 0 layers, expected at"):
        build(tmp_path, b"", profiles={})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.onnx"
    with pytest.raises(ArtifactError, match=r"absent\.onnx is not a file"):
        trt.build_plan(path, runtime="tensorrt-rtx", profiles={}, compute_capability=(8, 0))


def test_an_unknown_op_is_named_with_the_parsers_code(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        build(tmp_path, one_node("Odd", domain="mine"))
    message = str(caught.value)
    assert 'refuses node "/odd/Odd" (Odd) with INVALID_NODE' in message
    assert "Plugin not found" in message
    assert "Plugin not found" in str(caught.value.__cause__)


def test_an_unsupported_op_is_named_with_the_parsers_code(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r'"/odd/Bernoulli" \(Bernoulli\) with UNSUPPORTED_'):
        build(tmp_path, one_node("Bernoulli"))


def test_a_nonzero_zero_point_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r'"/fc/xq" \(QuantizeLinear\).*symmetric int8'):
        build(tmp_path, int8_linear(zero_point=3))


def test_uint8_is_refused_although_the_parser_takes_it(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"would read uint8 Q/DQ as int8.*zero point 0"):
        build(tmp_path, int8_linear(np.uint8))


def test_a_missing_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'"x" of shape \(-1, 64\).*no profile.*given: none'):
        build(tmp_path, int8_linear(), profiles={})


def test_a_profile_of_an_unknown_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'names the input "xx", which the model lacks.*are: x'):
        build(tmp_path, int8_linear(), profiles={"xx": PROFILES["x"]})


@pytest.mark.parametrize(
    "shapes",
    [
        ((1, 32), (8, 64), (64, 64)),  # a static size is another
        ((8, 64), (1, 64), (64, 64)),  # the usual is below the smallest
        ((0, 64), (1, 64), (64, 64)),  # an empty batch
        ((1, 1, 64), (8, 1, 64), (64, 1, 64)),  # another rank
    ],
)
def test_a_profile_that_does_not_fit_is_shown(tmp_path: Path, shapes: trt.ShapeRange) -> None:
    with pytest.raises(ConfigError, match=r'profile of "x" is \(.*expected three.*fit \(-1, 64\)'):
        build(tmp_path, int8_linear(), profiles={"x": shapes})


def test_a_failed_build_gives_the_last_error_and_keeps_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trt._configure

    def starved(module: Any, config: Any, *settings: Any) -> None:
        real(module, config, *settings)
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, 1 << 20)

    monkeypatch.setattr(trt, "_configure", starved)
    with pytest.raises(ToolchainError, match=r"could not build an engine \(.*workspace") as caught:
        build(tmp_path, int8_linear())
    assert "VERBOSE: " in str(caught.value.__cause__)


def test_orins_compute_capability_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"cannot build for SM87.*knows SM75, SM80, SM86"):
        build(tmp_path, int8_linear(), compute_capability=(8, 7))


def test_a_timing_cache_is_refused_where_nothing_is_timed(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="tensorrt-rtx times no tactics"):
        build(tmp_path, int8_linear(), timing_cache=b"x")


def test_tensorrt_refuses_a_foreign_compute_capability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(trt.load("tensorrt-rtx"), "ComputeCapability")  # as in TensorRT
    with pytest.raises(UnsupportedError, match=r"for the GPU that is present, not .* 8\.0: build"):
        build(tmp_path, int8_linear())


def test_a_builder_without_a_device_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_device(_: object) -> None:
        raise TypeError("factory function returned nullptr")  # what TensorRT does without a GPU

    monkeypatch.setattr(trt.load("tensorrt-rtx"), "Builder", no_device)
    with pytest.raises(ToolchainError, match=r"cannot create a builder .* needs a CUDA device"):
        build(tmp_path, int8_linear())


@pytest.mark.filterwarnings("ignore:Use Deprecated:DeprecationWarning")
def test_tensorrts_own_path_goes_as_far_as_a_machine_without_gpu_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TensorRT-RTX has the same API, so it stands in for TensorRT up to opening the engine.
    monkeypatch.setitem(sys.modules, "tensorrt", trt.load("tensorrt-rtx"))
    with pytest.raises(ToolchainError, match=r"cannot open the plan") as caught:
        build(tmp_path, int8_linear(), runtime="tensorrt")
    assert "Layers:" in str(caught.value.__cause__)  # it was built


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TensorRT-RTX under TensorRT's name, with its own way to show the layers (no GPU needed).

    Its builder times nothing, but it makes, takes and refuses timing caches as TensorRT does.
    """
    module = trt.load("tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(
        trt, "_layers", lambda *parts: parse_dump("\n".join(text for _, text in parts[3]))
    )
    return module


@pytest.mark.filterwarnings("ignore:Use Deprecated:DeprecationWarning")
@pytest.mark.usefixtures("tensorrt")
def test_a_build_returns_its_timings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = build(tmp_path, int8_linear(), runtime="tensorrt")
    assert len(plan.timing_cache) > 100
    assert not plan.timings_given
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:Use Deprecated:DeprecationWarning")
@pytest.mark.usefixtures("tensorrt")
def test_timings_that_cannot_be_read_are_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = build(tmp_path, int8_linear(), runtime="tensorrt", timing_cache=b"garbage" * 10)
    assert not plan.timings_given
    assert any("deserialize timing cache" in line for line in plan.log)
    assert "timing cache of 70 bytes is damaged, or of another device" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Use Deprecated:DeprecationWarning")
def test_timings_of_another_device_are_not_used(
    tmp_path: Path, tensorrt: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    real, refused = tensorrt.IBuilderConfig.set_timing_cache, []

    def refuse_once(config: Any, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        refused.append(cache)
        return len(refused) > 1 and real(config, cache, ignore_mismatch)

    monkeypatch.setattr(tensorrt.IBuilderConfig, "set_timing_cache", refuse_once)
    plan = build(tmp_path, int8_linear(), runtime="tensorrt")
    assert len(refused) == 2
    assert not plan.timings_given
    assert len(plan.timing_cache) > 100  # of the empty one that took its place
    assert "or of another device or TensorRT, and not used" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Use Deprecated:DeprecationWarning")
def test_timings_that_are_taken_are_said_to_be(
    tmp_path: Path, tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a GPU no serialized cache can be read back: what is given is replaced by an empty one.
    real = tensorrt.IBuilderConfig.create_timing_cache
    given = []

    def readable(config: Any, timings: bytes) -> Any:
        given.append(timings)
        return real(config, b"")

    monkeypatch.setattr(tensorrt.IBuilderConfig, "create_timing_cache", readable)
    assert build(tmp_path, int8_linear(), runtime="tensorrt", timing_cache=b"t").timings_given
    assert given == [b"t"]


@pytest.mark.parametrize("asked", [True, False])
def test_sparse_weights_are_allowed_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    module = trt.load("tensorrt-rtx")
    real, flags = module.IBuilderConfig.set_flag, []

    def watched(config: Any, flag: Any) -> None:
        flags.append(flag)
        real(config, flag)

    monkeypatch.setattr(module.IBuilderConfig, "set_flag", watched)
    build(tmp_path, int8_linear(), sparse_weights=asked)
    assert (module.BuilderFlag.SPARSE_WEIGHTS in flags) is asked


def test_sparse_kernels_are_read_from_what_the_builder_says_in_passing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT says them at INFO, which is not kept; TensorRT-RTX never does."""
    real = trt.new_logger

    def telling(module: Any) -> tuple[Any, trt.Log]:
        logger, log = real(module)
        for line in ("Found 3 layer(s) eligible to use", "Chose 2 layer(s) using"):
            logger.log(module.ILogger.Severity.INFO, f"(Sparsity) {line} sparse tactics")
        return logger, log

    monkeypatch.setattr(trt, "new_logger", telling)
    plan = build(tmp_path, int8_linear())
    assert plan.sparsity == Sparsity(3, 2)
    assert not any("Sparsity" in line for line in plan.log)


def test_what_native_code_prints_goes_to_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clip = one_node("Clip", ("x", "low"))  # fp16 cannot hold the default upper bound
    clip.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float16), "low"))
    plan = build(tmp_path, clip)
    assert capfd.readouterr() == ("", "")
    assert any("precision-lose casting" in line for line in plan.log)


@pytest.mark.parametrize(
    ("runtime", "extra", "otherwise"),
    [
        ("tensorrt", "trt", " on x86-64, or on Jetson sudo apt install python3-libnvinfer and an"),
        ("tensorrt-rtx", "rtx", ""),
    ],
)
def test_an_absent_runtime_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, runtime: trt.Runtime, extra: str, otherwise: str
) -> None:
    monkeypatch.setitem(sys.modules, runtime.replace("-", "_"), None)
    with pytest.raises(ToolchainError, match=f"^{runtime} cannot be imported ") as caught:
        trt.load(runtime)
    assert f"): {install(extra)}{otherwise}" in str(caught.value)


def test_opening_a_plan_without_a_device_says_what_it_needs() -> None:
    module = trt.load("tensorrt-rtx")
    logger, log = trt.new_logger(module)
    with pytest.raises(ToolchainError, match=r"cannot open the plan .* needs a CUDA device"):
        trt.deserialize(module, logger, log, b"not a plan")


def test_the_module_needs_neither_onnx_nor_torch_nor_tensorrt() -> None:
    code = (
        "import sys; import edgekd.engine.runner; "
        "print(sorted({'onnx', 'torch', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout == "[]\n"
