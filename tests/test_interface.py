"""What a network takes is read from what its publisher ships, or it is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd import classes, interface, recipe
from edgekd.errors import ConfigError
from edgekd.io_json import Image, Text
from edgekd.recipe import Recipe

sys.path.insert(0, str(Path(__file__).parent))
from tiny import files

Maker = Callable[..., Recipe]
CSV = {"source": "hf:csv", "train": "a", "evaluation": "b"}


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    def made(model: str, fit: bool = True, export: Any = None, **section: Any) -> Recipe:
        document = {
            "name": "test",
            "teacher": {"model": model, **({"fit": {"steps": 1}} if fit else {})},
            "data": {**CSV, **section},
            "distill": {"steps": 0},
            "export": export or {},
        }
        found = recipe.parse(document, "test.toml")
        found._base = tmp_path
        return found

    return made


def test_a_processor_beside_the_weights_is_followed(make: Maker, tmp_path: Path) -> None:
    directory = files.config(tmp_path / "vit" / "config.json", files.VIT).parent
    processor = {"image_processor_type": "ViTImageProcessor", "size": 16, "image_mean": [0, 0, 0]}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    (directory / "model.safetensors").write_bytes(b"")
    found = interface.of_recipe(make("hf:vit", fit=False))
    assert isinstance(found.preprocess, Image)
    assert found.preprocess.mean == [0, 0, 0]
    assert found.inputs[0].name == "pixel_values"
    assert found.inputs[0].range == (0.0, 2.0)
    assert (found.labels, found.classes) == (None, 3)


def test_preprocessing_of_given_weights_is_never_guessed(make: Maker, tmp_path: Path) -> None:
    directory = files.config(tmp_path / "vit" / "config.json", files.VIT).parent
    found = interface.of_recipe(make("hf:vit"))
    assert isinstance(found.preprocess, Image)
    assert found.preprocess.resize == (16, 16)
    (directory / "model.safetensors").write_bytes(b"")
    expected = (
        r"preprocessor_config.json: no such file, and model.safetensors was trained with a pre"
    )
    with pytest.raises(ConfigError, match=expected):
        interface.of_recipe(make("hf:vit", fit=False))


def test_a_grey_network_takes_grey_images(make: Maker, tmp_path: Path) -> None:
    files.config(tmp_path / "vit.json", files.VIT, num_channels=1, image_size=[8, 12])
    found = interface.of_recipe(make("hf:vit.json"))
    assert isinstance(found.preprocess, Image)
    assert (found.preprocess.channels, found.preprocess.resize) == ("grey", (8, 12))
    assert found.inputs[0].shape == ["batch", 1, 8, 12]
    files.config(tmp_path / "vit.json", files.VIT, num_channels=4)
    with pytest.raises(ConfigError, match="takes 4 channels, expected 1 or 3"):
        interface.of_recipe(make("hf:vit.json"))


def test_timm_names_its_input_and_its_classes(make: Maker) -> None:
    found = interface.of_recipe(make("timm:resnet18?num_classes=7&in_chans=1", fit=False))
    assert isinstance(found.preprocess, Image)
    assert (found.inputs[0].name, found.inputs[0].shape) == ("x", ["batch", 1, 224, 224])
    assert found.classes == 7
    assert found.preprocess.interpolation == "bicubic"


def test_data_preprocess_takes_the_place_of_the_teachers(make: Maker, tmp_path: Path) -> None:
    files.config(tmp_path / "vit.json", files.VIT)
    found = interface.of_recipe(make("hf:vit.json", preprocess="timm:resnet18"))
    assert found.inputs[0].shape == ["batch", 3, 224, 224]
    assert found.inputs[0].name == "pixel_values"
    expected = "does not know how to feed 'python:a:b': give data.preprocess"
    with pytest.raises(ConfigError, match=expected):
        interface.of_recipe(make("python:json:dumps", preprocess="python:a:b"))


def test_a_preprocessing_that_is_asked_for_must_be_there(make: Maker, tmp_path: Path) -> None:
    files.config(tmp_path / "vit.json", files.VIT)
    with pytest.raises(ConfigError, match=r"data.preprocess 'hf:nowhere': no such directory: "):
        interface.of_recipe(make("hf:vit.json", preprocess="hf:nowhere"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match=r"bare/preprocessor_config.json: no such file: copy"):
        interface.of_recipe(make("hf:vit.json", preprocess="hf:bare"))


def test_what_lies_beside_an_image_networks_configuration_is_not_its_tokenizer(
    make: Maker, tmp_path: Path
) -> None:
    files.vocabulary(files.config(tmp_path / "vit.json", files.VIT).parent)
    assert interface.of_recipe(make("hf:vit.json")).preprocess.kind == "image"


def test_text_is_as_long_as_asked_or_open(make: Maker, tmp_path: Path) -> None:
    files.vocabulary(files.config(tmp_path / "bert" / "config.json", files.BERT).parent)
    found = interface.of_recipe(make("hf:bert", max_length=9, text="a", text_pair="b"))
    assert isinstance(found.preprocess, Text)
    assert found.preprocess.pair
    assert [tensor.shape for tensor in found.inputs] == [["batch", 9]] * 3
    assert interface.of_recipe(make("hf:bert")).inputs[0].shape == ["batch", 24]
    sizes = {"dynamic": {"sequence": {"min": 2, "opt": 8, "max": 9}}}
    for asked in (9, 5, None):
        found = interface.of_recipe(make("hf:bert", export=sizes, max_length=asked))
        assert found.inputs[0].shape == ["batch", "sequence"]
        assert isinstance(found.preprocess, Text)
        assert found.preprocess.max_length == (asked or 9)
    with pytest.raises(ConfigError) as caught:
        interface.of_recipe(make("hf:bert", export=sizes, max_length=10))
    assert "data.max_length is 10 and export.dynamic.sequence.max 9" in str(caught.value)
    assert "an engine would refuse the longer sentences: make them the same" in str(caught.value)


def test_a_tokenizer_of_another_network_is_told(make: Maker, tmp_path: Path) -> None:
    files.vocabulary(files.config(tmp_path / "b" / "config.json", files.BERT, vocab_size=9).parent)
    with pytest.raises(ConfigError, match="makes ids up to 9, the network takes up to 8: give the"):
        interface.of_recipe(make("hf:b"))


def test_a_text_network_without_a_tokenizer_is_told(make: Maker, tmp_path: Path) -> None:
    files.config(tmp_path / "bert" / "config.json", files.BERT)
    with pytest.raises(ConfigError, match=r"bert: holds no tokenizer: found none of tokenizer"):
        interface.of_recipe(make("hf:bert"))


def test_names_that_transformers_made_up_are_none(make: Maker, tmp_path: Path) -> None:
    made_up = {"0": "LABEL_0", "1": "LABEL_1"}
    files.config(tmp_path / "vit.json", files.VIT, id2label=made_up)
    found = interface.of_recipe(make("hf:vit.json"))
    assert (found.labels, found.classes) == (None, 2)
    files.config(tmp_path / "vit.json", files.VIT, id2label={"1": "dog", "0": "cat"})
    assert interface.of_recipe(make("hf:vit.json")).labels == ["cat", "dog"]


def test_a_configuration_that_transformers_refuses_is_told(make: Maker, tmp_path: Path) -> None:
    files.config(tmp_path / "vit.json", files.VIT, model_type="vitt")
    with pytest.raises(ConfigError, match=r"transformers refuses it: .*vitt"):
        interface.of_recipe(make("hf:vit.json"))


def test_ids_that_are_drawn_have_a_position_each(make: Maker, tmp_path: Path) -> None:
    """RoBERTa counts positions from behind the padding's id: 34 of them take 32."""
    values = {**files.BERT, "architectures": ["RobertaForSequenceClassification"]}
    values |= {"model_type": "roberta", "max_position_embeddings": 34, "pad_token_id": 1}
    files.config(tmp_path / "roberta.json", values)
    section: dict[str, Any] = {"source": "random", "train": None, "evaluation": None}
    found = interface.of_recipe(make("hf:roberta.json", **section))
    assert [tensor.shape for tensor in found.inputs] == [["batch", 32]] * 2
    found = interface.of_recipe(make("hf:roberta.json", **section, max_length=32))
    assert found.inputs[0].shape == ["batch", 32]
    with pytest.raises(ConfigError) as caught:
        interface.of_recipe(make("hf:roberta.json", **section, max_length=33))
    assert "is 33, the positions of the model in " in str(caught.value)
    assert "allow at most 32: lower it" in str(caught.value)


def test_the_shortest_sentence_of_an_engine_is_carried(make: Maker, tmp_path: Path) -> None:
    files.vocabulary(files.config(tmp_path / "bert" / "config.json", files.BERT).parent)
    sizes = {"dynamic": {"sequence": {"min": 7, "opt": 8, "max": 9}}}
    found = interface.of_recipe(make("hf:bert", export=sizes))
    assert isinstance(found.preprocess, Text)
    assert (found.preprocess.min_length, found.preprocess.max_length) == (7, 9)
    fixed = interface.of_recipe(make("hf:bert", max_length=9)).preprocess
    assert isinstance(fixed, Text)
    assert fixed.min_length == 1


def test_class_numbers_that_are_none_are_told(make: Maker, tmp_path: Path) -> None:
    files.config(tmp_path / "vit.json", files.VIT, id2label={"cat": 0, "dog": 1})
    with pytest.raises(ConfigError) as caught:
        interface.of_recipe(make("hf:vit.json"))
    assert "id2label has 'cat': 0, expected the numbers 0 to 1 as its keys" in str(caught.value)
    with pytest.raises(ConfigError, match="expected the numbers 0 to 1 as its keys"):
        classes.chosen({"id2label": {"cat": 0, "dog": 1}}, ["cat"])
