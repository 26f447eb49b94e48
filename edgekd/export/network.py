"""A Teacher or a Student as torch runs it, in the form in which it is exported.

Its weights are fake-quantized with the scales that ship, so what it answers is what training ended
with and what the graphs are held against.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from safetensors.torch import load_file

from edgekd import kinds, models
from edgekd.artifact import Artifact
from edgekd.data import IO, Arrays
from edgekd.eligible import LayerPlan
from edgekd.export import qdq_form
from edgekd.io_json import IO_JSON
from edgekd.weights import load_weights


class Network:
    """Runs a Teacher or a Student."""

    batch = models.BATCH

    def __init__(self, source: Artifact) -> None:
        """Build it and load its weights, masks and scales."""
        self._io = IO.model_validate(source.read_json(IO_JSON))
        self._model = models.build(source.read_json("model.json"))
        load_weights(self._model, source.file("model.safetensors"))
        if source.kind == kinds.STUDENT.name:
            files = ("model.safetensors", "quantizers.safetensors")
            stored = {name: t for file in files for name, t in load_file(source.file(file)).items()}
            rows = [LayerPlan(**row) for row in source.read_json("layers.json")]
            qdq_form.attach(self._model, rows, stored)
        self._model.eval()

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """Types of the inputs, by name."""
        return {tensor.name: np.dtype(tensor.dtype) for tensor in self._io.inputs}

    def __call__(self, inputs: Arrays) -> Arrays:
        """Outputs {name: float32[rows, ...]} of inputs {name: dtype[rows, ...]}."""
        return models.run(self._model, inputs, self._io)
