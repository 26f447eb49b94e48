"""CUDA events around an engine's kernels, without touching what runs the engine.

`EngineRunner` copies inputs to the device, runs, copies outputs back, all on one stream, and waits.
An event after the last copy in and one before the first copy out therefore enclose the kernels and
nothing else: GPU time without transfers. The wall clock around the call has the transfers in it;
both are kept. Not run on a device: none was at hand.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from edgekd.artifact import Artifact
from edgekd.engine import cuda
from edgekd.engine.runner import EngineRunner
from edgekd.runner import Batched


class TimedCuda(cuda.Cuda):
    """A CUDA runtime that times what one runner's stream does between its copies.

    Attributes:
        gpu_ns: One entry a run of the engine, in ns.
    """

    def __init__(self, cudart: cuda.Cuda) -> None:
        """Time the calls that go through this object.

        Args:
            cudart: The loaded runtime.
        """
        super().__init__(cudart._library)
        self.gpu_ns: list[int] = []
        self._start, self._end = self.event_create(), self.event_create()
        self._ended = False

    def copy_to_device(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """Enqueue a copy; the last one's end is where the kernels start."""
        super().copy_to_device(address, array, stream)
        self.event_record(self._start, stream)

    def copy_to_host(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Enqueue a copy; the first one's start is where the kernels end."""
        if not self._ended:
            self.event_record(self._end, stream)
            self._ended = True
        super().copy_to_host(array, address, stream)

    def destroy_events(self) -> None:
        """Free the two events; the object is of no use afterwards."""
        self.event_destroy(self._start)
        self.event_destroy(self._end)

    def stream_synchronize(self, stream: int) -> None:
        """Wait, and note how long the kernels ran."""
        super().stream_synchronize(stream)
        self.gpu_ns.append(self.event_elapsed_ns(self._start, self._end))
        self._ended = False


def open_timed(engine: Artifact) -> tuple[Batched, list[int]]:
    """Open a TensorRT Engine as `edgekd.runner.open` does, with events.

    Args:
        engine: An Engine whose runtime is TensorRT.

    Returns:
        The runner, and the list its runs add their GPU time to, in ns.

    Raises:
        ToolchainError: CUDA or TensorRT is absent or cannot open the plan.
    """
    timed = TimedCuda(cuda.load())
    run = EngineRunner(engine.file("model.plan").read_bytes(), "tensorrt", timed)
    export = engine.config["export"]
    limits = int(export["batch_min"]), int(export["batch_max"])

    def close() -> None:
        run.close()
        timed.destroy_events()

    return Batched(run, run.dtypes, *limits, close=close), timed.gpu_ns
