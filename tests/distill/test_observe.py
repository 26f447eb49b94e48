"""Histograms and what each method clips, against slow references and Model Optimizer's own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import data, models
from tiny.recipes import plan
from torch import Tensor, nn

from edgekd import quant
from edgekd.distill import observe, quantize
from edgekd.distill.calibrate import calibration
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError
from edgekd.models import run
from edgekd.quant import scale_from_amax
from edgekd.recipe import Quantization

Counts = NDArray[np.int64]
BINS = 400  # theirs is a loop in Python
SHAPES = ("normal", "laplace", "outliers", "relu")


@pytest.fixture(autouse=True)
def few_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "BINS", BINS)


def histogram(shape: str) -> tuple[Counts, NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    x = rng.laplace(size=20_011) if shape == "laplace" else rng.standard_normal(20_011)
    if shape == "outliers":
        x[:3] *= 12
    if shape == "relu":
        x = np.maximum(x, 0)
    counts, edges = np.histogram(np.abs(x), bins=BINS, range=(0, np.abs(x).max()))
    return counts.astype(np.int64), edges


def theirs(method: str, counts: Counts, edges: NDArray[np.float64]) -> float:
    """The edge that Model Optimizer's calibrator takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from modelopt.torch.quantization.calib import HistogramCalibrator
    calibrator: Any = HistogramCalibrator(torch_hist=False)
    calibrator._calib_hist, calibrator._calib_bin_edges = counts.copy(), edges
    return float(calibrator.compute_amax(method)) / edges[1]


def error(edge: float, counts: Counts) -> float:
    """Squared error of a quantizer that clips at an edge; a slow loop over the bins."""
    total, step = 0.0, edge / 127
    for bin_, count in enumerate(counts):
        value = bin_ + 0.5
        total += count * (min(round(value / step), 127) * step - value) ** 2
    return total


class TestClipped:
    def test_percentile_by_hand(self) -> None:
        counts = np.zeros(BINS, dtype=np.int64)
        counts[[3, 10, 399]] = 9_000, 999, 1  # 99.99% lie in bin 10 or below
        assert observe.clipped("percentile", counts) == 11
        counts[399] = 2
        assert observe.clipped("percentile", counts) == 400

    @pytest.mark.parametrize("shape", SHAPES)
    def test_percentile_is_the_bin_above_theirs(self, shape: str) -> None:
        counts, edges = histogram(shape)
        edge = observe.clipped("percentile", counts)
        assert edge - 1 == pytest.approx(theirs("percentile", counts, edges))
        assert counts[edge:].sum() <= 1e-4 * counts.sum() < counts[edge - 1 :].sum()

    @pytest.mark.parametrize("shape", SHAPES)
    def test_entropy_is_theirs(self, shape: str) -> None:
        counts, edges = histogram(shape)
        found = observe.clipped("entropy", counts)
        assert found == pytest.approx(theirs("entropy", counts, edges))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_mse_is_a_slow_searchs(self, shape: str) -> None:
        counts, _ = histogram(shape)
        tried = {edge: error(edge, counts) for edge in range(128, BINS + 1)}
        assert observe.clipped("mse", counts) == min(tried, key=lambda edge: (tried[edge], -edge))

    def test_their_mse_is_not_taken_because_it_clips_nearly_everything(self) -> None:
        """Version 0.47 passes the bits where the quantizer expects a bias."""
        counts, edges = histogram("normal")
        chosen = theirs("mse", counts, edges)
        assert chosen == pytest.approx(128.5)  # the first it tries
        assert error(chosen, counts) > 100 * error(observe.clipped("mse", counts), counts)

    def test_one_value_alone_is_not_clipped(self) -> None:
        counts = np.zeros(BINS, dtype=np.int64)
        counts[-1] = 5
        assert observe.clipped("percentile", counts) == BINS
        assert observe.clipped("entropy", counts) == BINS
        assert error(observe.clipped("mse", counts), counts) <= error(BINS, counts)

    def test_no_clipping_is_max_calibrations_scale(self) -> None:
        scale = torch.tensor(float(scale_from_amax(3.7)))
        assert torch.equal(observe.scale_at(BINS, scale), scale)
        assert observe.scale_at(BINS // 2, scale) == scale_from_amax(float(scale) * 127 / 2)


def feed(size: int) -> observe.Run:
    """The calibration data in batches of some size."""
    examples = data.vectors()

    def passes(model: nn.Module) -> None:
        for start in range(0, 64, size):
            run(model, examples.train.take(np.arange(start, start + size))[0], examples.io)

    return passes


class TestHistograms:
    def test_counts_every_value_once_whatever_the_batches(self) -> None:
        torch.manual_seed(0)
        model = models.mlp().eval()
        x = data.vectors().train.take(np.arange(64))[0]["x"]
        scales = {"stem": torch.tensor(float(scale_from_amax(np.abs(x).max())))}
        found = [observe.histograms(model, scales, feed(size))["stem"] for size in (64, 16, 1)]
        assert all((each == found[0]).all() for each in found)
        assert found[0].sum() == x.size
        width = float(scales["stem"]) * 127 / BINS
        for bin_ in (0, 7, 100, 399):
            inside = (np.abs(x) >= bin_ * width) & (np.abs(x) < (bin_ + 1) * width)
            assert abs(int(found[0][bin_]) - int(inside.sum())) <= 1  # an edge rounds either way

    def test_theirs_depends_on_the_batches(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from modelopt.torch.quantization.calib import HistogramCalibrator
        x = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
        found = set()
        for size in (64, 16, 4):
            calibrator: Any = HistogramCalibrator()
            for batch in x.split(size):
                calibrator.collect(batch)
            found.add(float(calibrator.compute_amax("percentile")))
        assert len(found) == 3


class Branching(nn.Module):
    """Beside a layer that always runs, one of two that read the same tensor, by the data."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.always, self.early = (nn.Linear(32, 32) for _ in range(3))
        self.other = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.late if float(x[0, 0]) > 0 else self.early
        return self.other(branch(x) + self.always(x))


def branching(batches: Sequence[str | None]) -> observe.Run:
    """Batches that each take one of the branches; no batch for None."""
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))

    def passes(model: nn.Module) -> None:
        with torch.no_grad():
            for number, each in enumerate(batches):
                given = x + number
                given[0, 0] = 1.0 if each == "late" else -1.0
                if each is not None:
                    model(given)

    return passes


def row(layer: str, module: nn.Linear) -> LayerPlan:
    n, k = module.weight.shape
    return LayerPlan(layer, "Linear", n, k, n * k, True, "", False, "")


class TestBest:
    def test_errors_are_those_of_the_shipped_layer(self) -> None:
        torch.manual_seed(0)
        model = models.mlp().eval()
        rows = plan(model)
        candidates = {"stem": {"max": torch.tensor(0.03125), "mse": torch.tensor(0.25)}}
        found = observe.errors(model, rows, candidates, feed(16))["stem"]
        x = data.vectors().train.take(np.arange(64))[0]["x"]
        weight, bias = (t.detach().numpy() for t in (model.stem.weight, model.stem.bias))
        scale = quant.scale_from_amax(np.abs(weight).max(axis=1))
        shipped = quant.snap(weight, scale, axis=0)
        for method, s in candidates["stem"].items():
            wanted = (quant.snap(x, float(s)) @ shipped.T + bias - (x @ weight.T + bias)) ** 2
            assert found[method] == pytest.approx(float(wanted.mean()), rel=1e-4)
        assert found["max"] < found["mse"]
        assert not model.stem._forward_hooks

    def test_scales_go_where_the_weights_are(self) -> None:
        went = []

        class Scale(Tensor):
            def to(self, *args: Any, **_: Any) -> Tensor:  # type: ignore[override]
                went.append(args)
                return self.as_subclass(Tensor)

        model = models.mlp().eval()
        candidates = {"stem": {"max": torch.tensor(0.03125).as_subclass(Scale)}}
        observe.errors(model, plan(model), candidates, feed(16))
        assert went == [(model.stem.weight.device,)]

    def test_the_least_error_wins_and_readers_of_one_tensor_agree(self) -> None:
        rows = plan(models.mlp())[:3]
        one, two, three = (row.layer for row in rows)
        found = {
            one: {"max": 3.0, "percentile": 1.0, "mse": 2.0, "entropy": 9.0},
            two: {"max": 3.0, "percentile": 9.0, "mse": 2.0, "entropy": 9.0},
            three: {"max": 1.0, "percentile": 1.0, "mse": 1.0, "entropy": 1.0},
        }
        alone = {each: each for each in found}
        assert observe.best(found, alone, rows) == {one: "percentile", two: "mse", three: "max"}
        together = {one: one, two: one, three: three}
        assert observe.best(found, together, rows) == {one: "mse", two: "mse", three: "max"}

    def test_readers_of_one_tensor_are_found(self) -> None:
        class Three(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.c = (nn.Linear(32, 4) for _ in range(3))

            def forward(self, x: Tensor) -> Tensor:
                return self.a(x) + self.b(x) + self.c(x + 0)

        found = observe.same_inputs(Three(), ["a", "b", "c"], feed(16))
        assert found == {"a": "a", "b": "a", "c": "c"}

    def test_a_layer_that_the_first_batch_goes_around_is_placed_by_a_later_one(self) -> None:
        model = Branching()
        layers = ["late", "always", "early", "other"]
        wanted = {"early": "early", "always": "early", "other": "other", "late": "early"}
        assert observe.same_inputs(model, layers, branching(["early", "late"])) == wanted
        # The first pass in which a layer runs tells, and what it tells stays.
        assert observe.same_inputs(model, layers, branching(["early", "late", "early"])) == wanted
        found = observe.same_inputs(model, layers, branching(["late", "early"]))
        assert found == {"late": "late", "always": "late", "early": "late", "other": "other"}

    def test_its_error_is_of_the_batches_in_which_it_ran(self) -> None:
        torch.manual_seed(0)
        model = Branching().eval()
        candidates = {"late": {"max": torch.tensor(0.0625)}}
        rows = [row("late", model.late)]
        both = observe.errors(model, rows, candidates, branching(["early", "late"]))
        alone = observe.errors(model, rows, candidates, branching([None, "late"]))
        assert both == alone
        assert both["late"]["max"] > 0


def test_a_ternary_layers_error_knows_its_mask() -> None:
    from dataclasses import replace

    torch.manual_seed(0)
    model = models.mlp().eval()
    row = replace(plan(model)[0], bits=2)
    with torch.no_grad():
        model.stem.weight[:, 2::4] = 0
        model.stem.weight[:, 3::4] = 0
    shipped = observe._shipped(model, row).weight
    wanted = quantize.WeightQuantizer(model.stem.weight != 0, 2)(model.stem.weight)
    assert torch.equal(shipped, wanted)
    assert len(shipped[0].unique()) == 3


@pytest.mark.parametrize("order", [["early", "late"], ["late", "early"]])
@pytest.mark.parametrize(
    "settings", [{"calibration": "best"}, {"scales": "learned"}], ids=["best", "learned"]
)
def test_calibration_of_a_network_whose_branches_depend_on_the_data(
    settings: dict[str, Any], order: list[str]
) -> None:
    torch.manual_seed(0)
    model = Branching().eval()
    layers = ["late", "always", "early", "other"]
    rows = [row(layer, model.get_submodule(layer)) for layer in layers]  # type: ignore[arg-type]
    found = calibration(model, rows, {}, branching(order), Quantization(**settings))
    assert sorted(found.methods) == sorted(found.same_input) == sorted(layers)
    assert len({found.methods[layer] for layer in ("late", "always", "early")}) == 1
    quantize.attach(
        model,
        rows,
        {},
        found.scales,
        learned="scales" in settings,
        same_input=found.same_input,
    )
    branching(order)(model)


def test_a_layer_that_never_ran_is_named() -> None:
    model = Branching().eval()
    rows = [row("always", model.always), row("late", model.late)]
    with pytest.raises(ContractError, match="the input of late has amax nan, expected a positive"):
        calibration(model, rows, {}, branching(["early"]), Quantization(calibration="best"))
