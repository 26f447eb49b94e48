"""Which layers are planned, and the sentence beside every one that is not."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from edgekd.eligible import Facts, LayerPlan, plan, share_of_macs
from edgekd.errors import ConfigError, ContractError
from edgekd.recipe import Quantization, Sparsity

BOTH = (Sparsity(), Quantization.model_validate({"convolutions": True}))
DEFAULT = (Sparsity(), Quantization())


def linear(layer: str = "fc1", n: int = 64, k: int = 32, **changes: Any) -> Facts:
    fields = {"type": "Linear", "k_group": k, "groups": 1, "macs": n * k, "is_output": False}
    return Facts(layer=layer, n=n, k=k, **{**fields, **changes})


def conv(channels: int, area: int = 9, groups: int = 1, n: int = 64) -> Facts:
    k_group = channels // groups
    return Facts("conv", "Conv2d", n, k_group * area, k_group, groups, n * k_group * area, False)


def only(facts: Facts, sparsity: Sparsity | None, quantization: Quantization | None) -> LayerPlan:
    (row,) = plan([facts], sparsity, quantization)
    return row


def test_a_layer_no_rule_names_is_planned_for_both() -> None:
    assert only(linear(), *BOTH).as_json() == {
        "layer": "fc1",
        "type": "Linear",
        "n": 64,
        "k": 32,
        "macs": 2048,
        "int8": True,
        "int8_reason": "",
        "sparse": True,
        "sparse_reason": "",
        "node": "",
        "runs": 1,
        "tied_to": "",
        "bits": 8,
    }


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (linear(k=30), "k per group is 30, not a multiple of 4: 2:4 is not defined on it"),
        (linear(k=20), "k per group is 20, sparse kernels want a multiple of 16"),
        (linear(n=60), "n is 60, sparse kernels want a multiple of 8"),
        (linear(is_output=True), "output layer: stays dense"),
        (linear(k=16, n=8), ""),
        (
            replace(linear(), shared="table.weight"),
            "its weight is also read by table.weight: stays dense",
        ),
        (conv(3), "k per group is 3, not a multiple of 4: 2:4 is not defined on it"),
        (conv(64, groups=64), "k per group is 1, not a multiple of 4: 2:4 is not defined on it"),
        (conv(64, groups=8), "k per group is 8, sparse kernels want a multiple of 16"),
        (conv(64, groups=2, n=60), "n is 60, sparse kernels want a multiple of 8"),
        (conv(16), ""),
        (conv(64, groups=4), ""),
        (conv(16, area=1), ""),
        (conv(40, area=1), "k per group is 40, sparse kernels want a multiple of 16"),
    ],
)
def test_why_a_layer_stays_dense(facts: Facts, reason: str) -> None:
    row = only(facts, *BOTH)
    assert (row.sparse, row.sparse_reason) == (not reason, reason)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (
            linear(is_output=True),
            "output layer: stays in float, its few operations decide the answer",
        ),
        (conv(64, groups=64), "depthwise convolution: INT8 kernels pad each channel to four"),
        (conv(3), "k per group is 3, INT8 tensor-core kernels want at least 16"),
        (conv(128, groups=32), "k per group is 4, INT8 tensor-core kernels want at least 16"),
        (conv(64, groups=4), ""),
        (conv(40, area=1), ""),
        (linear(k=15), "k per group is 15, INT8 tensor-core kernels want at least 16"),
        (linear(k=16), ""),
        (linear(n=3, k=17), ""),
    ],
)
def test_why_a_layer_stays_in_float(facts: Facts, reason: str) -> None:
    row = only(facts, *BOTH)
    assert (row.int8, row.int8_reason) == (not reason, reason)


def test_convolutions_are_sparse_and_in_float_by_default() -> None:
    row = only(conv(64), *DEFAULT)
    assert (row.int8, row.sparse) == (False, True)
    assert row.int8_reason == (
        "convolution: stays in float16, INT8 is opt-in (quantization.convolutions = true)"
    )
    assert "k per group is 3" in only(conv(3), *DEFAULT).int8_reason
    assert only(linear(), *DEFAULT).int8


def test_what_one_of_tied_layers_cannot_be_none_is() -> None:
    layers = [linear("a"), linear("b"), replace(linear("c", is_output=True), tied_to="a")]
    rows = plan(layers, *BOTH)
    assert [row.int8 for row in rows] == [row.sparse for row in rows] == [False, True, False]
    assert rows[0].int8_reason.startswith("shares its weight with c: output layer: stays in float")
    assert rows[0].sparse_reason == "shares its weight with c: output layer: stays dense"
    assert rows[2].int8_reason.startswith("output layer")
    assert [row.tied_to for row in rows] == ["", "", "a"]
    rows = plan([linear("a"), replace(linear("b"), tied_to="a")], Sparsity(exclude=["a"]), None)
    assert [row.sparse_reason for row in rows] == [
        "in sparsity.exclude",
        "shares its weight with a: in sparsity.exclude",
    ]


def test_a_plan_of_before_ties_were_told_still_loads() -> None:
    old = {k: v for k, v in only(linear(), *BOTH).as_json().items() if k not in ("runs", "tied_to")}
    assert LayerPlan(**old) == only(linear(), *BOTH)


def test_what_is_off_in_an_arm_is_said() -> None:
    row = only(linear(), None, None)
    assert (row.int8, row.int8_reason) == (False, "INT8 is off in this arm")
    assert (row.sparse, row.sparse_reason) == (False, "2:4 is off in this arm")


def test_patterns_choose_and_say_where() -> None:
    layers = [linear("a.fc1"), linear("a.fc2"), linear("b.fc1")]
    sparsity = Sparsity(include=["a.*"], exclude=["*.fc2"])
    quantization = Quantization.model_validate({"exclude": ["b.fc1"]})
    rows = plan(layers, sparsity, quantization)
    assert [row.sparse for row in rows] == [True, False, False]
    assert [row.int8 for row in rows] == [True, True, False]
    assert rows[1].sparse_reason == "in sparsity.exclude"
    assert rows[2].sparse_reason == "not in sparsity.include"
    assert rows[2].int8_reason == "in quantization.exclude"


@pytest.mark.parametrize("key", ["include", "exclude"])
@pytest.mark.parametrize("section", ["sparsity", "quantization"])
def test_a_pattern_that_matches_nothing_is_told(section: str, key: str) -> None:
    model = Sparsity if section == "sparsity" else Quantization
    chosen: Any = model.model_validate({key: ["fc2"]})
    sections = (chosen, None) if section == "sparsity" else (None, chosen)
    expected = (
        f"{section}.{key}: 'fc2' matches no Linear or Conv2d. Did you mean \"fc1\"? There are: "
    )
    with pytest.raises(ConfigError, match=re.escape(expected + "conv, fc1")):
        plan([conv(16), linear()], *sections)


def test_a_layer_named_in_full_that_cannot_be_sparse_is_told() -> None:
    expected = (
        "sparsity.include names fc1 (n=64, k=30), which cannot be 2:4: k per group is 30, not a "
        "multiple of 4: 2:4 is not defined on it; remove it from sparsity.include"
    )
    with pytest.raises(ContractError, match=re.escape(expected)):
        plan([linear(k=30)], Sparsity(include=["fc1"]), None)


def test_a_layer_matched_by_a_pattern_only_stays_dense_in_silence() -> None:
    row = only(linear(k=30), Sparsity(include=["fc*"]), None)
    assert row.sparse_reason.startswith("k per group is 30")


def test_share_of_macs_counts_every_layer_in_the_denominator() -> None:
    rows = plan([linear("a", 64, 32), linear("b", 64, 32, is_output=True)], *BOTH)
    assert share_of_macs(rows, "int8") == 0.5
    assert share_of_macs(rows, "sparse") == 0.5
    rows = plan([linear("a", 64, 32), linear("b", 64, 96), linear("c", 60, 32)], *BOTH)
    assert share_of_macs(rows, "sparse") == (2048 + 6144) / (2048 + 6144 + 1920)
    assert share_of_macs(rows, "int8") == 1.0
    assert share_of_macs([], "int8") == 0.0


def test_a_released_layer_is_dense_and_says_so() -> None:
    section = Sparsity(release=["*.fc1"])
    layers = [linear("a.fc1"), linear("a.fc2"), linear("b.fc1", k=30), linear("c", tied_to="a.fc1")]
    reasons = [row.sparse_reason for row in plan(layers, section, Quantization())]
    assert reasons == [
        "released to dense (sparsity.release)",
        "",
        "k per group is 30, not a multiple of 4: 2:4 is not defined on it",  # as it always was
        "shares its weight with a.fc1: released to dense (sparsity.release)",
    ]
    assert all(row.int8 for row in plan(layers, section, Quantization()))
    with pytest.raises(
        ConfigError, match=r"sparsity\.release: 'd\.\*' matches no Linear or Conv2d"
    ):
        plan(layers, Sparsity(release=["d.*"]), Quantization())
