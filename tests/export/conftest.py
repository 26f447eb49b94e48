"""Students of three families, distilled once, and tiny networks under a recipe's names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd.artifact import Artifact

sys.path.insert(0, str(Path(__file__).parents[1]))

Students = Callable[[str], Artifact]


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
