from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd import target
from edgekd.errors import ConfigError

MINIMAL = """
name = "mine"
device = "cpu"
role = "development"
runtime = "onnxruntime"
python = "3.10"
platforms = ["manylinux2014_x86_64"]
required_state = ["threads"]
[sources]
device = "here"
runtime = "here"
python = "here"
platforms = "here"
required_state = "here"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_six_shipped_targets_are_named_as_their_files_are() -> None:
    assert target.names() == [
        "a100-sxm4-80gb-trt10.13",
        "a100-sxm4-80gb-trt11.4",
        "cpu",
        "jetson-agx-orin-64gb-jp6.2",
        "jetson-agx-orin-64gb-jp7.2.0",
        "jetson-agx-orin-64gb-jp7.2.2",
    ]
    assert [target.load(name).name for name in target.names()] == target.names()


def test_jetpack_6_2_is_what_nvidia_ships() -> None:
    orin = target.load("jetson-agx-orin-64gb-jp6.2")
    assert (orin.device, orin.compute_capability, orin.multiprocessors) == ("Orin", [8, 7], 16)
    assert (orin.runtime, orin.runtime_version, orin.cuda) == ("tensorrt", "10.3", "12.6")
    assert (orin.python, orin.platforms[-1]) == ("3.10", "manylinux2014_aarch64")
    assert orin.parser.opset_max == 20
    assert "QLinearMatMul" in orin.parser.unsupported
    assert orin.dla is not None
    assert (orin.dla.cores, orin.dla.status) == (2, "supported")
    assert orin.int8_sparse_tops == 170


def test_what_is_not_known_is_left_out() -> None:
    assert target.load("jetson-agx-orin-64gb-jp7.2.2").cuda is None
    assert target.load("a100-sxm4-80gb-trt11.4").parser.unsupported == []
    assert "memory_bytes" not in target.load("cpu").as_json()


def test_the_runtime_must_agree_in_every_component_the_target_names() -> None:
    orin = target.load("jetson-agx-orin-64gb-jp6.2")
    assert orin.accepts_runtime("10.3.0.30")
    assert not orin.accepts_runtime("10.30.0")
    assert not orin.accepts_runtime("11.3")
    assert not target.load("jetson-agx-orin-64gb-jp7.2.2").accepts_runtime("11.4.0")
    assert target.load("cpu").accepts_runtime("1.31.1")


def test_an_unknown_name_gives_the_nearest_and_all_that_exist() -> None:
    with pytest.raises(ConfigError) as caught:
        target.load("jetson-agx-orin-64gb-jp6")
    assert 'Did you mean "jetson-agx-orin-64gb-jp6.2"?' in str(caught.value)
    assert "a100-sxm4-80gb-trt10.13, a100-sxm4-80gb-trt11.4, cpu" in str(caught.value)


def test_a_target_of_ones_own_is_read_from_its_path(tmp_path: Path) -> None:
    assert target.load(written(tmp_path, MINIMAL)).name == "mine"


def test_what_a_bundle_stores_is_read_back(tmp_path: Path) -> None:
    orin = target.load("jetson-agx-orin-64gb-jp6.2")
    path = tmp_path / "target.json"
    path.write_text(json.dumps(orin.as_json()), encoding="utf-8")
    assert target.load(path) == orin


def test_a_fact_without_a_source_is_refused(tmp_path: Path) -> None:
    text = MINIMAL.replace("[sources]", "memory_bytes = 8\n[sources]")
    with pytest.raises(ConfigError, match=r"mine.toml: sources: no source for memory_bytes: name"):
        target.load(written(tmp_path, text))


def test_a_source_of_no_fact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a source is given for cuda, but no such fact"):
        target.load(written(tmp_path, MINIMAL + 'cuda = "nowhere"\n'))


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = MINIMAL.replace("platforms", "platform", 1).replace('"onnxruntime"', '"tvm"')
    with pytest.raises(ConfigError) as caught:
        target.load(written(tmp_path, text))
    assert "platform is an unknown key. Did you mean" in str(caught.value)
    assert "runtime: found 'tvm', expected 'tensorrt' or 'onnxruntime'" in str(caught.value)
    assert "platforms is missing" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"), [("[1]", "holds a JSON list, expected an object"), ("{", "is not JSON")]
)
def test_a_target_json_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "target.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        target.load(path)


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_a_path_that_does_not_exist(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConfigError, match=f"none.{suffix}: no such file"):
        target.load(tmp_path / f"none.{suffix}")
