"""The recipe: one TOML file that says what to compress and how.

(A Bundle carries it as JSON, resolved: the values that were used, defaults included.)

A recipe is frozen once read. Every key is checked where it enters, all problems are reported
together, and an unknown key names its nearest neighbour: a misspelt key that is silently ignored is
a training run wasted. Paths in a recipe are relative to the recipe. The resolved recipe travels in
the manifest of whatever was made from it; files enter a question by their content, never by their
path.
"""

from __future__ import annotations

import importlib.resources
import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from edgekd import problems
from edgekd.errors import ConfigError, names_that_exist
from edgekd.sections import (
    Data,
    Distill,
    Export,
    Gate,
    Losses,
    Quantization,
    Range,
    Section,
    SparseStage,
    Sparsity,
    Student,
    Teacher,
    TeacherIntervention,
    Training,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Arm",
    "Data",
    "Distill",
    "Export",
    "Gate",
    "Losses",
    "Quantization",
    "Range",
    "Recipe",
    "Section",
    "SparseStage",
    "Sparsity",
    "Student",
    "Teacher",
    "TeacherIntervention",
    "Training",
    "check",
    "load",
    "parse",
    "read",
    "read_toml",
]  # fmt: skip

Arm = Literal["fp16", "dense", "sparse"]


class Recipe(Section):
    """Everything `edgekd run` needs to know; see the shipped recipes for commented examples."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default: all cores")
    arms: list[Arm] = Field(["fp16", "dense", "sparse"], min_length=1)
    teacher: Teacher
    student: Student = Student()
    data: Data
    sparsity: Sparsity = Sparsity()
    quantization: Quantization = Quantization()
    distill: Distill
    export: Export = Export()
    gate: Gate = Gate()

    _base: Path = PrivateAttr(default_factory=Path)

    @property
    def base(self) -> Path:
        """Directory that relative paths in the recipe start from."""
        return self._base

    def as_json(self) -> dict[str, Any]:
        """Plain values, what is not given left out; `load` reads them back from a ``.json``."""
        return self.model_dump(mode="json", exclude_none=True)

    def without(self, arm: Arm) -> Recipe:
        """The same recipe with one arm less; the dense student where none would be left.

        Args:
            arm: The arm to leave out.
        """
        arms = [each for each in self.arms if each != arm]
        return self.model_copy(update={"arms": arms or ["dense"]})

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.teacher.checkpoint is not None and self.teacher.fit is not None:
            raise ValueError("teacher.checkpoint and teacher.fit are both given: keep one")
        if self.sparsity.release and self.student.start is None:
            raise ValueError(
                "sparsity.release names layers of a Student that trains on: give student.start, "
                "or use sparsity.exclude"
            )
        if self.student.start is not None and (unread := _chooses_masks(self.sparsity)):
            raise ValueError(
                f"student.start keeps the masks of {self.student.start!r}, so {unread} would do "
                "nothing: remove it, or make that Student with it"
            )
        return self


def load(name: str | Path) -> Recipe:
    """Read a recipe from a file, or a shipped one by name.

    No file that the recipe names is looked for: on a device, where the model and the data are not,
    its ``[gate]`` section can still be used.

    Args:
        name: Path of a ``.toml`` file or of a Bundle's ``recipe.json``, or a name such as
            ``digits-vit``.

    Raises:
        ConfigError: No such recipe, not TOML, or keys that are wrong; all of them in one message.
    """
    path = Path(name)
    if not path.is_file():
        shipped = {Path(p.name).stem: p for p in _shipped().iterdir() if p.name.endswith(".toml")}
        if str(name) not in shipped:
            raise ConfigError(
                f"recipe {str(name)!r}: no such file, and no shipped recipe has that name. "
                f"{names_that_exist(str(name), shipped)}"
            )
        path = Path(str(shipped[str(name)]))
    recipe = parse(read(path), str(path))
    recipe._base = path.parent
    return recipe


def parse(document: dict[str, Any], where: str) -> Recipe:
    """Check a recipe given as plain values.

    Raises:
        ConfigError: Every problem found, one line each.
    """
    recipe: Recipe = check(Recipe, document, where)
    return recipe


def read(path: Path) -> dict[str, Any]:
    """Parse a file that a person wrote in TOML, or that a Bundle carries as ``.json``.

    Raises:
        ConfigError: It is missing, cannot be read, or is not what its name says.
    """
    return _read_json(path) if path.suffix == ".json" else read_toml(path)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigError: It is missing, cannot be read, or is not TOML (with line and column).
    """
    try:
        return tomllib.loads(_text(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_text(path))
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds a JSON {type(document).__name__}, expected an object")
    return document


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def check(model: type[Any], document: dict[str, Any], where: str) -> Any:
    """Validate plain values against a `Section`, collecting every problem.

    Raises:
        ConfigError: One sentence a problem: where, what was found, what would be right.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found = problems.sentences(model, error.errors())
        count = f"{len(found)} problems: " if len(found) > 1 else ""
        raise ConfigError(f"{where}: {count}" + "; ".join(found)) from error


def _chooses_masks(section: Sparsity) -> str:
    """The keys of a section that say how masks are chosen, where they are not the defaults."""
    usual = Sparsity()
    keys = ("method", "permute")
    given = [name for name in keys if getattr(section, name) != getattr(usual, name)]
    return " and ".join(f"sparsity.{n} = {json.dumps(getattr(section, n))}" for n in given)


def _shipped() -> Any:
    return importlib.resources.files("edgekd") / "recipes"
