"""Targets: facts about one device and its software, each with its source, and no policy.

A target is a TOML file in ``targets/``. It says what the device is, which runtime it has and what
that runtime accepts; every stage that needs such a fact reads it here. What nobody could source is
left out and reads None: a guessed fact would become a wrong refusal or a wrong prediction. For
that reason `sources` must name where every fact comes from, and the file is refused where one has
none.

TensorRT's version is a part of the target's name: an engine, the operators its parser takes and
the precision it picks all change with it, so "Jetson AGX Orin" alone is three targets.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from edgekd import recipe
from edgekd.errors import ConfigError, names_that_exist
from edgekd.recipe import Section

_NO_FACTS = ("name", "role", "sources")


class Parser(Section):
    """What the runtime's ONNX parser takes.

    Attributes:
        opset_max: Highest opset documented for this version or an earlier one of the same major.
        unsupported: ONNX operators its operator table refuses.
    """

    opset_max: int | None = None
    unsupported: list[str] = Field(default=[])


class Dla(Section):
    """The Deep Learning Accelerator: its cores, and whether this software can use them."""

    cores: int = Field(ge=0)
    status: Literal["supported", "unverified", "none"]


class Target(Section):
    """One device with its software.

    Attributes:
        name: As given on the command line and as the file is called.
        device: Name the driver prints; ``cpu`` for ONNX Runtime on any processor.
        role: ``deploy`` for a device students ship to, ``development`` for one to try things on.
        runtime: What executes an engine.
        runtime_version: Its version, as many components as must agree (``10.3`` fits 10.3.0.30).
        compute_capability: Major and minor, for example [8, 7].
        multiprocessors: Streaming multiprocessors; they tell modules of one device name apart.
        cuda: CUDA version of the software.
        python: Version of the device's Python, for which a Bundle carries wheels.
        platforms: Wheel platform tags the device accepts, preferred first.
        system_packages: Python packages the device's system brings; a Bundle carries none of them.
        parser: Limits of the ONNX parser.
        memory_bytes: Device memory.
        bandwidth_bytes_per_s: Peak DRAM bandwidth.
        int8_dense_tops: Peak 10^12 INT8 operations per second of the GPU, two a multiply-add.
        int8_sparse_tops: The same with 2:4 weights, counting the zeros.
        required_state: Fields of the machine's state without which a latency is no evidence.
        dla: The DLA, where the device has one.
        sources: Field -> where the fact comes from.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    device: str
    role: Literal["deploy", "development"]
    runtime: Literal["tensorrt", "onnxruntime"]
    runtime_version: str | None = Field(None, pattern=r"^\d+(\.\d+)*$")
    compute_capability: list[int] | None = Field(None, min_length=2, max_length=2)
    multiprocessors: int | None = Field(None, ge=1)
    cuda: str | None = None
    python: str = Field(pattern=r"^3\.\d+$")
    platforms: list[str] = Field(min_length=1)
    system_packages: list[str] = Field(default=[])
    parser: Parser = Parser()
    memory_bytes: int | None = Field(None, ge=1)
    bandwidth_bytes_per_s: float | None = Field(None, gt=0)
    int8_dense_tops: float | None = Field(None, gt=0)
    int8_sparse_tops: float | None = Field(None, gt=0)
    required_state: list[str]
    dla: Dla | None = None
    sources: dict[str, str]

    @field_validator("sources")
    @classmethod
    def _every_fact_has_a_source(
        cls, sources: dict[str, str], info: ValidationInfo
    ) -> dict[str, str]:
        facts = {
            name
            for name, value in info.data.items()
            if name not in _NO_FACTS and value not in (None, [], Parser())
        }
        without = sorted(facts - set(sources))
        if without:
            raise ValueError(f"no source for {', '.join(without)}: name one, or leave the fact out")
        unused = sorted(set(sources) - facts - (set(cls.model_fields) - set(info.data)))
        if unused:
            raise ValueError(f"a source is given for {', '.join(unused)}, but no such fact")
        return sources

    def as_json(self) -> dict[str, Any]:
        """Plain values, unknown facts left out; `load` reads them back."""
        return self.model_dump(mode="json", exclude_none=True)

    def accepts_runtime(self, version: str) -> bool:
        """Whether a runtime's version agrees with this target's in every component it names."""
        wanted = self.runtime_version.split(".") if self.runtime_version else []
        return version.split(".")[: len(wanted)] == wanted


def names() -> list[str]:
    """Names of the shipped targets, sorted."""
    return sorted(file.stem for file in shipped("targets").glob("*.toml"))


def load(name: str | Path) -> Target:
    """Read a target.

    Args:
        name: A shipped name such as ``jetson-agx-orin-64gb-jp6.2``, the path of a ``.toml``, or the
            ``target.json`` of a Bundle.

    Raises:
        ConfigError: No such target, not TOML or JSON, or facts that are wrong or have no source.
    """
    path = Path(name)
    if path.suffix not in (".toml", ".json"):
        if str(name) not in names():
            raise ConfigError(
                f"target {str(name)!r}: no shipped target has that name, and it is not the path of "
                f"a .toml file. {names_that_exist(str(name), names())}"
            )
        path = shipped("targets") / f"{name}.toml"
    checked: Target = recipe.check(Target, recipe.read(path), str(path))
    return checked


def shipped(name: str) -> Path:
    """Path of what lies beside the package in a checkout and inside the package in a wheel."""
    package = Path(str(importlib.resources.files("edgekd")))
    return package / name if (package / name).exists() else package.parent / name
