"""What is watched is told, and the network is left as it was, whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import data, models
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgekd.distill import watch
from edgekd.models import tensors


class Counting(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls, self.ran = 0, 0
        self.state: tuple[bool, bool] | None = None
        self._handle = model.register_forward_hook(self._seen)

    def _seen(self, module: nn.Module, *_: Any) -> None:
        self.state = module.training, torch.is_grad_enabled()
        self.ran += 1

    def remove(self) -> None:
        self._handle.remove()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_a_traced_pass_is_in_evaluation_mode_and_leaves_no_trace(training: bool) -> None:
    examples = data.vectors()
    model = models.mlp().train(training)
    frozen = next(model.children()).eval()
    one = tensors(examples.train.take(slice(0, 2))[0], model)
    trace = Counting(model)
    outputs = watch.traced(model, one, examples.io, trace)
    assert list(outputs) == [output.name for output in examples.io.outputs]
    assert trace.calls > 0
    assert (trace.ran, trace.state) == (1, (False, False))
    assert model.training is training
    assert frozen.training is False
    assert not model._forward_hooks
    calls = trace.calls
    model(one["x"])
    assert (trace.calls, trace.ran) == (calls, 1)


def test_so_does_one_that_fails() -> None:
    model = models.mlp().train()
    trace = Counting(model)
    with pytest.raises(RuntimeError):
        watch.traced(model, {"x": torch.zeros(1, 3)}, data.vectors().io, trace)
    assert model.training
    assert not model._forward_hooks


class ByName(nn.Module):
    """Its layer runs twice, once with its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.fc(input=self.fc(x)))


def test_every_run_of_a_layer_is_told_with_input_and_output() -> None:
    model, x = ByName(), torch.ones(2, 4)
    told: list[tuple[str, Tensor, Tensor]] = []

    def look(layer: str, module: nn.Module, given: Tensor, output: Tensor) -> None:
        assert module is model.get_submodule(layer)
        assert not torch.is_grad_enabled()
        told.append((layer, given, output))

    watch.runs(model, ["fc"], lambda net: net(x), look)
    (_, first, between), (_, second, last) = told
    assert first is x
    assert torch.equal(second, between)
    assert torch.equal(last, model.fc(model.fc(x)))
    assert not model.fc._forward_hooks


def test_hooks_come_off_where_a_run_fails() -> None:
    model = ByName()
    with pytest.raises(RuntimeError):
        watch.runs(model, ["fc", "other"], lambda net: net(torch.ones(2, 3)), lambda *_: None)
    assert not model.fc._forward_hooks
    assert not model.other._forward_hooks
