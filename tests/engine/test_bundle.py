from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd import artifact, kinds, recipe, target
from edgekd.artifact import Artifact
from edgekd.engine import bundle as bundles
from edgekd.engine import wheel
from edgekd.errors import ArtifactError, ConfigError

Models = Callable[..., Artifact]
RECIPE = recipe.parse(
    {
        "name": "tiny",
        "teacher": {"model": "hf:nowhere"},
        "data": {"source": "python:nowhere:load"},
        "distill": {"steps": 3},
        "gate": {"accuracy_drop_points": 3.0},
    },
    "tiny.toml",
)
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
    reason = "no such device here"
    return bundles.make(
        arms["sparse"], where, out, arms=arms, evidence={}, reason=reason, recipe=RECIPE
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
    # The whole recipe, and what the model was really made with.
    assert recipe.load(bundle.file("recipe.json")).model_dump() == RECIPE.model_dump()
    assert about["source"]["config"]["recipe"] == {"name": "tiny", "seed": 3}
    assert about["source"]["id"] == artifact.parent(three["sparse"], "source").id
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
    about = bundle.read_json("bundle.json")
    words = " ".join(about["commands"] + about["baseline_commands"]).replace(")", "").split()
    named = [word for word in words if word.startswith(f"{bundle.path.name}/")]
    assert len(named) > 10
    assert [word for word in named if not (bundle.path.parent / word).exists()] == []
    text = bundle.file("COMMANDS.md").read_text(encoding="utf-8")
    assert all(f"\n{command}\n" in text for command in about["commands"])


@pytest.mark.usefixtures("wheels")
def test_without_a_recipe_there_is_none_and_the_bundle_is_another(
    three: dict[str, Artifact], tmp_path: Path
) -> None:
    arms, out = three, tmp_path / "out"
    plain = bundles.make(arms["sparse"], ORIN, out, arms=arms, evidence={}, reason="none here")
    judged = bundles.make(
        arms["sparse"], ORIN, out, arms=arms, evidence={}, reason="none here", recipe=RECIPE
    )
    assert plain.manifest.key != judged.manifest.key
    assert "recipe.json" not in plain.manifest.files
    assert not [c for c in plain.read_json("bundle.json")["commands"] if "recipe" in c]


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


def test_an_arm_that_is_none_is_told_which_there_are(three: dict[str, Artifact]) -> None:
    with pytest.raises(ConfigError) as caught:
        bundles.arms_of(three["sparse"], {"dence": three["dense"]})
    assert str(caught.value) == (
        "arm 'dence': no arm has that name. Did you mean \"dense\"? There are: dense, fp16, sparse"
    )


@pytest.mark.usefixtures("wheels")
def test_a_model_without_its_source_beside_it(three: dict[str, Artifact], tmp_path: Path) -> None:
    source = artifact.parent(three["sparse"], "source").path
    source.rename(tmp_path / "away")
    with pytest.raises(ArtifactError, match=r"its source .* is not in"):
        pack(three, tmp_path / "out")
