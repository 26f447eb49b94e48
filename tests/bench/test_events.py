"""Where CUDA events are recorded, on the stub libcudart that tests/engine has; no GPU was at hand.

The stub's clock goes on by 0.25 ms with every event that is recorded, so an elapsed time says which
events it lies between.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgekd.bench import events
from edgekd.engine import cuda
from edgekd.engine.runner import EngineRunner

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import cudart as stand_in

ONE_EVENT_NS = 250_000


@pytest.fixture(scope="module")
def cudart(tmp_path_factory: pytest.TempPathFactory) -> cuda.Cuda:
    return cuda.load(stand_in.compile_stub(tmp_path_factory.mktemp("cudart")))


def test_gpu_time_starts_after_the_last_copy_in_and_ends_before_the_first_copy_out(
    cudart: cuda.Cuda,
) -> None:
    timed = events.TimedCuda(cudart)
    stream = timed.stream_create()
    arrays = [np.zeros(4, np.float32) for _ in range(4)]
    addresses = [timed.malloc(16) for _ in arrays]
    for _ in range(2):
        for address, array in zip(addresses[:2], arrays[:2], strict=True):
            timed.copy_to_device(address, array, stream)
        for address, array in zip(addresses[2:], arrays[2:], strict=True):
            timed.copy_to_host(array, address, stream)
        timed.stream_synchronize(stream)
    # Were the first input's event kept, or the last output's, it would be twice as long.
    assert timed.gpu_ns == [ONE_EVENT_NS, ONE_EVENT_NS]
    for address in addresses:
        timed.free(address)
    timed.stream_destroy(stream)
    timed.destroy_events()


def test_a_runner_with_events_answers_as_without_and_frees_everything(
    cudart: cuda.Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in.tensorrt())
    stub = stand_in.with_one_device(cudart._library._name)
    live = stub.stub_live()
    timed = events.TimedCuda(cudart)
    run = EngineRunner(b"plan", "tensorrt", timed)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    for _ in range(3):
        np.testing.assert_array_equal(run({"x": x})["y"], 2 * x)
    assert timed.gpu_ns == [ONE_EVENT_NS] * 3
    run.close()
    timed.destroy_events()
    assert stub.stub_live() == live
