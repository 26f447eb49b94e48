"""The page: one HTML file that needs nothing else, made from finished artifacts alone.

Nothing is run again and no heavy library is loaded. The page holds no script, asks for nothing
from any network (its own security policy forbids it) and carries no date but those its artifacts
tell, so equal artifacts make equal bytes. Every name in it may come from somebody else's model: the
template escapes all of them, and styles and drawings take numbers only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact, replace_file
from edgekd.durable import disk_errors
from edgekd.errors import ArtifactError
from edgekd.report import claims, curve, gate, latency, layers, summary, tables
from edgekd.report.accuracy import accuracy
from edgekd.report.collection import Collection
from edgekd.report.words import NO_DIFFERENCE, NOT_MEASURED


def report(artifacts: Sequence[Artifact], path: Path) -> Path:
    """Write the page about the artifacts of a run.

    Args:
        artifacts: Any of them, in any order; one given twice counts once.
        path: The HTML file, replaced whole; its directory is made when absent.

    Returns:
        The path.

    Raises:
        ArtifactError: No artifact is given, or the file could not be written.
    """
    if not artifacts:
        raise ArtifactError(f"{path}: 0 artifacts were given, expected at least 1 to report on")
    text = render(Collection(artifacts))
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda place: place.write_text(text, encoding="utf-8"))
    return path


def render(run: Collection) -> str:
    """The page's text."""
    import jinja2  # here, so that `edgekd inspect` needs none

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgekd", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = resources.files("edgekd.report").joinpath("style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(style=style, **_facts(run))


def _facts(run: Collection) -> dict[str, Any]:
    found = claims.claims(run)
    timed, notes = latency.sections(run)
    inputs, preprocess, labels = tables.interface(run)
    return {
        "title": run.title,
        "headline": summary.headline(run, found),
        "verdict": summary.verdict(run, found),
        "glance": summary.glance(run),
        "in_words": (NOT_MEASURED, NO_DIFFERENCE),
        "claims": found,
        "tally": Counter(finding.state for claim in found for finding in claim.findings),
        "accuracy": accuracy(run),
        "shares": layers.shares(run),
        "permutations": layers.permutations(run),
        "layer_tables": layers.layer_tables(run),
        "sizes": layers.sizes(run),
        "losses": curve.plots(run),
        "latencies": timed,
        "latency_notes": notes,
        "untimed": latency.untimed(run),
        "gates": gate.gates(run),
        "gate_states": gate.STATES,
        "recipe": tables.recipe(run),
        "inputs": inputs,
        "preprocess": preprocess,
        "labels": labels,
        "tools": tables.versions(run, "tools"),
        "sources": tables.versions(run, "sources"),
        "choices": tables.choices(run),
        "artifacts": tables.artifact_rows(run),
        "bundles": tables.bundle_views(run),
    }
