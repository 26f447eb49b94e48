"""Students of three families, distilled once, and tiny networks under a recipe's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tiny.recipes import Breaks, Students

from edgekd.artifact import Artifact


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Students:
    """The Student of ``vit``, ``bert``, ``resnet`` or a network of tiny.models, after two steps."""
    from tiny import configs
    from tiny.recipes import tiny

    from edgekd.distill.student import distill

    made: dict[str, Artifact] = {}

    def get(name: str) -> Artifact:
        if name not in made:
            base = tmp_path_factory.mktemp(name)
            model = getattr(configs, name.upper(), name)
            data = {"bert": "tokens"}.get(name, "vectors" if model == name else "images")
            made[name] = distill(tiny(base, model, data), base / "out")
        return made[name]

    return get


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Breaks:
    """``breaks(change)``: `change` meets the network between the artifact and the graph."""
    from edgekd.export import model, qdq_form

    real = qdq_form.attach

    def apply(change: Callable[[Any], None]) -> None:
        def wrong(network: Any, rows: Any, stored: Any) -> None:
            real(network, rows, stored)
            change(network)

        monkeypatch.setattr(model.qdq_form, "attach", wrong)

    return apply
