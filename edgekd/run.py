"""The whole chain, readable in one page: teacher, students, graphs, engines and Bundles, report.

Each arm of a recipe is one graph that a device compares: ``fp16`` is the teacher without
quantization, ``dense`` the INT8 student, ``sparse`` the 2:4 INT8 student with the same steps,
losses and seed. The main arm is the most compressed one. Whatever was answered before is taken from
cache, so the same command after a kill goes on where it stood.

How a student is exported (which of torch's exporters, weights as integers or floats) is decided by
what an engine makes of it, since nothing else can see a packed projection that runs in half
precision or an attention that is not fused: the first way whose evidence holds, integers first, as
they are a quarter the size. Where no engine can be built the safe way is taken, and said. What was
tried is an artifact of its own, since no graph can name those that were refused beside it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgekd import artifact, kinds, progress
from edgekd.artifact import Artifact, Question, Work, source_hash, versions
from edgekd.bench.bench import bench, newest
from edgekd.bench.scenario import Scenario
from edgekd.errors import ConfigError, ContractError, ToolchainError, UnsupportedError, install
from edgekd.evaluate import evaluate
from edgekd.recipe import Export, Recipe
from edgekd.target import Target, load

MAIN_FIRST = ("sparse", "dense", "fp16")
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


@dataclass(frozen=True)
class Result:
    """What a run made: every artifact in the order it was made, and the page that shows them."""

    artifacts: list[Artifact]
    report: Path


def run(
    recipe: Recipe, targets: Sequence[Target], out: Path, scenario: Scenario | None = None
) -> Result:
    """Compile a recipe for some targets.

    Args:
        recipe: What to compress and how.
        targets: Devices to build for; none means the graphs and the report alone.
        out: Directory of artifacts; ``report.html`` is written there.
        scenario: Measure the latency of the engines that can be built here; None measures none.

    Raises:
        EdgekdError: Whatever stage met a problem says so; finished artifacts stay.
    """
    from edgekd.distill.teacher import teach
    from edgekd.plan import refuse
    from edgekd.report import report

    if len(set(recipe.arms)) != len(recipe.arms):
        raise ConfigError(f"recipe {recipe.name}: arms are {recipe.arms}: name each arm once")
    refuse(recipe, targets)
    made: list[Artifact] = []
    with progress.stage("teacher") as done:
        made.append(teach(recipe, out))
        done(made[-1].path.name)
    graphs, more = _graphs(recipe, made[0], targets, out)
    made += more
    runnable = list(graphs.values())
    for target in targets:
        built = _build(recipe, graphs, target, out)
        made += built
        engines = [
            each for each in built if each.kind == "Engine" and not each.results.get("evidence")
        ]
        runnable += engines
        if engines and scenario is not None:
            made.append(_bench(engines[::-1], scenario, out))
    for model in runnable:
        with progress.stage(f"evaluate {model.config['arm']} {model.kind}") as done:
            made.append(evaluate(model, out))
            done(made[-1].path.name)
    with progress.stage("report") as done:
        page = report(made, out / "report.html")
        done(str(page))
    return Result(made, page)


def _graphs(
    recipe: Recipe, teacher: Artifact, targets: Sequence[Target], out: Path
) -> tuple[dict[str, Artifact], list[Artifact]]:
    """The OnnxModel of every arm, main first, and all that was made."""
    graphs: dict[str, Artifact] = {}
    made: list[Artifact] = []
    judge, settings = _judge(recipe, targets), recipe.export
    for arm in sorted(recipe.arms, key=MAIN_FIRST.index):
        if arm == "dense" and "sparse" in graphs and not graphs["sparse"].results["quantized"]:
            progress.say("dense: left out, no layer is planned for INT8")
            continue
        source = teacher if arm == "fp16" else _student(recipe, arm, out)
        with progress.stage(f"export {arm}") as done:
            # All arms are exported as the main one is: they are compared with each other.
            if not graphs and judge is not None and source is not teacher:
                made.append(choose(source, settings, judge, out))
                kept = made[-1].results
                settings = _way(settings, kept["exporter"], kept["weights"])
            graphs[arm] = _export(source, settings, out)
            done(graphs[arm].path.name)
        samples = artifact.parent(graphs[arm], "samples", kinds.SAMPLES)
        made += [*([] if source is teacher else [source]), samples, graphs[arm]]
    return graphs, made


def _build(
    recipe: Recipe, graphs: dict[str, Artifact], target: Target, out: Path
) -> list[Artifact]:
    """The Engine of every arm, or one Bundle of them all and the evidence made beside it."""
    from edgekd.engine.build import build

    main, *others = graphs
    with progress.stage(f"build for {target.name}") as done:
        arms = {name: graphs[name] for name in others}
        built = [build(graphs[main], target, out, arms=arms, recipe=recipe)]
        if built[0].kind == "Engine":
            built += [build(graphs[name], target, out) for name in others]
        done(built[0].path.name)
    return [*built, *_evidence(built[0])]


def _bench(engines: list[Artifact], scenario: Scenario, out: Path) -> Artifact:
    """Measure, or take the latest report of the same engines on this device, with its date."""
    with progress.stage(f"bench {scenario.name}") as done:
        measured = newest(engines, scenario, out)
        date = f" of {measured.config['started'][:10]}" if measured else ""
        measured = measured or bench(engines, scenario, out)
        done(measured.path.name + date)
    return measured


def _student(recipe: Recipe, arm: Literal["dense", "sparse"], out: Path) -> Artifact:
    from edgekd.distill.student import distill

    with progress.stage(f"distill {arm}") as done:
        student = distill(recipe, out, arm)
        done(student.path.name)
    return student


def _export(source: Artifact, settings: Export, out: Path) -> Artifact:
    from edgekd.export.model import export

    return export(source, out, settings)


def _judge(recipe: Recipe, targets: Sequence[Target]) -> Target | None:
    """The target whose evidence decides how a student is exported; None where none can be had."""
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
    from edgekd.engine import build
    from edgekd.export import model

    question = Question(
        kinds.EXPORT_CHOICE,
        config={
            "arm": source.config["arm"],
            "name": source.config["name"],
            "export": settings.model_dump(mode="json"),
            "target": judge.as_json(),
        },
        parents={"source": source},
        sources={"edgekd": source_hash("edgekd.run", *model.SOURCES, *build.SOURCES)},
        tools=versions(*model.TOOLS, "onnxscript", "tensorrt-rtx"),
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
            graph = _export(source, _way(settings, exporter, weights), out)
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


def _way(settings: Export, exporter: str, weights: str) -> Export:
    return settings.model_copy(update={"exporter": exporter, "weights": weights})


def _ways(settings: Export) -> list[tuple[str, str]]:
    """The ways a recipe leaves open."""
    asked = (settings.exporter, settings.weights)
    return [way for way in WAYS if all(a in ("auto", w) for a, w in zip(asked, way, strict=True))]


def _evidence(built: Artifact) -> list[Artifact]:
    """The engines that were built beside a Bundle to see what a builder makes of its graphs."""
    roles = [role for role in built.manifest.parents if role.startswith("evidence")]
    return [artifact.parent(built, role, kinds.ENGINE) for role in sorted(roles)]
