"""Graphs read from files: whole, cut short, garbage, and with their weights in a file beside."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tiny.qdq_forms import K, Q, matmul

from edgekd import qdq
from edgekd.errors import ArtifactError


class TestLoad:
    def test_good_model(self, tmp_path: Path) -> None:
        onnx.save(matmul(), tmp_path / "m.onnx")
        (weight,) = qdq.quantized_weights(qdq.load(tmp_path / "m.onnx"))
        assert (weight.integers == Q).all()
        assert qdq.load(str(tmp_path / "m.onnx")) == matmul()

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (b"", "the file is empty, expected an ONNX model: export it again"),
            (
                b"garbage" * 99,
                r"its 693 bytes are not a valid ONNX model: cut short, of .*copy it",
            ),
            (b"\x08\x0a", r"its 2 bytes are not a valid ONNX model"),
        ],
    )
    def test_empty_and_garbage(self, tmp_path: Path, content: bytes, sentence: str) -> None:
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(ArtifactError, match=sentence):
            qdq.load(tmp_path / "m.onnx")

    @pytest.mark.parametrize("path", ["absent.onnx", "."])
    def test_no_file(self, tmp_path: Path, path: str) -> None:
        with pytest.raises(ArtifactError, match="no such file, expected an ONNX model"):
            qdq.load(tmp_path / path)

    def test_truncated_anywhere(self, tmp_path: Path) -> None:
        content = matmul().SerializeToString()
        file = tmp_path / "m.onnx"
        for length in (*range(1, len(content), 29), len(content) - 1):
            file.write_bytes(content[:length])
            with pytest.raises(
                ArtifactError, match=f"its {length} bytes are not a valid ONNX model"
            ):
                qdq.load(file)

    def test_checker_and_shape_inference(self, tmp_path: Path) -> None:
        unordered = matmul()
        unordered.graph.node.insert(0, unordered.graph.node.pop())
        mismatched = matmul()
        del mismatched.graph.input[0].type.tensor_type.shape.dim[1:]
        mismatched.graph.input[0].type.tensor_type.shape.dim.add().dim_value = K + 1
        for name, built in (("unordered", unordered), ("mismatched", mismatched)):
            file = tmp_path / f"{name}.onnx"
            file.write_bytes(built.SerializeToString())
            with pytest.raises(
                ArtifactError, match=rf"{name}\.onnx: .*valid ONNX model.*\(.+\): co"
            ):
                qdq.load(file)

    def test_no_nodes(self, tmp_path: Path) -> None:
        info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        empty = helper.make_model(helper.make_graph([], "g", [info], [info]), ir_version=10)
        onnx.save(empty, tmp_path / "m.onnx")
        with pytest.raises(ArtifactError, match="the graph has 0 nodes, expected a network"):
            qdq.load(tmp_path / "m.onnx")


class TestExternalData:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """A model whose tensors lie in ``w.bin`` beside it."""
        home = tmp_path / "model"
        home.mkdir()
        onnx.save(
            matmul(),
            home / "m.onnx",
            save_as_external_data=True,
            location="w.bin",
            size_threshold=64,
        )
        return home / "m.onnx"

    def test_beside_the_model(self, file: Path) -> None:
        assert (qdq.quantized_weights(qdq.load(file))[0].integers == Q).all()

    def test_absent(self, file: Path) -> None:
        (file.parent / "w.bin").unlink()
        with pytest.raises(ArtifactError, match=r"not a valid ONNX model.*w\.bin.*copy it again"):
            qdq.load(file)

    def test_cut_short(self, file: Path) -> None:
        data = file.parent / "w.bin"
        data.write_bytes(data.read_bytes()[:100])
        with pytest.raises(ArtifactError, match=r"not a valid ONNX model.*1024.*100 bytes"):
            qdq.load(file)

    @pytest.mark.parametrize("absolute", [False, True])
    def test_outside_the_directory(self, file: Path, absolute: bool) -> None:
        outside = (file.parent / "w.bin").rename(file.parent.parent / "w.bin")
        built = onnx.load(file, load_external_data=False)
        for tensor in built.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = str(outside) if absolute else "../w.bin"
        file.write_bytes(built.SerializeToString())
        with pytest.raises(ArtifactError, match=r"not a valid ONNX model.*w\.bin"):
            qdq.load(file)

    def test_symbolic_link_out_of_the_directory(self, file: Path) -> None:
        outside = (file.parent / "w.bin").rename(file.parent.parent / "w.bin")
        (file.parent / "w.bin").symlink_to(outside)
        with pytest.raises(ArtifactError, match=r"not a valid ONNX model.*symbolic link"):
            qdq.load(file)
