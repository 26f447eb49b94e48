"""A file or a sentence in, classes out: the same from every artifact of a chain."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import artifact, kinds, recipe, target
from edgekd.artifact import Artifact
from edgekd.distill.student import distill
from edgekd.distill.teacher import teach
from edgekd.engine.build import build
from edgekd.errors import ArtifactError, ConfigError, install
from edgekd.export.model import export
from edgekd.infer import infer
from edgekd.recipe import Recipe

sys.path.insert(0, str(Path(__file__).parent))
from tiny import files

ROOT = Path(__file__).parents[1]


def made(base: Path, model: str, data: dict[str, Any]) -> Recipe:
    document = {
        "name": "tiny",
        "threads": 1,
        "teacher": {"model": model, "fit": {"steps": 20, "batch_size": 12}},
        "data": data,
        "quantization": {"calibration_samples": 12},
        "distill": {"steps": 0},
    }
    found = recipe.parse(document, "tiny.toml")
    found._base = base
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Artifact]]:
    """A chain on a folder of images: its directory, and the artifacts by kind."""
    base = tmp_path_factory.mktemp("images")
    import datasets

    datasets.config.HF_DATASETS_CACHE = base / "cache"
    files.config(base / "vit.json", files.VIT)
    files.imagefolder(base / "train", 4)
    files.imagefolder(base / "test", 2)
    data = {"source": "hf:imagefolder", "train": "train", "evaluation": "test"}
    found = made(base, "hf:vit.json", data)
    out = base / "out"
    student = distill(found, out)
    graph = export(student, out, found.export)
    engine = build(graph, target.load("cpu"), out)
    chain = [teach(found, out), student, graph, engine]
    return base, {each.kind: each for each in chain}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An Engine that takes pairs of sentences."""
    base = tmp_path_factory.mktemp("text")
    import datasets

    datasets.config.HF_DATASETS_CACHE = base / "cache"
    files.vocabulary(files.config(base / "bert" / "config.json", files.BERT).parent)
    rows = [["a film", "good", "yes"], ["a plot", "bad", "no"]] * 6
    for name in ("train.csv", "test.csv"):
        files.table(base / name, ["first", "second", "same"], rows)
    data = {"source": "hf:csv", "train": "train.csv", "evaluation": "test.csv", "max_length": 8,
            "text": "first", "text_pair": "second", "label": "same"}  # fmt: skip
    found = made(base, "hf:bert", data)
    graph = export(teach(found, base / "out"), base / "out", found.export)
    return build(graph, target.load("cpu"), base / "out")


def test_every_artifact_of_a_chain_gives_the_classes(
    images: tuple[Path, dict[str, Artifact]],
) -> None:
    base, chain = images
    asked = [str(base / "test" / name / "00.png") for name in files.COLOURS]
    answers = {kind: infer(each, asked, top=2) for kind, each in chain.items()}
    for found in answers.values():
        assert [row["input"] for row in found] == asked
        for row in found:
            assert [set(each) for each in row["classes"]] == [{"label", "index", "probability"}] * 2
            assert row["classes"][0]["probability"] >= row["classes"][1]["probability"] > 0
    best = [[row["classes"][0]["label"] for row in answers[kind]] for kind in chain]
    assert best[0] == list(files.COLOURS)  # the teacher has learned three colours
    close = [[row["classes"][0]["probability"] for row in answers[k]] for k in list(chain)[1:]]
    assert best[1] == best[2] == best[3]
    np.testing.assert_allclose(close[0], close[1], atol=0.01)  # torch and ONNX Runtime
    assert close[1] == close[2]  # one graph, one runtime


def test_what_training_saw_is_what_infer_sees(images: tuple[Path, dict[str, Artifact]]) -> None:
    """The recorded answer to an evaluation image is the answer to its file."""
    base, chain = images
    graph = chain["OnnxModel"]
    with np.load(graph.file("outputs.npz")) as recorded:
        logits = recorded["logits"].astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    wanted = powers / powers.sum(axis=1, keepdims=True)
    paths = sorted(str(path) for path in (base / "test").rglob("*.png"))
    for row, answer in enumerate(infer(graph, paths, top=3)):
        for found in answer["classes"]:
            assert found["probability"] == pytest.approx(wanted[row, found["index"]], abs=1e-5)


def test_pairs_of_sentences_from_an_engine_that_lies_alone(text: Artifact, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere"
    shutil.copytree(text.path, alone)
    engine = artifact.load(alone, kinds.ENGINE)
    found = infer(engine, ["a film", "good", "a plot", "bad"], pair=True)
    assert [row["input"] for row in found] == ["a film / good", "a plot / bad"]
    assert {each["label"] for each in found[0]["classes"]} == {"no", "yes"}
    assert sum(each["probability"] for each in found[0]["classes"]) == pytest.approx(1)
    with pytest.raises(ConfigError, match="--pair: found 3 sentences, expected two for each input"):
        infer(engine, ["a", "b", "c"], pair=True)
    with pytest.raises(ConfigError, match="takes pairs of sentences: add --pair"):
        infer(engine, ["a film"])


def test_the_tokenizer_travels_with_every_artifact(text: Artifact) -> None:
    made = [artifact.load(path) for path in sorted(text.path.parent.iterdir()) if path.is_dir()
            and not path.name.startswith(".")]  # fmt: skip
    hashes = {each.kind: each.manifest.files["tokenizer.json"].sha256 for each in made}
    assert set(hashes) == {"Teacher", "Samples", "OnnxModel", "Engine"}
    assert len(set(hashes.values())) == 1


def test_an_image_is_no_pair(images: tuple[Path, dict[str, Artifact]]) -> None:
    with pytest.raises(ConfigError, match="takes one input each: drop --pair"):
        infer(images[1]["Engine"], ["a.png", "b.png"], pair=True)


def test_arrays_are_taken_as_they_are(
    images: tuple[Path, dict[str, Artifact]], tmp_path: Path
) -> None:
    graph = images[1]["OnnxModel"]
    samples = artifact.parent(graph, "samples", kinds.SAMPLES)
    with np.load(samples.file("samples.npz")) as found:
        pixels = found["input.pixel_values"]
    path = tmp_path / "in.npz"
    np.savez(path, pixel_values=pixels, more=np.zeros(3))
    rows = infer(graph, [str(path)])
    assert [row["input"] for row in rows] == [f"{path}, row {n}" for n in range(len(pixels))]
    with pytest.raises(ConfigError, match="is one of 2 inputs, expected it alone"):
        infer(graph, [str(path), "a.png"])
    np.savez(path, pixels=pixels)
    with pytest.raises(ConfigError, match="input 'pixel_values' is missing; it holds pixels"):
        infer(graph, [str(path)])
    np.savez(path, pixel_values=pixels[:, :, :9])
    with pytest.raises(ConfigError, match=r"is \[6, 3, 9, 16\], expected \['batch', 3, 16, 16\]"):
        infer(graph, [str(path)])
    path.write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"in.npz: cannot be read as .npz: "):
        infer(graph, [str(path)])
    with pytest.raises(ConfigError, match=r"no.npz: no such file"):
        infer(graph, [str(tmp_path / "no.npz")])


def cli(*words: object, block: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {block}\nfrom edgekd.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_verb_prints_classes_or_json(images: tuple[Path, dict[str, Artifact]]) -> None:
    base, chain = images
    file = base / "test" / "red" / "00.png"
    done = cli("infer", chain["Engine"].path, file, "--top", 2)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(file)
    assert lines[1].split()[1] in files.COLOURS
    assert all(line.split()[0].endswith("%") for line in lines[1:3])
    asked = cli("infer", chain["Engine"].path, file, "--json")
    (answer,) = json.loads(asked.stdout)
    assert answer["input"] == str(file)
    assert f"{answer['classes'][0]['probability']:.2%}" in lines[1]


def test_without_pillow_the_verb_says_what_to_do(
    images: tuple[Path, dict[str, Artifact]], tmp_path: Path
) -> None:
    _, chain = images
    blocked = "sys.modules['PIL'] = None"
    done = cli("infer", chain["Engine"].path, "a.png", block=blocked)
    assert done.returncode == 3
    assert f"needs Pillow, which is not installed: {install('preprocess')}" in done.stderr
    pixels = np.zeros((1, 3, 16, 16), np.float32)
    np.savez(tmp_path / "in.npz", pixel_values=pixels)
    assert cli("infer", chain["Engine"].path, tmp_path / "in.npz", block=blocked).returncode == 0


def test_what_is_no_network_is_told(images: tuple[Path, dict[str, Artifact]]) -> None:
    samples = artifact.parent(images[1]["OnnxModel"], "samples", kinds.SAMPLES)
    done = cli("infer", samples.path, "a.png")
    assert done.returncode == 3
    assert "is of kind Samples, expected Teacher or Student or OnnxModel or Engine" in done.stderr
    with pytest.raises(ArtifactError, match="is a Samples, expected an OnnxModel, an Engine, a St"):
        infer(samples, [str(images[0] / "test" / "red" / "00.png")])
