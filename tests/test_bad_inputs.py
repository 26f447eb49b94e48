"""What people bring that cannot work, through the verbs they type, and the sentence they read.

Beside these: a batch of 1 (`test_models_batch`), scales that are NaN, zero or denormal
(`distill/test_student_refused`), channels of zeros (`distill/test_student_forms`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd import qdq, recipe, target
from edgekd.distill.student import distill
from edgekd.distill.teacher import teach
from edgekd.errors import (
    ArtifactError,
    ConfigError,
    ContractError,
    EdgekdError,
    ToolchainError,
)
from edgekd.export.model import export
from edgekd.plan import plan
from edgekd.recipe import Recipe

CPU = target.load("cpu")
NETWORKS = """import torch
from torch import nn
from tiny.models import MLP


class Branches(MLP):
    def forward(self, x):
        y = super().forward(x)
        if y.sum() > 0:
            return y
        return -y


@torch.library.custom_op("bad_networks::halve", mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2


@halve.register_fake
def _(x):
    return torch.empty_like(x)


class Custom(MLP):
    def forward(self, x):
        return halve(super().forward(x))


class Boxes(MLP):
    def forward(self, x):
        return {"boxes": super().forward(x)}


class Nothing(MLP):
    def forward(self, x):
        return ()


def five():
    return MLP(classes=5)
"""


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module of networks, once: an operator is registered once a process."""
    folder = tmp_path_factory.mktemp("networks")
    (folder / "bad_networks.py").write_text(NETWORKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder / "bad_networks.py"


def asked(teacher: str, student: str | None = None, **changes: Any) -> Recipe:
    document: dict[str, Any] = {
        "name": "bad",
        "threads": 1,
        "teacher": {"model": teacher, "fit": {"steps": 0}},
        "data": {"source": "python:tiny.data:vectors", "samples": 8},
        "distill": {"steps": 0},
        **changes,
    }
    if student:
        document["student"] = {"model": student}
    return recipe.parse(document, "bad")


def refused(run: Callable[[], object], error: type[EdgekdError]) -> str:
    with pytest.raises(error) as caught:
        run()
    return str(caught.value)


@pytest.mark.parametrize("made_by", [teach, distill])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "Branches",
            "the network's course depends on its data in {}, line 9 (`if y.sum() > 0:`); the graph "
            "would always go the way of one example: replace that operator or control flow by "
            "tensor operations (torch.where for a choice)",
        ),
        (
            "Custom",
            "torch.onnx could not trace the network: ONNX has no operator for bad_networks::halve "
            "in {}, line 26 (`return halve(super().forward(x))`); replace that operator or control "
            "flow by tensor operations",
        ),
    ],
)
def test_control_flow_and_a_custom_operator_are_named(
    made_by: Any,
    name: str,
    words: str,
    networks: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    made = made_by(asked(f"python:bad_networks:{name}"), tmp_path)
    sentence = refused(lambda: export(made, tmp_path), ToolchainError)
    assert sentence == f"export: {words.format(networks)}"
    assert capfd.readouterr().out == ""  # nor does torch's C++ print the graph
    assert not list(tmp_path.glob("onnx-model-*"))


@pytest.mark.parametrize(
    ("student", "error", "words"),
    [
        (
            "Boxes",
            ContractError,
            "the network returned boxes, expected tensors logits as named in io: return these "
            "(teacher and student need the same outputs), or name in the data's io what both "
            "return",
        ),
        (
            "Nothing",
            ContractError,
            "the network returned tuple, expected tensors logits as named in io: return these "
            "(teacher and student need the same outputs), or name in the data's io what both "
            "return",
        ),
        (
            "five",
            ConfigError,
            "its output 'logits' is [1, 5] for 1 examples, the data's io says ['batch', 4]: "
            "correct the network's size or the io",
        ),
    ],
)
def test_a_student_of_other_outputs_than_its_teacher(
    student: str, error: type[EdgekdError], words: str, networks: Path, tmp_path: Path
) -> None:
    assert networks.is_file()
    name = f"python:bad_networks:{student}"
    found = asked("python:tiny.models:mlp", name)
    for run in (lambda: plan(found, CPU), lambda: distill(found, tmp_path)):
        assert refused(run, error) == f"model {name!r}: {words}"
    assert not list(tmp_path.glob("student-*"))


def test_a_tokenizer_without_its_files(tmp_path: Path) -> None:
    from tiny import configs, files

    directory = tmp_path / "bert"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(configs.BERT))
    (directory / "tokenizer_config.json").write_text("{}")
    rows = [["a film", "yes"], ["a plot", "no"]] * 6
    for name in ("train.csv", "test.csv"):
        files.table(tmp_path / name, ["sentence", "label"], rows)
    data = {"source": "hf:csv", "train": "train.csv", "evaluation": "test.csv",
            "text": "sentence", "label": "label"}  # fmt: skip
    found = asked("hf:bert", data=data)
    found._base = tmp_path
    out = tmp_path / "out"
    for run in (lambda: plan(found, CPU), lambda: teach(found, out), lambda: distill(found, out)):
        sentence = refused(run, ConfigError)
        assert sentence.startswith(
            f"{directory}: holds no tokenizer: found none of tokenizer.json, vocab.txt, vocab.json,"
        )
        assert "copy the" in sentence
    assert not list(out.glob("*-*"))


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../w.bin", "'../w.bin' points outside the directory"),
        ("/w.bin", "should be a relative path, but it is an absolute path: /w.bin"),
        ("w.bin", "w.bin, but it is a symbolic link"),
    ],
)
def test_external_data_that_leave_their_directory(
    location: str, words: str, tmp_path: Path
) -> None:
    from onnx import TensorProto, helper

    (tmp_path / "w.bin").write_bytes(bytes(64))
    home = tmp_path / "model"
    home.mkdir()
    if location == "w.bin":
        (home / "w.bin").symlink_to(tmp_path / "w.bin")
    weight = TensorProto(name="fc.weight", data_type=TensorProto.FLOAT, dims=[4, 4])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    node = helper.make_node("MatMul", ["x", "fc.weight"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    opset = [helper.make_opsetid("", 17)]
    built = helper.make_model(graph, opset_imports=opset, ir_version=10)
    (home / "m.onnx").write_bytes(built.SerializeToString())
    sentence = refused(lambda: qdq.load(home / "m.onnx"), ArtifactError)
    assert sentence.startswith(f"{home / 'm.onnx'}: its ")
    assert "fc.weight" in sentence
    assert words in sentence
    assert sentence.endswith("): copy it again or export it again")
