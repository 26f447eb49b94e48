"""What engines show of the claims: their layer tables, and the log of the builder.

A build refuses an engine with INT8 layers unless its layer table holds what is claimed; it does not
judge one without (2:4 in float), so what that one's table counts is evidence at most. Where no
fused kernel takes an attention block, or no sparse kernel was the fastest, the claim does not hold
and nothing is broken: such a finding has an aside, and the verdict tells it as an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from edgekd.artifact import Artifact
from edgekd.report.collection import Collection
from edgekd.report.findings import Finding, Where, place, unseen
from edgekd.report.words import plural

_PROVES = "proves it or refuses"


def int8(run: Collection) -> Iterable[Finding]:
    """Whether the layer tables show every planned layer as an INT8 multiplication."""
    if run.compressed and not run.quantized:
        on = tuple(place(run, model) for model in run.compressed)
        yield unseen("no layer is planned in INT8; the layer table gives each reason", on)
        return
    engines = [engine for engine in run.tables if engine.results["planned_int8"]]
    for engine in engines:
        done, planned = engine.results["int8"], engine.results["planned_int8"]
        on = (place(run, engine, "model.plan"),)
        if done != planned:
            yield Finding("failed", on, f"Only {done} of {plural(planned, 'planned layer')} do.")
        else:
            yield _seen(engine, on, f"{done} of {plural(planned, 'planned layer')} do")
    yield from _elsewhere(run, engines, _PROVES)


def attention(run: Collection) -> Iterable[Finding]:
    """Whether the layer tables show one kernel for each attention block, and nothing beside."""
    models = run.compressed
    engines = [engine for engine in run.tables if run.arm(engine) != "fp16"]
    expected = any(model.results["attention_blocks"] for model in models)
    if models and not expected and not (engines and any(_left(model) for model in models)):
        for model in models:
            yield unseen(_none_expected(model), (place(run, model),))
        return
    for engine in engines:
        yield _attention(engine, (place(run, engine, "model.plan"),))
    # A build judges an engine with INT8 layers alone, and no build fuses what has no kernel.
    judged = not models or (run.quantized and not any(_left(model) for model in models))
    yield from _elsewhere(run, engines, _PROVES if judged else "shows which blocks are")


def _attention(engine: Artifact, on: tuple[Where, ...]) -> Finding:
    fused, blocks = engine.results["fused_attention"], engine.results["attention_blocks"]
    left, judged = _left(engine), bool(engine.results["planned_int8"])
    every = plural(blocks + len(left), "attention block")
    if fused > blocks:
        kernels = plural(fused, "fused attention kernel")
        text = f"{kernels}, yet {plural(blocks, 'block')} to be fused, {_table(engine)}."
        if judged:
            return Finding("failed", on, text)
        return Finding("evidence", on, text, f"{kernels} ran, more than the blocks recognised")
    if not blocks + len(left):
        return unseen(_none_expected(engine), on)
    if fused < blocks:
        return Finding("failed", on, f"Only {fused} of {every} are.")
    if left:
        some = f"Only {fused} of {every} are" if fused else f"None of {every} is"
        text = f"{some}, {_table(engine)}. Known at export: {_named(left)}."
        return Finding(
            "failed", on, text, f"{fused} of {every} are fused, no kernel takes the rest"
        )
    if not judged:
        text = (
            f"{fused} of {every} are, {_table(engine)}. Whether a softmax or a batched gemm is "
            "left was not checked: no layer is planned in INT8."
        )
        aside = f"{fused} of {every} are fused, what is left beside them was not checked"
        return Finding("evidence", on, text, aside)
    return _seen(engine, on, f"{fused} of {every} are")


def _left(found: Artifact) -> list[str]:
    """Of each attention block that no kernel fuses the reason, as export named it."""
    return list(found.results.get("attention_unfused") or [])


def _named(left: list[str]) -> str:
    """``2 are not fused: a head has 8 features, ...``, each reason once."""
    return "; ".join(
        f"{number} {'is' if number == 1 else 'are'} {why}"
        for why, number in sorted(Counter(left).items())
    )


def _none_expected(found: Artifact) -> str:
    """Why nothing is fused; only without a product of two activations is there no attention."""
    if left := _left(found):
        return f"of {plural(len(left), 'attention block')}, {_named(left)}"
    products = found.results.get("loose_products")
    if products == 0:
        return "the model has no attention block"
    meet = "" if products is None else f", yet {plural(products, 'product')} of two activations"
    return f"no attention block was recognised{meet}"


def _seen(engine: Artifact, on: tuple[Where, ...], text: str) -> Finding:
    state = engine.results["evidence"]
    return Finding("evidence" if state else "proven", on, f"{text}, {_table(engine)}.")


def _table(engine: Artifact) -> str:
    """Where a count was read, and what that is not."""
    text = f"read from the layer table of {engine.results['runtime']} {engine.config['version']}"
    if not engine.results["evidence"]:
        return text
    major, minor = engine.config["target"]["compute_capability"]
    return f"{text} for SM{major}{minor}: not TensorRT's engine, and never run"


def _elsewhere(run: Collection, engines: list[Artifact], building: str) -> Iterable[Finding]:
    """Why a layer table is missing: for each Bundle without an engine, or for the whole run."""
    seen = {run.target(engine) for engine in engines}
    away = [bundle for bundle in run.away if run.target(bundle) not in seen]
    for bundle in away:
        yield unseen(
            f"{bundle.config['reason']}; building there, from the Bundle, {building}",
            (place(run, bundle),),
        )
    if not engines and not away:
        blind = [engine for engine in run.of("Engine") if run.arm(engine) != "fp16"]
        where = tuple(place(run, engine) for engine in blind)
        yield unseen(
            "ONNX Runtime shows no layer table" if blind else "no engine of a student was built",
            where,
        )


def sparse_kernels(run: Collection) -> Iterable[Finding]:
    """Whether TensorRT chose sparse kernels, as its build log says."""
    here = [engine for engine in run.on_device if run.arm(engine) == "sparse"]
    for engine in here:
        yield _sparse(engine, (place(run, engine),))
    for bundle in run.away:
        stand_in = any(role.startswith("evidence") for role in bundle.manifest.parents)
        unnamed = "; tensorrt-rtx, which stands in, names no kernels" if stand_in else ""
        yield unseen(f"{bundle.config['reason']}{unnamed}", (place(run, bundle),))
    if not here and not run.away:
        yield unseen("nothing was built for a device with sparse kernels; ONNX Runtime has none")


def _sparse(engine: Artifact, on: tuple[Where, ...]) -> Finding:
    """Proven where all that is planned and all that is eligible took a sparse kernel."""
    said, planned = engine.results["sparse_kernels"], _planned_sparse(engine)
    eligible, chosen = said["eligible"], said["chosen"]
    if not planned:
        return unseen("no layer is planned for 2:4; the layer table gives each reason", on)
    if eligible is None or chosen is None:
        return unseen("the builder's log does not say which kernels are sparse", on)
    text = f"{chosen} of {plural(eligible, 'eligible layer')} took a sparse kernel, says the "
    text += "builder's log."
    if chosen == eligible >= planned:
        return Finding("proven", on, text)
    if eligible < planned:
        text += f" {plural(planned, 'layer')} of the engine are planned in 2:4."
    if eligible > chosen:
        text += " Elsewhere a dense kernel was timed as faster: an answer, and no defect."
    most = f"{plural(max(eligible, planned), 'layer')} in 2:4"
    if chosen:
        return Finding("evidence", on, text, f"{chosen} of {most} took a sparse kernel")
    timed = f"none of {most} took a sparse kernel, dense ones were timed as faster"
    return Finding("failed", on, text, timed if eligible >= planned else "")


def _planned_sparse(engine: Artifact) -> int:
    """Layers of an engine that hold what is planned in 2:4: it may run several rows as one."""
    table = engine.read_json("layers.json")
    ran = {row["node"]: row["engine_layer"] for row in table["ran"]}
    nodes = [node for row in table["planned"] if row["sparse"] for node in row["node"].split(" + ")]
    return len({ran.get(node) or node for node in nodes})
