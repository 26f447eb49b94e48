"""Run an engine: named arrays in, named arrays out.

One call copies the inputs to the device, runs the engine once and copies the outputs back, on one
stream. Device buffers are kept from call to call and grow when a larger batch comes. Nothing here
measures: a latency needs a repetition without copies, which is the bench stage's work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.engine import cuda, trt
from edgekd.errors import ConfigError, ToolchainError


class EngineRunner:
    """An open engine; `close` it when done, or open it with `contextlib.closing`."""

    def __init__(self, plan: bytes, runtime: trt.Runtime, cudart: cuda.Cuda | None = None) -> None:
        """Open a plan.

        Args:
            plan: The serialized engine.
            runtime: The runtime that built it.
            cudart: The CUDA runtime; None for the installed one.

        Raises:
            ToolchainError: There is no CUDA device, or this runtime cannot open the plan on it.
        """
        module = trt.load(runtime)
        self._cuda = cudart or cuda.load()
        if self._cuda.device_count() == 0:
            raise ToolchainError(
                "0 CUDA devices found, expected at least 1: an engine runs on the target only, "
                "use the ONNX model with ONNX Runtime here"
            )
        logger, self._log = trt.new_logger(module)
        self._engine = trt.deserialize(module, logger, self._log, plan)
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._dtypes = {n: np.dtype(module.nptype(self._engine.get_tensor_dtype(n))) for n in names}
        self._inputs = [
            n for n in names if self._engine.get_tensor_mode(n) == module.TensorIOMode.INPUT
        ]
        self._outputs = [n for n in names if n not in self._inputs]
        self._buffers: dict[str, tuple[int, int]] = {}  # address, size_bytes
        self._stream = self._cuda.stream_create()

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """Dtype of each input, by name."""
        return {name: self._dtypes[name] for name in self._inputs}

    def close(self) -> None:
        """Free the device buffers and the stream."""
        for address, _ in self._buffers.values():
            self._cuda.free(address)
        self._buffers.clear()
        if self._stream:
            self._cuda.stream_destroy(self._stream)
            self._stream = 0

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the engine once.

        Args:
            inputs: An array for each input, of the engine's dtype and a shape within its profile.

        Returns:
            An array for each output.

        Raises:
            ConfigError: A name, dtype or shape is not one the engine takes.
            ToolchainError: CUDA or TensorRT failed.
        """
        if sorted(inputs) != sorted(self._inputs):
            raise ConfigError(
                f"the engine was given inputs {sorted(inputs)}, expected {sorted(self._inputs)}"
            )
        # The host arrays must outlive the copies, which only the synchronize below waits for.
        sent = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in sent.items():
            self._send(name, array)
        results = {}
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            results[name] = np.empty(shape, self._dtypes[name])
            self._context.set_tensor_address(name, self._buffer(name, results[name].nbytes))
        if not self._context.execute_async_v3(self._stream):
            raise ToolchainError(
                f"TensorRT could not run the engine (last logged: {self._log[-1:]}): check the "
                "device with edgekd doctor"
            )
        for name, array in results.items():
            self._cuda.copy_to_host(array, self._buffers[name][0], self._stream)
        self._cuda.stream_synchronize(self._stream)
        return results

    def _send(self, name: str, array: npt.NDArray[Any]) -> None:
        if array.dtype != self._dtypes[name]:
            raise ConfigError(
                f'the input "{name}" has dtype {array.dtype}, expected {self._dtypes[name]}: '
                "convert it, the engine does not"
            )
        if not self._context.set_input_shape(name, array.shape):
            low, _, high = self._engine.get_tensor_profile_shape(name, 0)
            raise ConfigError(
                f'the input "{name}" has shape {array.shape}, expected one from {tuple(low)} to '
                f"{tuple(high)}: split the batch or build with a larger profile"
            )
        address = self._buffer(name, array.nbytes)
        self._cuda.copy_to_device(address, array, self._stream)
        self._context.set_tensor_address(name, address)

    def _buffer(self, name: str, size_bytes: int) -> int:
        address, held_bytes = self._buffers.get(name, (0, 0))
        if held_bytes < size_bytes:
            if address:
                self._cuda.free(self._buffers.pop(name)[0])
            address = self._cuda.malloc(size_bytes)
            self._buffers[name] = (address, size_bytes)
        return address
