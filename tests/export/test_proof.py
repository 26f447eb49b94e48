"""The proofs on the shipped files: break one thing on the way there, read our sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tiny import configs
from tiny.recipes import Breaks, Students, tiny
from tiny.recipes import export_refused as refused

from edgekd.artifact import Artifact
from edgekd.distill.student import distill
from edgekd.errors import ContractError
from edgekd.export import model, proof
from edgekd.export.model import export
from edgekd.export.to_onnx import convert_float16


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Students with layers that are planned for 2:4 and left out of INT8."""
    made = {}
    for name, network, data, exclude in (
        ("mlp", "mlp", "vectors", ["*fc1"]),
        ("resnet", configs.RESNET, "images", ["*.layer.1.*"]),
        ("vit", configs.VIT, "images", ["*fc1"]),
    ):
        base = tmp_path_factory.mktemp(f"float-{name}")
        section = {"calibration_samples": 32, "convolutions": True, "exclude": exclude}
        made[name] = distill(tiny(base, network, data, quantization=section), base / "out")
    return made


class TestSparseInFloat:
    """Planned for 2:4, left out of INT8: there are no integers to prove it on."""

    @pytest.mark.parametrize("name", ["mlp", "resnet", "vit"])
    def test_it_is_found_by_its_zeros(
        self, floats: dict[str, Artifact], tmp_path: Path, name: str
    ) -> None:
        """Through a transpose (MLP, ViT) and a folded batch norm (ResNet)."""
        results = export(floats[name], tmp_path).results
        assert results["layers_sparse"] > results["layers_int8"]

    def test_a_lost_mask_is_caught(
        self, floats: dict[str, Artifact], tmp_path: Path, breaks: Breaks
    ) -> None:
        def filled(network: Any) -> None:
            with torch.no_grad():
                weight = network.blocks[1].fc1.weight
                weight[weight == 0] = 1e-6  # far too little for any comparison of outputs

        breaks(filled)
        found = refused(floats["mlp"], tmp_path, ContractError)
        assert (
            "ort.onnx holds no weight of blocks.1.fc1 (64 x 32, planned for 2:4 in float)" in found
        )
        assert "the mask was lost on the way" in found


class TestIntegers:
    """Break one thing between the artifact and the graph; read our sentence."""

    def test_an_input_scale_that_was_altered(
        self, student: Students, tmp_path: Path, breaks: Breaks
    ) -> None:
        def change(network: Any) -> None:
            scale = network.blocks[1].fc2.input_quantizer.scale
            scale.copy_(torch.nextafter(scale.half(), torch.tensor(9.0).half()))

        breaks(change)
        found = refused(student("mlp"), tmp_path, ContractError)
        assert (
            "the input scale of blocks.1.fc2 in the graph differ from the student's in 1 of 1"
            in found
        )
        assert "the graph is not this student's" in found

    def test_weight_scales_that_were_altered(
        self, student: Students, tmp_path: Path, breaks: Breaks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def change(network: Any) -> None:
            network.stem.parametrizations.weight[0].scale[3] *= 2
            network.stem.parametrizations.weight.original.data[3] *= 2

        breaks(change)
        monkeypatch.setattr(model, "_same_as_recorded", lambda *_: None)
        found = refused(student("mlp"), tmp_path, ContractError)
        assert (
            "the scales of stem in the graph differ from the student's in 1 of 32 values" in found
        )

    def test_one_integer_that_was_altered(
        self, student: Students, tmp_path: Path, breaks: Breaks
    ) -> None:
        def change(network: Any) -> None:
            parametrized = network.stem.parametrizations.weight
            kept = parametrized.original[5].nonzero()[0]
            parametrized.original.data[5, kept] += parametrized[0].scale[5]

        breaks(change)
        found = refused(student("mlp"), tmp_path, ContractError)
        assert "the integers of stem in the graph differ from the student's in 1 of 1024" in found

    def test_a_weight_that_is_not_snapped(
        self, student: Students, tmp_path: Path, breaks: Breaks
    ) -> None:
        def change(network: Any) -> None:
            weight = network.stem.parametrizations.weight.original.data
            weight[weight != 0] *= 1.0001

        breaks(change)
        found = refused(student("mlp"), tmp_path, ContractError)
        assert "stem" in found
        assert "weights are not snapped, they differ from q x scale" in found

    def test_a_weight_off_the_mask(
        self, student: Students, tmp_path: Path, breaks: Breaks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def change(network: Any) -> None:
            parametrized = network.stem.parametrizations.weight
            parametrized.original.data[0, :4] = parametrized[0].scale[0]

        breaks(change)
        monkeypatch.setattr(model, "_same_as_recorded", lambda *_: None)
        found = refused(student("mlp"), tmp_path, ContractError)
        assert "stem: row 0, columns 0..3 hold 4 nonzeros, expected at most 2" in found

    def test_a_quantizer_that_was_left_out(
        self, student: Students, tmp_path: Path, breaks: Breaks
    ) -> None:
        def change(network: Any) -> None:
            network.blocks[0].fc1._forward_pre_hooks.clear()

        breaks(change)
        found = refused(student("mlp"), tmp_path, ContractError)
        assert "export: ort.onnx: 1 of " in found
        assert "blocks.0.fc1 (its input is float)" in found

    def test_a_quantizer_that_trt_onnx_alone_lacks(
        self, student: Students, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def drop(path: Path, half: Path) -> None:
            convert_float16(path, half)
            shipped = ir.load(half)
            graph = shipped.graph
            node = next(
                n for n in graph if n.op_type == "QuantizeLinear" and n.inputs[0].producer()
            )
            (dequantized,) = (use.outputs[0] for use, _ in node.outputs[0].uses())
            for use, index in list(dequantized.uses()):
                use.replace_input_with(index, node.inputs[0])
            graph.remove([dequantized.producer(), node], safe=True)
            ir.save(shipped, half)

        monkeypatch.setattr(model, "convert_float16", drop)
        found = refused(student("mlp"), tmp_path, ContractError)
        assert "export: trt.onnx: 1 of " in found
        assert "(its input is float)" in found

    def test_the_two_graphs_differ(
        self, student: Students, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = proof.qdq.quantized_weights

        def wrong(graph: onnx.ModelProto) -> Any:
            found = real(graph)
            if graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
                found[0].integers[0, 0] += 1
                found[0].integers[0, 1] = 0
            return found

        monkeypatch.setattr(proof.qdq, "quantized_weights", wrong)
        found = refused(student("odd"), tmp_path, ContractError)
        assert "stem: integers differ between the two graphs in" in found

    @pytest.mark.parametrize(
        ("name", "factor"), [("head.weight", 1.05), ("head.weight", 1.001), ("norm.weight", 1.001)]
    )
    def test_a_float_weight_of_the_float16_graph_that_was_altered(
        self,
        student: Students,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        factor: float,
    ) -> None:
        """Far too little for a comparison of float16 outputs with the student's."""
        real = model.convert_float16

        def wrong(path: Path, half: Path, *args: Any, **kwargs: Any) -> Any:
            made = real(path, half, *args, **kwargs)
            graph = onnx.load(half)
            (tensor,) = (t for t in graph.graph.initializer if t.name == name)
            value = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                onnx.numpy_helper.from_array((value * factor).astype(value.dtype), name)
            )
            onnx.save(graph, half)
            return made

        monkeypatch.setattr(model, "convert_float16", wrong)
        found = refused(student("odd"), tmp_path, ContractError)
        assert f"{name} is not ort.onnx's rounded to float16 in trt.onnx (1 such" in found


def test_rounding_to_float16_and_its_ends_count_as_equal() -> None:
    values = np.array([1 / 3, 1e-7, -3e-5, 0.0, 1e9, -np.inf, 2.0**-14], np.float32)
    moved = values.astype(np.float16)
    moved[[1, 2]], moved[[4, 5]] = 6e-8, (65504, -65504)  # as Model Optimizer converts
    graphs = [
        onnx.helper.make_model(
            onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(array, "w")])
        )
        for array in (values, moved)
    ]
    one, two = (proof._floats(graph) for graph in graphs)
    assert one == two
