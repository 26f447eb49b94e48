"""The Bundle: everything a device needs to build, run and judge a student by itself, offline.

An engine is built on the device that runs it: TensorRT's plans fit one version on one GPU. So
where the target is not at hand, the stage packs whole artifacts (they verify on the device as they
do here), the edgekd that made them, the wheels the device's system lacks, and the commands to
type.

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
from typing import Any

from edgekd import artifact, kinds
from edgekd.artifact import Artifact, Question, Work
from edgekd.engine import wheel
from edgekd.errors import ConfigError
from edgekd.target import Target, load, names


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
) -> Artifact:
    """Pack a Bundle.

    Args:
        model: The OnnxModel the Bundle is about, one of the arms.
        target: The device it is for.
        out: Directory of artifacts.
        arms: Name -> OnnxModel as `arms_of` gives them.
        evidence: Arm -> Engine built beside the Bundle; empty where none could be.
        reason: Why no Engine was built instead.

    Returns:
        The Bundle.

    Raises:
        ArtifactError: A parent is not beside the model.
    """
    packed = {
        name: Arm(each, artifact.parent(each, "samples", kinds.SAMPLES))
        for name, each in arms.items()
    }
    source = artifact.parent(model, "source", kinds.TEACHER, kinds.STUDENT)
    wheels = wheel.device_wheels(target)
    own_name, own = wheel.contents()
    files = {**wheels.files, own_name: own}
    main = str(model.config["arm"])
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    config = {"target": target.as_json(), "missing_wheels": list(wheels.missing), "reason": reason}
    parents = _parents(main, packed, evidence)
    question = Question(kinds.BUNDLE, config=config, parents=parents, sources=hashes)
    document = {
        "arms": {name: _arm_json(arm) for name, arm in packed.items()},
        "commands": _commands(question.name, target, packed),
        "edgekd": wheel.version(),
        "evidence": _evidence_json(target, evidence),
        "missing_wheels": list(wheels.missing),
        "model": main,
        "system_packages": target.system_packages,
        "target": target.name,
        "wheels": hashes,
    }
    documents = {"bundle": document, "target": target.as_json(), "recipe": source.config}

    def write(work: Work) -> dict[str, Any]:
        _fill(work.scratch, files, packed, documents)
        _write(work.scratch / "COMMANDS.md", _text(document, target).encode())
        results = ("arms", "evidence", "missing_wheels", "system_packages")
        return {name: document[name] for name in results}

    return artifact.make(out, question, write)


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
        ConfigError: Another model is given under the name of the model's own arm.
    """
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


def _commands(bundle: str, target: Target, arms: Mapping[str, Arm]) -> list[str]:
    """What to type on the device, in the folder that holds the Bundle."""
    system = " --system-site-packages" if target.system_packages else ""
    runtime = " onnxruntime" if target.runtime == "onnxruntime" else ""
    shipped = target.name in names() and load(target.name) == target
    named = target.name if shipped else f"{bundle}/target.json"
    lines = [
        f"python{target.python} -m venv{system} edgekd-venv",
        f"edgekd-venv/bin/pip install --no-index --find-links {bundle}/wheels edgekd{runtime}",
        f"edgekd-venv/bin/edgekd inspect {bundle}",
    ]
    for name, arm in arms.items():
        out = f"out/{name}"
        place = f"{bundle}/artifacts/{arm.model.path.name}"
        samples = f"{bundle}/artifacts/{arm.samples.path.name}"
        lines += [
            f"edgekd-venv/bin/edgekd build {place} --target {named} --out {out}",
            f"edgekd-venv/bin/edgekd evaluate {out}/engine-* --samples {samples} --out {out}",
        ]
    order = [name for name in ("fp16", "dense", "sparse") if name in arms]  # ratios to the first
    engines = " ".join(f"out/{name}/engine-*" for name in order)
    return [*lines, f"edgekd-venv/bin/edgekd bench {engines} --samples {samples} --out out/bench"]


def _text(document: Mapping[str, Any], target: Target) -> str:
    """``COMMANDS.md``: the commands, and what a person must know before typing them."""
    lines = [
        f"# On {target.name}",
        "",
        "Nothing here needs a network. Copy this directory to the device whole, and type the",
        "commands in the folder that holds it: what they make lies beside the Bundle, which stays",
        "as it is.",
        "",
    ]
    for package in target.system_packages:
        version = f" {target.runtime_version}" if package == target.runtime else ""
        lines += [
            f"The device's system must bring the Python package `{package}`{version}; check with",
            f'`python{target.python} -c "import {package}; print({package}.__version__)"`.',
            "",
        ]
    if document["missing_wheels"]:
        lines += [
            f"Not in `wheels/`, as no index had them: {', '.join(document['missing_wheels'])}.",
            f"Download them for Python {target.python} into a folder of their own and add",
            "`--find-links FOLDER` to the second command.",
            "",
        ]
    lines += ["```sh", *document["commands"], "```", ""]
    lines += [
        "`out/<arm>` then holds one Engine and one AccuracyReport for each arm, `out/bench` the",
        "LatencyReport in which they were measured side by side.",
        "",
    ]
    return "\n".join(lines)
