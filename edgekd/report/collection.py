"""The artifacts of a run, deduplicated and put in order, and the questions the page asks of them.

Any subset will do: a Teacher alone is a run that has just begun. The order on the page is that of
the chain and never that of the arguments, so the same artifacts make the same page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from edgekd import kinds
from edgekd.artifact import Artifact, Manifest, read_manifest
from edgekd.eligible import LayerPlan
from edgekd.errors import ArtifactError
from edgekd.report.words import listed

ARMS = ("sparse", "dense", "fp16")
ARM_NAMES = {"sparse": "2:4 INT8", "dense": "dense INT8", "fp16": "float teacher"}
_CHAIN = (
    kinds.TEACHER,
    kinds.STUDENT,
    kinds.SAMPLES,
    kinds.EXPORT_CHOICE,
    kinds.ONNX_MODEL,
    kinds.ENGINE,
    kinds.BUNDLE,
    kinds.ACCURACY_REPORT,
    kinds.LATENCY_REPORT,
    kinds.VERDICT,
)
_PLACE = {kind.name: place for place, kind in enumerate(_CHAIN)}


class Collection:
    """Artifacts by kind and by what they were made from."""

    def __init__(self, artifacts: Sequence[Artifact]) -> None:
        """Put artifacts in the chain's order, each once.

        Args:
            artifacts: Any of a run's, in any order. A graph that a choice among them refused, and
                that nothing was made of, is told of with the choice alone.
        """
        refused = _refused(artifacts)
        self._by_id = {found.id: found for found in artifacts if found.id not in refused}
        self._read: dict[str, Manifest | None] = {}  # of what was not given
        self.artifacts = sorted(self._by_id.values(), key=self._order)

    def of(self, kind: str) -> list[Artifact]:
        """All of a kind, in the page's order."""
        return [found for found in self.artifacts if found.kind == kind]

    def find(self, artifact_id: str) -> Artifact | None:
        """The artifact of that id, None where it is not among these."""
        return self._by_id.get(artifact_id)

    def manifest(self, artifact_id: str, beside: Artifact) -> Manifest | None:
        """The manifest of that id, of these or of what lies beside one of these; None elsewhere."""
        if found := self.find(artifact_id):
            return found.manifest
        if artifact_id not in self._read:
            self._read[artifact_id] = _read_beside(artifact_id, beside) if artifact_id else None
        return self._read[artifact_id]

    @property
    def title(self) -> str:
        """Name of the recipe; several where artifacts of several recipes were given."""
        names = {str(found.config["name"]) for found in self.artifacts if "name" in found.config}
        return ", ".join(sorted(names)) or "edgekd"

    @property
    def models(self) -> list[Artifact]:
        """OnnxModels, the most compressed arm first: it is the one the page is about."""
        return self.of("OnnxModel")

    @property
    def compressed(self) -> list[Artifact]:
        """OnnxModels of students; not all have INT8 layers."""
        return [model for model in self.models if self.arm(model) != "fp16"]

    @property
    def quantized(self) -> list[Artifact]:
        """OnnxModels with INT8 layers."""
        return [model for model in self.models if model.results["quantized"]]

    @property
    def bundles(self) -> list[Artifact]:
        """Bundles by target."""
        return self.of("Bundle")

    @cached_property
    def tables(self) -> list[Artifact]:
        """Engines that show what they run."""
        return [engine for engine in self.of("Engine") if self.engine_layers(engine)]

    @property
    def on_device(self) -> list[Artifact]:
        """TensorRT's own Engines, each built on the device that runs it."""
        return [e for e in self.of("Engine") if e.results["runtime"] == "tensorrt"]

    @property
    def away(self) -> list[Artifact]:
        """Bundles for a device that no Engine here was built on."""
        here = {self.target(engine) for engine in self.on_device}
        return [
            bundle
            for bundle in self.bundles
            if bundle.config["target"]["runtime"] == "tensorrt" and self.target(bundle) not in here
        ]

    def arm(self, found: Artifact) -> str:
        """Arm of an artifact, empty where it belongs to none (a Teacher) or to all (a Bundle)."""
        if found.kind == "AccuracyReport":
            return str(found.results["model"]["arm"])
        if found.kind == "Samples":
            source = self._by_id.get(found.manifest.parents.get("source", ""))
            return "" if source is None else str(source.config.get("arm", "fp16"))
        return str(found.config.get("arm", ""))

    def name(self, found: Artifact) -> str:
        """What an artifact's arm is, in words; empty where it belongs to none or to all."""
        return self.name_of(found.id, self.arm(found), found)

    def name_of(self, artifact_id: str, arm: str, beside: Artifact) -> str:
        """The same by id: what was planned is told by the graph or the student it was made of."""
        manifest = self.manifest(artifact_id, beside) if arm in ("sparse", "dense") else None
        while manifest and "layers_int8" not in manifest.results:
            up = (manifest.parents.get(role, "") for role in ("engine", "model", "source"))
            manifest = self.manifest(next(filter(None, up), ""), beside)
        return arm_name(arm, manifest.results if manifest else {})

    def plan(self, model: Artifact) -> list[LayerPlan]:
        """Rows of ``layers.json`` of a Student or an OnnxModel."""
        return [LayerPlan(**row) for row in model.read_json("layers.json")]

    def engine_layers(self, engine: Artifact) -> list[dict[str, Any]]:
        """An Engine's own layer table, empty where its runtime shows none."""
        layers: list[dict[str, Any]] = engine.read_json("layers.json")["engine_layers"]
        return layers

    def ran(self, report: Artifact) -> str:
        """What an AccuracyReport ran: a file, or an Engine and the target it is for."""
        model = report.results["model"]
        if model["kind"] == "OnnxModel":
            return "ort.onnx"
        engine = self.find(model["id"])
        return f"Engine for {self.target(engine)}" if engine else f"Engine of {model['runtime']}"

    def target(self, found: Artifact) -> str:
        """Target of an Engine or a Bundle."""
        return str(found.config["target"]["name"])

    def _order(self, found: Artifact) -> tuple[int, int, str, str, str]:
        arm = self.arm(found)
        report = found.kind == "AccuracyReport"
        return (
            _PLACE.get(found.kind, len(_PLACE)),
            ARMS.index(arm) if arm in ARMS else len(ARMS),
            found.config.get("target", {}).get("name", ""),
            # The file before the Engine made of it, as in the chain.
            str(_PLACE[found.results["model"]["kind"]] if report else ""),
            found.id,
        )


def _refused(artifacts: Sequence[Artifact]) -> set[str]:
    """Ids of graphs that lost an ExportChoice, and that no artifact was made of."""
    choices = [found.results for found in artifacts if found.kind == kinds.EXPORT_CHOICE.name]
    tried = {row["model"] for choice in choices for row in choice["tried"]}
    kept = {choice["model"] for choice in choices}
    return tried - kept - {each for found in artifacts for each in found.manifest.parents.values()}


def arm_name(arm: str, planned: Mapping[str, Any]) -> str:
    """What an arm is, in words: ``2:4 INT8`` for ``sparse``, unless its plan is something else.

    A Student of fewer than 8 bits, which no engine is made of, is named by its widths.

    Args:
        arm: Its name in a recipe.
        planned: Results of its Student or OnnxModel; empty where they are not known.
    """
    if below := planned.get("layers_by_bits"):
        widths = listed([*below, *(["8"] if planned.get("layers_int8") else [])])
        return f"{'2:4' if planned.get('layers_sparse') else 'dense'}, weights of {widths} bits"
    if arm == "sparse" and not planned.get("layers_int8", 1):
        return "2:4 float"  # float16 in trt.onnx, float32 in ort.onnx
    if arm == "sparse" and not planned.get("layers_sparse", 1):
        return "INT8 without 2:4"
    return ARM_NAMES.get(arm, arm)


def _read_beside(artifact_id: str, beside: Artifact) -> Manifest | None:
    for path in sorted(beside.path.parent.iterdir()):
        try:
            manifest = read_manifest(path)
        except ArtifactError:  # somebody else's directory
            continue
        if manifest.id == artifact_id:
            return manifest
    return None


def spoken(name: str) -> str:
    """An arm's name inside a sentence: ``the float teacher``, but ``2:4 INT8``."""
    return f"the {name}" if name.startswith(ARM_NAMES["fp16"]) else name


def anchor(artifact_id: str) -> str:
    """Where on the page an artifact is described."""
    return f"artifact-{artifact_id[:16]}"
