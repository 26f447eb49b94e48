"""Rows of the page's tables on what went in (configuration, data) and came out (artifacts)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.artifact import Artifact
from edgekd.report.collection import Collection, anchor
from edgekd.report.words import MINUS, count, duration, flatten, listed, size, value, when


@dataclass(frozen=True)
class Setting:
    """One key of the configuration: one value, or one for each arm where they differ."""

    name: str
    values: tuple[tuple[str, str], ...]


def recipe(run: Collection) -> list[tuple[str, list[Setting]]]:
    """The resolved configuration of everything that was trained or exported, section by section.

    A value is told with the arms it holds for where another arm has another value, or none.
    """
    found: dict[str, dict[str, list[str]]] = {}
    students = {run.name(student) for student in run.of("Student")}
    for made in run.artifacts:
        if made.kind not in ("Teacher", "Student", "OnnxModel"):
            continue
        who = run.name(made) or "teacher"
        for name, leaf in flatten(made.config).items():
            if name in ("arm", "name"):
                continue
            holders = found.setdefault(name, {}).setdefault(value(leaf), [])
            if who not in holders:
                holders.append(who)
    sections: dict[str, list[Setting]] = {}
    for name in sorted(found, key=lambda name: ("." in name, name)):
        if any(other.startswith(f"{name}.") for other in found):
            continue  # a section that one arm leaves out
        section, _, key = name.rpartition(".")
        some = {who for holders in found[name].values() for who in holders} < students
        sections.setdefault(section, []).append(Setting(key, _values(found[name], some)))
    return list(sections.items())


def _values(found: dict[str, list[str]], some: bool = False) -> tuple[tuple[str, str], ...]:
    if len(found) == 1 and not some:
        return (("", next(iter(found))),)
    return tuple((listed(holders), text) for text, holders in found.items())


def versions(run: Collection, field: str) -> list[Setting]:
    """Tools (``tools``) by version, or code and data (``sources``) by hash, each name once."""
    found: dict[str, dict[str, list[str]]] = {}
    for made in run.artifacts:
        # The sources of a Bundle are the wheels it carries; they are listed with it.
        if field == "sources" and made.kind == "Bundle":
            continue
        for name, version in getattr(made.manifest, field).items():
            holders = found.setdefault(name, {}).setdefault(version, [])
            if made.kind not in holders:
                holders.append(made.kind)
    return [Setting(name, _values(found[name])) for name in sorted(found)]


def interface(run: Collection) -> tuple[list[tuple[str, str, str, str, str]], list[Setting], str]:
    """``io.json``: inputs and outputs, how raw data becomes the inputs, and the labels."""
    holder = next((made for made in run.artifacts if "io.json" in made.manifest.files), None)
    if holder is None:
        return [], [], ""
    io = holder.read_json("io.json")
    rows = [
        (role, tensor["name"], tensor["dtype"], _shape(tensor["shape"]), _range(tensor["range"]))
        for role, tensors in (("input", io["inputs"]), ("output", io["outputs"]))
        for tensor in tensors
    ]
    steps = [Setting(name, (("", value(leaf)),)) for name, leaf in io["preprocess"].items()]
    labels = io["labels"]
    shown = ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
    return rows, steps, shown


def _shape(sizes: list[int | str]) -> str:
    return "[" + ", ".join(map(str, sizes)) + "]"


def _range(found: list[float] | None) -> str:
    return "any" if found is None else f"{found[0]:g} to {found[1]:g}".replace("-", MINUS)


@dataclass(frozen=True)
class TriedRow:
    """One way of exporting: what a builder made of it, or why it was not kept (others empty)."""

    way: str
    size: str
    int8: str
    fused: str
    outcome: str
    anchor: str


@dataclass(frozen=True)
class ChoiceTable:
    """The ways of exporting one student, in the order they were tried."""

    title: str
    rows: tuple[TriedRow, ...]


def choices(run: Collection) -> list[ChoiceTable]:
    """Every choice of an exporter, as its ExportChoice tells it."""
    return [
        ChoiceTable(
            f"{run.name(choice)}, decided by an engine for {run.target(choice)}",
            tuple(_tried_row(run, choice, row) for row in choice.results["tried"]),
        )
        for choice in run.of("ExportChoice")
    ]


def _tried_row(run: Collection, choice: Artifact, row: Mapping[str, Any]) -> TriedRow:
    counted = row["counted"]
    model = run.manifest(row["model"], choice)
    # Blocks that no kernel fuses are not counted as expected, yet they are blocks.
    left = (model.results.get("attention_unfused") if model else None) or []
    return TriedRow(
        way=f"{row['exporter']}, {row['weights']} weights",
        size="" if row["graph_bytes"] is None else size(row["graph_bytes"]),
        int8=f"{counted['int8']} of {counted['planned_int8']}" if counted else "",
        fused=f"{counted['fused_attention']} of {counted['attention_blocks'] + len(left)}"
        if counted
        else "",
        outcome=row["refused"] or "kept",
        anchor=anchor(row["model"]) if run.find(row["model"]) else "",
    )


@dataclass(frozen=True)
class ArtifactRow:
    """What came out: one artifact, and where it came from."""

    anchor: str
    kind: str
    arm: str
    about: str
    name: str
    id: str
    key: str
    size: str
    took: str
    made: str
    host: str
    machine: str
    git: str
    parents: tuple[tuple[str, str, str], ...]
    files: tuple[tuple[str, str, str], ...]


def artifact_rows(run: Collection) -> list[ArtifactRow]:
    """Every artifact in the chain's order."""
    return [_artifact_row(run, made) for made in run.artifacts]


def _artifact_row(run: Collection, made: Artifact) -> ArtifactRow:
    told = made.manifest.provenance
    files = made.manifest.files
    return ArtifactRow(
        anchor=anchor(made.id),
        kind=f"{made.kind} (evidence)" if made.results.get("evidence") is True else made.kind,
        arm=run.name(made),
        about=_about(run, made),
        name=made.path.name,
        id=made.id,
        key=made.manifest.key,
        size=size(sum(entry.bytes for entry in files.values())),
        took=duration(told["seconds"]) if "seconds" in told else "not told",
        made=when(told["time"]) if "time" in told else "not told",
        host=told.get("host", "not told"),
        machine=told.get("machine", "not told"),
        git=told.get("edgekd_git", "not told"),
        parents=tuple(
            (role, parent, anchor(parent) if run.find(parent) else "")
            for role, parent in made.manifest.parents.items()
        ),
        files=tuple((name, size(entry.bytes), entry.sha256) for name, entry in files.items()),
    )


def _about(run: Collection, made: Artifact) -> str:
    if made.kind == "AccuracyReport":
        return f"of {run.ran(made)}"
    if made.kind == "LatencyReport":
        return f"{made.config['scenario']['name']} on {run.target(made)}"
    return f"for {run.target(made)}" if "target" in made.config else ""


@dataclass(frozen=True)
class BundleView:
    """A Bundle and how to run it on its device."""

    anchor: str
    target: str
    name: str
    facts: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]


def bundle_views(run: Collection) -> list[BundleView]:
    """Every Bundle, its commands as ``bundle.json`` gives them."""
    return [_bundle_view(run, bundle) for bundle in run.bundles]


def _bundle_view(run: Collection, bundle: Artifact) -> BundleView:
    document, target = bundle.read_json("bundle.json"), bundle.config["target"]
    version = target.get("runtime_version", "")
    wheels = len(document["wheels"])
    missing, models = document["missing_wheels"], bundle.manifest.parents
    names = {
        arm: run.name_of(models.get(f"arm-{arm}", models.get("model", "")), arm, bundle)
        for arm in sorted(document["arms"])
    }
    facts = {
        "Device": target["device"],
        "Runtime": f"{target['runtime']} {version}".strip(),
        "The device's system brings": listed(document["system_packages"]) or "nothing",
        "Python": target["python"],
        "Arms": listed([f"{arm} ({names[arm]})" for arm in names]),
        "Wheels": f"{count(wheels)}, missing: {listed(missing)}" if missing else count(wheels),
        "Size": size(sum(entry.bytes for entry in bundle.manifest.files.values())),
    }
    return BundleView(
        anchor=anchor(bundle.id),
        target=run.target(bundle),
        name=bundle.path.name,
        facts=tuple(facts.items()),
        commands=tuple(document["commands"]),
    )
