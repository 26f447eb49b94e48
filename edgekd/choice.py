"""How a student is exported is decided by what an engine makes of it.

Nothing else can see a packed projection that runs in half precision or an attention that is not
fused. The ways are which of torch's exporters, and weights as integers or floats; the first whose
evidence holds is kept, integers first, as they are a quarter the size. What was tried is an
artifact of its own, since no graph can name those that were refused beside it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd import artifact, kinds, progress
from edgekd.artifact import Artifact, Question, Work, source_hash, versions
from edgekd.errors import ContractError, ToolchainError, UnsupportedError, install
from edgekd.recipe import Export, Recipe
from edgekd.target import Target, load

# (exporter, weights) in the order they are tried.
WAYS = (("torchscript", "int8"), ("torchscript", "float"), ("dynamo", "int8"), ("dynamo", "float"))
# Judges for devices that TensorRT-RTX has no builder for, such as Orin.
STAND_IN = "a100-sxm4-80gb-trt10.13"


@dataclass(frozen=True)
class Candidate:
    """One way of exporting a student: what its evidence counted, or the sentence that refused it.

    Attributes:
        exporter: ``torchscript`` or ``dynamo``.
        weights: ``int8`` or ``float``.
        model: Id of its OnnxModel; empty where the export itself failed.
        graph_bytes: Of ``trt.onnx`` and the weights beside it; None where the export failed.
        counted: Of the evidence's layers, by name; None where it was refused.
        refused: Why it was not kept; empty if it was.
    """

    exporter: str
    weights: str
    model: str = ""
    graph_bytes: int | None = None
    counted: dict[str, int] | None = None
    refused: str = ""


def judge(recipe: Recipe, targets: Sequence[Target]) -> Target | None:
    """The target whose evidence decides how a student is exported; None where none can be had.

    Args:
        recipe: Its export section leaves something to choose, or not.
        targets: Of the run.
    """
    from edgekd.engine.build import RTX_COMPUTE_CAPABILITIES

    devices = [target for target in targets if target.runtime == "tensorrt"]
    if "auto" not in (recipe.export.exporter, recipe.export.weights) or not devices:
        return None
    if importlib.util.find_spec("tensorrt_rtx") is None:
        progress.say(
            "export: tensorrt-rtx is not installed, so no engine shows which export it fuses: "
            f"torchscript and float weights are taken ({install('rtx')}, or set export.exporter "
            "and export.weights)"
        )
        return None
    known = [each for each in devices if each.compute_capability in RTX_COMPUTE_CAPABILITIES]
    return (known or [load(STAND_IN)])[0]


def choose(source: Artifact, settings: Export, judge: Target, out: Path) -> Artifact:
    """Try the ways of exporting a student until the engine of one is INT8 and fused as planned.

    Args:
        source: The Student.
        settings: What is ``auto`` in it is chosen.
        judge: The target whose evidence decides.
        out: Directory of artifacts.

    Returns:
        An ExportChoice: the ``exporter`` and ``weights`` that are kept, and ``tried``, a row for
        each `Candidate`, the kept one last.

    Raises:
        ContractError: None is; the sentence says of each what it lacks.
    """
    from edgekd.engine.build import SOURCES as BUILD_SOURCES
    from edgekd.export.model import SOURCES as EXPORT_SOURCES
    from edgekd.export.model import TOOLS

    question = Question(
        kinds.EXPORT_CHOICE,
        config={
            "arm": source.config["arm"],
            "name": source.config["name"],
            "export": settings.model_dump(mode="json"),
            "target": judge.as_json(),
        },
        parents={"source": source},
        sources={"edgekd": source_hash("edgekd.choice", *EXPORT_SOURCES, *BUILD_SOURCES)},
        tools=versions(*TOOLS, "onnxscript", "tensorrt-rtx"),
    )

    def write(work: Work) -> dict[str, Any]:
        tried = _first_proven(source, settings, judge, out)
        kept = {name: getattr(tried[-1], name) for name in ("exporter", "weights", "model")}
        choice = {**kept, "tried": [asdict(each) for each in tried]}
        text = json.dumps(choice, indent=1) + "\n"
        (work.scratch / "choice.json").write_text(text, encoding="utf-8")
        return choice

    return artifact.make(out, question, write)


def _first_proven(source: Artifact, settings: Export, judge: Target, out: Path) -> list[Candidate]:
    """All that was tried, up to the first way that is proven."""
    from edgekd.engine.build import evidence

    tried: list[Candidate] = []
    for exporter, weights in _ways(settings):
        graph: Artifact | None = None
        try:
            graph = _export(source, way(settings, exporter, weights), out)
            engine = evidence(graph, judge, out)
        except (ContractError, ToolchainError, UnsupportedError) as error:
            progress.say(f"export: {exporter} with {weights} weights is not kept: {error}")
            # Logs are named from here: equal questions have equal answers in any directory.
            refused = str(error).replace(f"{out}/", "")
            tried.append(Candidate(exporter, weights, *_graph(graph), refused=refused))
            continue
        names = ("int8", "planned_int8", "fused_attention", "attention_blocks")
        counted = {name: int(engine.results[name]) for name in names}
        tried.append(Candidate(exporter, weights, *_graph(graph), counted=counted))
        return tried
    reasons = "; ".join(f"{each.exporter} with {each.weights}: {each.refused}" for each in tried)
    raise ContractError(
        f"export: none of {len(tried)} ways gives an engine that is INT8 and fused as planned "
        f"({reasons}): take the layers named out of the plan, or set export.exporter and "
        "export.weights to build without this choice"
    )


def _graph(model: Artifact | None) -> tuple[str, int | None]:
    """Id of an OnnxModel and the bytes of its graph for TensorRT; of none, nothing."""
    if model is None:
        return "", None
    files = model.manifest.files
    return model.id, sum(files[n].bytes for n in ("trt.onnx", "trt.onnx.data") if n in files)


def way(settings: Export, exporter: str, weights: str) -> Export:
    """Export settings with the exporter and the weights that were chosen."""
    return settings.model_copy(update={"exporter": exporter, "weights": weights})


def _ways(settings: Export) -> list[tuple[str, str]]:
    """The ways a recipe leaves open."""
    asked = (settings.exporter, settings.weights)
    return [way for way in WAYS if all(a in ("auto", w) for a, w in zip(asked, way, strict=True))]


def _export(source: Artifact, settings: Export, out: Path) -> Artifact:
    from edgekd.export.model import export

    return export(source, out, settings)
