"""The operator's function body against the contract, in two runtimes."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny.sparse_graphs import run, written

from edgekd import sparse24
from edgekd.engine.passes import sparse_gemm_op
from edgekd.engine.passes.sparse_gemm_op import Overload
from edgekd.errors import UnsupportedError
from kernels import gemms

OVERLOADS: tuple[Overload, ...] = get_args(Overload)
BATCH = (2, 9)


def random(overload: Overload, n: int = 64, k: int = 128) -> gemms.Gemm:
    output = overload.removesuffix("_residual")
    residual = overload == "f16_residual"
    return gemms.random(18, n, k, output, residual=residual)  # type: ignore[arg-type]


def model(overload: Overload, gemm: gemms.Gemm, opset: int = 17) -> onnx.ModelProto:
    """A graph of one node, its weights constants, everything else an input."""
    _, n, k = gemm.sizes
    values, metadata = sparse24.compress(gemm.weights)
    inputs = {"x": (TensorProto.INT8, ["b", "t", k])}
    names = ["x", "values", "metadata"]
    if overload != "s32":
        inputs |= {name: (TensorProto.FLOAT, [n]) for name in ("scale", "bias")}
        names += ["scale", "bias"]
    if overload == "f16_residual":
        inputs["extra"] = (TensorProto.FLOAT16, ["b", "t", n])
    elif overload.endswith("s8"):
        inputs["extra"] = (TensorProto.FLOAT, [])
    names += ["extra"] if "extra" in inputs else []
    node = sparse_gemm_op.node(overload, names, "y", "gemm")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, *each) for name, each in inputs.items()],
        [helper.make_tensor_value_info("y", written(node), ["b", "t", n])],
        [
            numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in (("values", values), ("metadata", metadata))
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    sparse_gemm_op.add_functions(made)
    return made


def feed(overload: Overload, gemm: gemms.Gemm) -> dict[str, Any]:
    _, n, k = gemm.sizes
    given: dict[str, Any] = {"x": gemm.x.reshape(*BATCH, k)}
    if overload != "s32":
        given |= {"scale": gemm.scale, "bias": gemm.bias}
    if gemm.extra is not None:
        given["extra"] = gemm.extra.reshape((*BATCH, n) if gemm.output == "f16" else ())
    return given


@pytest.mark.parametrize("opset", [13, 17, 19, 21])
@pytest.mark.parametrize("overload", OVERLOADS)
def test_onnx_runtime_gives_the_contracts_numbers(overload: Overload, opset: int) -> None:
    gemm = random(overload)
    made = model(overload, gemm, opset)
    onnx.checker.check_model(made, full_check=True)
    y = run(made, feed(overload, gemm))["y"]
    wanted = gemm.expected().reshape(*BATCH, 64)
    assert y.dtype == wanted.dtype
    if overload == "gelu_s8":
        assert np.abs(y.astype(int) - wanted).max() <= 1
    else:
        np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("overload", OVERLOADS)
def test_so_does_the_reference_of_onnx(overload: Overload) -> None:
    gemm = random(overload)
    made = inliner.inline_local_functions(model(overload, gemm))
    y = ReferenceEvaluator(made).run(None, feed(overload, gemm))[0]
    wanted = gemm.expected().reshape(*BATCH, 64)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=int(overload == "gelu_s8"))
    assert y.dtype == wanted.dtype


def test_gelu_is_a_step_apart_once_in_a_hundred_thousand_at_most() -> None:
    gemm = gemms.random(1200, 256, 256, "gelu_s8")
    given = {
        **feed("gelu_s8", random("gelu_s8")), "x": gemm.x[None], "scale": gemm.scale,
        "bias": gemm.bias,
    }  # fmt: skip
    y = run(model("gelu_s8", gemm), given)["y"][0]
    step = np.abs(y.astype(int) - gemm.expected())
    assert step.max() <= 1
    assert step.mean() <= 1e-5


def test_sums_at_the_ends_of_int8() -> None:
    gemm = random("s32", k=4096)
    gemm.x[:] = -128
    gemm.weights[gemm.weights != 0] = -128
    y = run(model("s32", gemm), feed("s32", gemm))["y"]
    assert y.max() == 128 * 128 * 2048
    np.testing.assert_array_equal(y.reshape(18, 64), gemm.expected())


@pytest.mark.parametrize("overload", OVERLOADS)
def test_shapes_and_types_are_inferred_through_the_function(overload: Overload) -> None:
    made = model(overload, random(overload))
    kind = made.graph.output[0].type.tensor_type.elem_type
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info("y", kind, ["b", "t", None]))
    found = onnx.shape_inference.infer_shapes(made, strict_mode=True).graph.output[0]
    sizes = [d.dim_value or d.dim_param for d in found.type.tensor_type.shape.dim]
    assert sizes == ["b", "t", 64]


def test_gelus_constants_are_floats_of_the_contract() -> None:
    body = sparse_gemm_op.function("gelu_s8", 17)
    held = {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in body.node if not n.input}
    named = {name: held[name].item() for name in ("root", "one", "half")}
    assert named == {"root": float(np.float32(np.sqrt(2.0))), "one": 1.0, "half": 0.5}
    assert all(held[name].dtype == np.float32 for name in named)


def test_what_a_model_has_is_not_added_twice() -> None:
    made = model("s8", random("s8"))
    node = sparse_gemm_op.node("f16", [], "y.f16", "f16")
    made.graph.node.append(node)
    for _ in range(2):
        sparse_gemm_op.add_functions(made)
    assert [each.overload for each in made.functions] == ["s8", "f16"]
    assert [each.domain for each in made.opset_import] == ["", "edgekd"]


def test_all_overloads_live_in_one_file() -> None:
    made = model("s8", random("s8"))
    for overload in OVERLOADS:
        node = sparse_gemm_op.node(overload, [], f"y.{overload}", overload)
        made.graph.node.append(node)
    del made.functions[:]
    sparse_gemm_op.add_functions(made)
    assert {each.overload for each in made.functions} == set(OVERLOADS)
    assert {each.name for each in made.functions} == {"SparseGemmS8"}
    assert made.ir_version == 10


def test_an_opset_that_is_too_old() -> None:
    sentence = "edgekd::SparseGemmS8: the graph has opset 12, expected at least 13: export it again"
    with pytest.raises(UnsupportedError, match=sentence):
        sparse_gemm_op.function("s8", 12)
