"""Which node is which layer where they share a weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgekd.errors import ContractError
from edgekd.export import integers
from edgekd.export.integers import Use
from edgekd.qdq import QuantizedWeight

ONE = QuantizedWeight(
    layer="a",
    node="n0",
    op_type="MatMul",
    integers=np.tile(np.array([1, 2, 0, 0], np.int8), (2, 1)),
    shape=(4, 2),
    scale=np.ones(2, np.float32),
    input_scale=0.5,
    channels=4,
    folded=False,
)


def nodes(*scales: float | None, layer: str = "a") -> list[QuantizedWeight]:
    return [
        replace(ONE, layer=layer, node=f"n{i}", input_scale=scale) for i, scale in enumerate(scales)
    ]


def named(weights: list[QuantizedWeight], *uses: Use) -> list[tuple[str, str]]:
    return [(weight.node, weight.layer) for weight in integers.assign(weights, uses)]


def test_tied_layers_are_told_apart_by_their_inputs_scale() -> None:
    uses = [Use("a", "w", 0.5), Use("b", "w", 0.25), Use("c", "other", 0.25)]
    assert named(nodes(0.25, 0.5), *uses) == [("n0", "b"), ("n1", "a")]


def test_of_equal_scales_the_order_tells() -> None:
    uses = [Use("b", "w", 0.5, runs=2), Use("a", "w", 0.5)]
    assert [layer for _, layer in named(nodes(0.5, 0.5, 0.5), *uses)] == ["b", "b", "a"]


def test_a_scale_that_nobody_has_falls_to_who_is_left() -> None:
    """So that the comparison with the student names it."""
    uses = [Use("a", "w", 0.5), Use("b", "w", 0.25)]
    assert named(nodes(0.75, 0.25), *uses) == [("n0", "a"), ("n1", "b")]


def test_one_node_too_many_keeps_its_name_and_is_refused() -> None:
    uses = [Use("a", "w", 0.5), Use("b", "w", 0.5)]
    found = integers.assign(nodes(0.5, 0.5, 0.5), uses)
    assert [weight.layer for weight in found] == ["a", "b", "a"]
    with pytest.raises(ContractError, match=r"a \(in 2 nodes, expected 1\)"):
        integers.prove(found, {"a": 1, "b": 1}, ["a", "b"])


def test_a_name_that_is_no_layers_is_looked_up_by_its_content() -> None:
    held = integers.content(ONE.integers, ONE.scale)
    uses = [Use("b", held, 0.5), Use("c", "other", 0.5)]
    assert named(nodes(0.5, layer="b.weight_1"), *uses) == [("n0", "b")]
    changed = [replace(ONE, layer="b.weight_1", scale=2 * ONE.scale)]
    assert named(changed, *uses) == [("n0", "b.weight_1")]


def test_a_weight_of_its_own_keeps_its_name() -> None:
    assert named(nodes(0.5, 0.5), Use("a", "w", 0.25)) == [("n0", "a"), ("n1", "a")]


def test_a_layer_is_in_as_many_nodes_as_it_runs() -> None:
    integers.prove(nodes(0.5, 0.5), {"a": 2}, ["a"])
    with pytest.raises(ContractError, match=r"a \(in 2 nodes, expected 1\); found: a"):
        integers.prove(nodes(0.5, 0.5), {"a": 1}, [])
    with pytest.raises(ContractError, match=r"a \(in 2 nodes, expected 3\)"):
        integers.prove(nodes(0.5, 0.5), {"a": 3}, [])
    with pytest.raises(ContractError, match=r"a \(its input is float\)"):
        integers.prove(nodes(0.5, None), {"a": 2}, [])


def test_every_node_is_2_4() -> None:
    broken = [ONE, replace(ONE, integers=np.ones((2, 4), np.int8))]
    with pytest.raises(ContractError, match=r"a: row 0, columns 0\.\.3 hold 4 nonzeros"):
        integers.prove(broken, {"a": 2}, ["a"])
