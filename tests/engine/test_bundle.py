from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd import artifact, kinds, target
from edgekd.artifact import Artifact
from edgekd.engine import bundle as bundles
from edgekd.engine import wheel
from edgekd.errors import ArtifactError, ConfigError

Models = Callable[..., Artifact]
ORIN = target.load("jetson-agx-orin-64gb-jp6.2")


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two wheels in place of a download, which test_wheel.py covers."""
    found = wheel.Wheels({"click-1-py3-none-any.whl": b"click", "numpy-1-x.whl": b"numpy"}, ())
    monkeypatch.setattr(wheel, "device_wheels", lambda _: found)


@pytest.fixture
def three(onnx_model: Models) -> dict[str, Artifact]:
    return {arm: onnx_model(arm=arm) for arm in ("fp16", "dense", "sparse")}


def pack(arms: dict[str, Artifact], out: Path, where: target.Target = ORIN) -> Artifact:
    return bundles.make(
        arms["sparse"], where, out, arms=arms, evidence={}, reason="no such device here"
    )


@pytest.mark.usefixtures("wheels")
def test_a_bundle_is_complete_and_every_part_verifies(
    three: dict[str, Artifact], tmp_path: Path
) -> None:
    bundle = pack(three, tmp_path / "out")
    about = bundle.read_json("bundle.json")
    assert sorted(about["arms"]) == ["dense", "fp16", "sparse"]
    assert (about["model"], about["target"]) == ("sparse", ORIN.name)
    for name, arm in about["arms"].items():
        copy = artifact.load(bundle.path / arm["directory"], kinds.ONNX_MODEL)
        samples = artifact.load(bundle.path / arm["samples"], kinds.SAMPLES)
        assert (copy.id, copy.config["arm"]) == (three[name].id, name) == (arm["id"], name)
        assert artifact.parent(copy, "samples").id == samples.id == arm["samples_id"]
    assert target.load(bundle.file("target.json")) == ORIN
    assert bundle.read_json("recipe.json")["recipe"] == {"name": "tiny", "seed": 3}
    own = f"edgekd-{wheel.version()}-py3-none-any.whl"
    assert sorted(about["wheels"]) == ["click-1-py3-none-any.whl", own, "numpy-1-x.whl"]
    for name, digest in about["wheels"].items():
        data = bundle.file(f"wheels/{name}").read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
    assert about["missing_wheels"] == []


@pytest.mark.usefixtures("wheels")
def test_its_parents_are_the_model_the_samples_and_the_other_arms(
    three: dict[str, Artifact], tmp_path: Path
) -> None:
    bundle = pack(three, tmp_path / "out")
    assert bundle.manifest.parents == {
        "model": three["sparse"].id,
        "samples": three["sparse"].manifest.parents["samples"],
        "arm-fp16": three["fp16"].id,
        "arm-dense": three["dense"].id,
    }


@pytest.mark.usefixtures("wheels")
def test_equal_inputs_made_elsewhere_give_an_equal_bundle(
    three: dict[str, Artifact], tmp_path: Path
) -> None:
    first = pack(three, tmp_path / "out")
    # The same model, exported on another host at another time: only its provenance differs.
    manifest = three["sparse"].path / "manifest.json"
    body = json.loads(manifest.read_text(encoding="utf-8"))
    body["provenance"] = {"host": "elsewhere", "time": "2031-01-01T00:00:00Z"}
    manifest.write_text(json.dumps(body), encoding="utf-8")
    second = pack(three, tmp_path / "again")
    assert second.id == first.id
    copied = next((second.path / "artifacts").glob("onnx-model-*/manifest.json"))
    assert json.loads(copied.read_text(encoding="utf-8"))["provenance"] == {}


@pytest.mark.usefixtures("wheels")
def test_the_commands_name_what_is_there(three: dict[str, Artifact], tmp_path: Path) -> None:
    bundle = pack(three, tmp_path / "out")
    commands = bundle.read_json("bundle.json")["commands"]
    name, sparse = bundle.path.name, three["sparse"]
    samples = artifact.parent(sparse, "samples").path.name
    assert commands[:3] == [
        "python3.10 -m venv --system-site-packages edgekd-venv",
        f"edgekd-venv/bin/pip install --no-index --find-links {name}/wheels edgekd",
        f"edgekd-venv/bin/edgekd inspect {name}",
    ]
    assert commands[-3:] == [
        f"edgekd-venv/bin/edgekd build {name}/artifacts/{sparse.path.name} "
        f"--target {ORIN.name} --out out/sparse",
        f"edgekd-venv/bin/edgekd evaluate out/sparse/engine-* "
        f"--samples {name}/artifacts/{samples} --out out/sparse",
        "edgekd-venv/bin/edgekd bench out/fp16/engine-* out/dense/engine-* out/sparse/engine-* "
        f"--samples {name}/artifacts/{samples} --out out/bench",
    ]
    text = bundle.file("COMMANDS.md").read_text(encoding="utf-8")
    assert all(f"\n{command}\n" in text for command in commands)
    assert "must bring the Python package `tensorrt` 10.3;" in text
    assert {line.split()[1] for line in commands if "/edgekd " in line} <= {
        "inspect",
        "build",
        "evaluate",
        "bench",
    }


@pytest.mark.usefixtures("wheels")
def test_a_target_of_ones_own_travels_by_its_json(
    three: dict[str, Artifact], tmp_path: Path
) -> None:
    mine = ORIN.model_copy(update={"name": "mine"})
    bundle = pack(three, tmp_path / "out", mine)
    (build,) = [c for c in bundle.read_json("bundle.json")["commands"] if "--out out/fp16" in c][:1]
    assert f"--target {bundle.path.name}/target.json" in build


@pytest.mark.usefixtures("wheels")
def test_a_cpu_bundle_installs_onnx_runtime(three: dict[str, Artifact], tmp_path: Path) -> None:
    bundle = pack(three, tmp_path / "out", target.load("cpu"))
    commands = bundle.read_json("bundle.json")["commands"]
    assert commands[0] == "python3.10 -m venv edgekd-venv"
    assert commands[1].endswith("edgekd onnxruntime")


def test_missing_wheels_are_told_and_make_another_bundle(
    three: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "device_wheels", lambda _: wheel.Wheels({}, ("numpy>=1.22,<3",)))
    lacking = pack(three, tmp_path / "out")
    assert lacking.results["missing_wheels"] == ["numpy>=1.22,<3"]
    assert lacking.read_json("bundle.json")["missing_wheels"] == ["numpy>=1.22,<3"]
    text = lacking.file("COMMANDS.md").read_text(encoding="utf-8")
    assert "Not in `wheels/`, as no index had them: numpy>=1.22,<3." in text
    monkeypatch.setattr(wheel, "device_wheels", lambda _: wheel.Wheels({"n.whl": b"n"}, ()))
    assert pack(three, tmp_path / "out").manifest.key != lacking.manifest.key


@pytest.mark.usefixtures("wheels")
def test_another_model_under_the_models_own_arm(three: dict[str, Artifact]) -> None:
    with pytest.raises(ConfigError, match=r"arm 'sparse' is given as onnx-model-.*, but the model"):
        bundles.arms_of(three["sparse"], {"sparse": three["dense"]})


@pytest.mark.usefixtures("wheels")
def test_a_model_without_its_source_beside_it(three: dict[str, Artifact], tmp_path: Path) -> None:
    source = artifact.parent(three["sparse"], "source").path
    source.rename(tmp_path / "away")
    with pytest.raises(ArtifactError, match=r"its source .* is not in"):
        pack(three, tmp_path / "out")
