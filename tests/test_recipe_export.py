"""The recipe's ``[export]``: sizes, exporter and weights, refused in one sentence where wrong."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd import recipe
from edgekd.errors import ConfigError
from edgekd.recipe import Export


def test_the_batch_is_among_the_sizes() -> None:
    found: Export = recipe.check(
        Export, {"dynamic": {"sequence": {"min": 1, "opt": 32, "max": 128}}}, "r"
    )
    assert {name: (s.min, s.opt, s.max) for name, s in found.sizes.items()} == {
        "batch": (1, 8, 64),
        "sequence": (1, 32, 128),
    }
    assert (found.exporter, found.weights) == ("auto", "auto")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            {"dynamic": {"sequence": {"min": 9, "opt": 3, "max": 5}}},
            "dynamic.sequence: sizes are min 9, opt 3, max 5: they must not decrease",
        ),
        (
            {"dynamic": {"batch": {"min": 1, "opt": 1, "max": 1}}},
            "dynamic.batch: the batch has keys of its own: batch_min, batch_opt, batch_max",
        ),
        ({"dynamic": {"sequence": {"min": 1, "opt": 2}}}, "dynamic.sequence.max is missing"),
        (
            {"exporter": "onnxscript"},
            "exporter: found 'onnxscript', expected 'auto', 'torchscript' or 'dynamo'",
        ),
        ({"weights": "int4"}, "weights: found 'int4', expected 'auto', 'int8' or 'float'"),
    ],
)
def test_what_is_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe.check(Export, section, "r")
    assert words in str(caught.value)
