"""Ids and masks are those of transformers' tokenizers, from any directory that holds one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors, trainers

from edgekd import processors as ours
from edgekd.data import IO, Tensor
from edgekd.errors import ArtifactError, ConfigError
from edgekd.preprocess import Preprocessor

WORDS = ["the", "cat", "sat", "on", "a", "mat", ".", "dogs", "bark", "!", "un", "##believ",
         "##able", "##s", "film", "is", "was", "good", "bad", "very", "not", "##n", "##d", ",", "?",
         "it", "'", "s"]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = ["The cat sat on a mat.", "Unbelievable films!", "", "it's   not\tvery\ngood é 猫",
             "very " * 40 + "bad"]  # fmt: skip
PAIRS = list(zip(SENTENCES, reversed(SENTENCES), strict=True))


def wordpiece(directory: Path) -> Path:
    """Only ``vocab.txt``, as old BERT directories hold it."""
    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
    (directory / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return directory


def bpe(directory: Path) -> Path:
    """RoBERTa's: byte-level BPE, trained here on a few sentences."""
    directory.mkdir(exist_ok=True)
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(SENTENCES * 4, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", model_max_length=40
    )
    found.save_pretrained(directory)
    return directory


def prepare(directory: Path, config: dict[str, Any], length: int | str, pair: bool) -> Preprocessor:
    whole = length if isinstance(length, int) else 24
    found = ours.text_of_directory(directory, config, whole, pair)
    inputs = [Tensor(name=n, dtype="int64", shape=["batch", length]) for n in found.inputs]
    io = IO(inputs=inputs, outputs=[], labels=[], preprocess=found.steps)
    return Preprocessor(io, found.content, "a test")


BERT = {"model_type": "bert", "type_vocab_size": 2, "max_position_embeddings": 64}
ROBERTA = {"model_type": "roberta", "type_vocab_size": 1, "max_position_embeddings": 42,
           "pad_token_id": 1}  # fmt: skip


@pytest.mark.parametrize("pair", [False, True], ids=["one", "pair"])
@pytest.mark.parametrize("length", [24, 9, "sequence"])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_ids_are_those_of_transformers(
    kind: str, length: int | str, pair: bool, tmp_path: Path
) -> None:
    directory = {"wordpiece": wordpiece, "bpe": bpe}[kind](tmp_path / "made")
    config = BERT if kind == "wordpiece" else ROBERTA
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    padding = "max_length" if isinstance(length, int) else "longest"
    columns = list(zip(*PAIRS, strict=True)) if pair else [SENTENCES]
    wanted = theirs(
        *map(list, columns),
        padding=padding,
        truncation=True,
        max_length=length if isinstance(length, int) else 24,
        return_token_type_ids=True,
    )
    found = prepare(directory, config, length, pair)(PAIRS if pair else SENTENCES)
    assert list(found) == ["input_ids", "attention_mask", "token_type_ids"][: 3 - (kind == "bpe")]
    for name, array in found.items():
        assert array.dtype == np.int64
        assert array.tolist() == wanted[name], name


def test_a_tokenizer_json_alone_is_enough(tmp_path: Path) -> None:
    whole = bpe(tmp_path / "whole")
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "tokenizer.json").write_bytes((whole / "tokenizer.json").read_bytes())
    first, second = (prepare(each, ROBERTA, 24, False)(SENTENCES) for each in (whole, alone))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_settings_of_the_directory_are_kept(tmp_path: Path) -> None:
    directory = bpe(tmp_path / "made")
    file = directory / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings |= {"padding_side": "left", "truncation_side": "left"}
    file.write_text(json.dumps(settings))
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    wanted = theirs(SENTENCES, padding="max_length", truncation=True, max_length=12)
    found = prepare(directory, ROBERTA, 12, False)(SENTENCES)
    assert found["input_ids"].tolist() == wanted["input_ids"]


def test_the_longest_text_is_what_network_and_tokenizer_take(tmp_path: Path) -> None:
    directory = bpe(tmp_path / "made")
    found = ours.text_of_directory(
        directory, {**ROBERTA, "max_position_embeddings": 34}, None, True
    )
    assert found.steps.max_length == 32  # two positions stand before the first word
    assert ours.text_of_directory(directory, ROBERTA, None, False).steps.max_length == 40
    with pytest.raises(ConfigError, match=r"max_length is 41, the model .* take at most 40: low"):
        ours.text_of_directory(directory, ROBERTA, 41, False)


def test_missing_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds no tokenizer: found none of tokenizer.json, voc"):
        ours.text_of_directory(tmp_path, BERT, None, False)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(
        ConfigError,
        match=r"its tokenizer cannot be read from tokenizer.json \(.*: copy all of its fil",
    ):
        ours.text_of_directory(tmp_path, BERT, None, False)


def test_half_a_tokenizer_is_told(tmp_path: Path) -> None:
    model = json.loads((bpe(tmp_path / "made") / "tokenizer.json").read_text())["model"]
    half = tmp_path / "half"
    half.mkdir()
    (half / "vocab.json").write_text(json.dumps(model["vocab"]))
    (half / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    with pytest.raises(ConfigError) as caught:
        ours.text_of_directory(half, ROBERTA, 12, False)
    assert str(caught.value) == (
        f"{half}: holds half a tokenizer: found vocab.json, expected merges.txt (or a "
        "tokenizer.json) beside it: copy the tokenizer's files there"
    )
    lines = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    (half / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]))
    found = ours.text_of_directory(half, ROBERTA, 12, False)
    assert found.vocabulary == len(model["vocab"])


def test_a_tokenizer_that_cannot_pad_is_told(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="has no padding token, nor the model a pad_token_id"):
        ours.text_of_directory(tmp_path, {}, None, False)
    assert ours.text_of_directory(tmp_path, {"pad_token_id": 1}, None, False).steps.pad_id == 1


def test_what_is_not_text_is_told(tmp_path: Path) -> None:
    encode = prepare(wordpiece(tmp_path / "made"), BERT, 24, False)
    with pytest.raises(ConfigError, match="text 1: found None, expected one sentence as text"):
        encode(["good", None])
    with pytest.raises(ConfigError, match=r"row 7: found \('a', 'b'\), expected one sentence"):
        encode([("a", "b")], ["row 7"])
    pairs = prepare(wordpiece(tmp_path / "made"), BERT, 24, True)
    with pytest.raises(ConfigError, match="text 0: found 'a', expected a pair of sentences"):
        pairs(["a"])


def test_an_artifact_without_its_tokenizer_is_told(tmp_path: Path) -> None:
    found = ours.text_of_directory(wordpiece(tmp_path / "made"), BERT, 24, False)
    inputs = [Tensor(name="input_ids", dtype="int64", shape=["batch", 24])]
    io = IO(inputs=inputs, outputs=[], labels=[], preprocess=found.steps)
    with pytest.raises(ArtifactError, match=r"a test: tokenizer.json is missing beside io.json"):
        Preprocessor(io, None, "a test")
    with pytest.raises(ArtifactError, match=r"a test: tokenizer.json cannot be used: "):
        Preprocessor(io, b"{}", "a test")
    strange = io.model_copy(update={"inputs": [inputs[0].model_copy(update={"name": "tokens"})]})
    with pytest.raises(ConfigError, match=r"makes input_ids, .*, the network takes 'tokens': giv"):
        Preprocessor(strange, found.content, "a test")


@pytest.mark.parametrize(
    ("config", "ids"),
    [
        ({}, None),
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": None}, 512),
        ({"model_type": "camembert", "max_position_embeddings": 34, "pad_token_id": 0}, 33),
    ],
)
def test_positions_behind_the_padding_are_not_counted(
    config: dict[str, Any], ids: int | None
) -> None:
    assert ours.positions(config) == ids


@pytest.mark.parametrize(("count", "pad"), [(2, 1), ("many", 1), (514, "<pad>")])
def test_positions_that_leave_none_are_told(count: Any, pad: Any) -> None:
    config = {"model_type": "roberta", "max_position_embeddings": count, "pad_token_id": pad}
    with pytest.raises(ConfigError) as caught:
        ours.positions(config)
    assert f"max_position_embeddings is {count!r} and pad_token_id {pad!r}" in str(caught.value)
    assert "whole numbers that leave at least 1 position" in str(caught.value)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_open_length_is_filled_up_to_the_shortest_an_engine_takes(
    side: str, tmp_path: Path
) -> None:
    found = ours.text_of_directory(wordpiece(tmp_path / "made"), BERT, 24, False)
    steps = found.steps.model_copy(update={"min_length": 12, "padding_side": side, "pad_id": 0})
    inputs = [
        Tensor(name=name, dtype="int64", shape=["batch", "sequence"]) for name in found.inputs
    ]
    plain = IO(inputs=inputs, outputs=[], labels=[], preprocess=found.steps)
    padded = plain.model_copy(update={"preprocess": steps})
    one = Preprocessor(plain, found.content, "a test")(["good"])["input_ids"][0].tolist()
    assert len(one) < 12
    filled = Preprocessor(padded, found.content, "a test")(["good"])
    zeros = [0] * (12 - len(one))
    assert filled["input_ids"][0].tolist() == (zeros + one if side == "left" else one + zeros)
    assert filled["attention_mask"][0].sum() == len(one)
    long = ["good " * 30, "good"]
    assert Preprocessor(padded, found.content, "a test")(long)["input_ids"].shape == (2, 24)
