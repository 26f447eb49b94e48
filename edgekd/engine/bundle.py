"""The Bundle: everything a device needs to build, run and judge a student by itself, offline.

An engine is built on the device that runs it: TensorRT's plans fit one version on one GPU. So
where the target is not at hand, the stage packs whole artifacts (they verify on the device as they
do here), the edgekd that made them, the wheels the device's system lacks, the recipe with its
budgets, and the commands to type.

Equal inputs give an equal Bundle. For that the copied manifests lose their provenance (host,
time), which is in no hash, and the wheels are a part of the question: a Bundle made while the
index could not be reached is another Bundle, and says what it lacks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from edgekd import artifact, kinds
from edgekd.artifact import Artifact, Question, Work
from edgekd.engine import commands, wheel
from edgekd.errors import ConfigError, names_that_exist
from edgekd.recipe import Arm as ArmName
from edgekd.recipe import Recipe
from edgekd.target import Target

_RESULTS = ("arms", "evidence", "missing_wheels", "system_packages")


@dataclass(frozen=True)
class Arm:
    """One graph of the comparison: the model as exported, and the Samples it was exported with."""

    model: Artifact
    samples: Artifact


def make(
    model: Artifact,
    target: Target,
    out: Path,
    *,
    arms: Mapping[str, Artifact],
    evidence: Mapping[str, Artifact],
    reason: str,
    recipe: Recipe | None = None,
) -> Artifact:
    """Pack a Bundle.

    Args:
        model: The OnnxModel the Bundle is about, one of the arms.
        target: The device it is for.
        out: Directory of artifacts.
        arms: Name -> OnnxModel as `arms_of` gives them.
        evidence: Arm -> Engine built beside the Bundle; empty where none could be.
        reason: Why no Engine was built instead.
        recipe: Travels as ``recipe.json``; with budgets in its ``[gate]`` the commands judge by
            them. Without one there is a baseline to compare with, and no budget.

    Returns:
        The Bundle.

    Raises:
        ArtifactError: A parent is not beside the model.
    """
    packed = {name: _with_samples(each) for name, each in arms.items()}
    source = artifact.parent(model, "source", kinds.TEACHER, kinds.STUDENT)
    main = str(model.config["arm"])
    files, missing = _wheels(target)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    documents = {"target": target.as_json(), **({"recipe": recipe.as_json()} if recipe else {})}
    config = {**documents, "missing_wheels": missing, "reason": reason}
    question = Question(kinds.BUNDLE, config, _parents(main, packed, evidence), hashes)
    places = {name: _arm_json(arm) for name, arm in packed.items()}
    script = commands.write(question.name, target, places, main, recipe)
    document = {
        "arms": places,
        **script.as_json(),
        "edgekd": wheel.version(),
        "evidence": _evidence_json(target, evidence),
        "missing_wheels": missing,
        "model": main,
        "source": {"kind": source.kind, "id": source.id, "config": source.config},
        "system_packages": target.system_packages,
        "target": target.name,
        "wheels": hashes,
    }
    text = commands.text(script, target, main, missing)

    def write(work: Work) -> dict[str, Any]:
        _fill(work.scratch, files, packed, {**documents, "bundle": document})
        _write(work.scratch / "COMMANDS.md", text.encode())
        return {name: document[name] for name in _RESULTS}

    return artifact.make(out, question, write)


def _with_samples(model: Artifact) -> Arm:
    return Arm(model, artifact.parent(model, "samples", kinds.SAMPLES))


def _wheels(target: Target) -> tuple[dict[str, bytes], list[str]]:
    """All wheels by file name, edgekd's own among them, and what no index had."""
    found = wheel.device_wheels(target)
    own_name, own = wheel.contents()
    return {**found.files, own_name: own}, list(found.missing)


def _parents(
    main: str, arms: Mapping[str, Arm], evidence: Mapping[str, Artifact]
) -> dict[str, Artifact]:
    """The main arm's model, samples and evidence by role; those of other arms with their name."""
    parents = {"model": arms[main].model, "samples": arms[main].samples}
    parents |= {f"arm-{name}": arm.model for name, arm in arms.items() if name != main}
    for name, engine in evidence.items():
        parents["evidence" if name == main else f"evidence-{name}"] = engine
    return parents


def _fill(
    scratch: Path,
    wheels: Mapping[str, bytes],
    arms: Mapping[str, Arm],
    documents: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the wheels, the arms' artifacts whole, and the documents."""
    for name, data in wheels.items():
        _write(scratch / "wheels" / name, data)
    for arm in arms.values():
        _copy(arm.model, scratch / "artifacts")
        _copy(arm.samples, scratch / "artifacts")
    for name, content in documents.items():
        _write(scratch / f"{name}.json", (json.dumps(content, indent=1) + "\n").encode())


def arms_of(model: Artifact, arms: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Every arm by name, the model's own among them.

    Args:
        model: The OnnxModel a Bundle is about.
        arms: Name (fp16, dense, sparse) -> OnnxModel.

    Raises:
        ConfigError: A name is none of an arm, or the model's own is given to another model.
    """
    known = get_args(ArmName)
    for name in arms:
        if name not in known:
            raise ConfigError(
                f"arm {name!r}: no arm has that name. {names_that_exist(name, known)}"
            )
    main = str(model.config["arm"])
    if main in arms and arms[main].id != model.id:
        raise ConfigError(
            f"arm {main!r} is given as {arms[main].path.name}, but the model {model.path.name} is "
            f"that arm too: give one of them"
        )
    return dict(sorted({**arms, main: model}.items()))


def _arm_json(arm: Arm) -> dict[str, str]:
    return {
        "directory": f"artifacts/{arm.model.path.name}",
        "id": arm.model.id,
        "samples": f"artifacts/{arm.samples.path.name}",
        "samples_id": arm.samples.id,
    }


def _evidence_json(target: Target, evidence: Mapping[str, Artifact]) -> dict[str, str]:
    if evidence:
        return {name: engine.id for name, engine in evidence.items()}
    if target.compute_capability is None:
        return {"not built": f"{target.name} has no CUDA device"}
    number = "".join(str(part) for part in target.compute_capability)
    return {"not built": f"tensorrt-rtx has no SM{number}"}


def _copy(source: Artifact, folder: Path) -> None:
    """Copy a whole artifact; its manifest without provenance, which no hash covers."""
    place = folder / source.path.name
    if place.exists():  # arms may share their Samples
        return
    for name in source.manifest.files:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.file(name), place / name)
    body = {**source.manifest.model_dump(by_alias=True), "provenance": {}}
    text = json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n"
    _write(place / artifact.MANIFEST, text.encode())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
