"""Which cubin a target loads, and the index that says how its kernels are launched.

An assembler's cubin loads where CUDA is as new as the assembler or newer: drivers take what older
CUDAs made, and not the reverse (CUDA 13's cubins are of another ELF kind than those JetPack 6
knows). So a target gets that of the newest assembler at hand that is no newer than its CUDA. Where
``targets/*.toml`` has no `cuda` for it, it gets the oldest one's, which loads on the most.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import elf

from edgekd.target import Target


@dataclass(frozen=True, order=True)
class Build:
    """One cubin: for which architecture, and whose ptxas assembled it."""

    sm: str
    cuda: str

    def __str__(self) -> str:
        """As the budget calls it."""
        return f"sm_{self.sm} by CUDA {self.cuda}"

    @property
    def file(self) -> str:
        """Its name."""
        return f"kernels.sm_{self.sm}.cuda{self.cuda}.cubin"

    @property
    def ptx(self) -> str:
        """Name of what it was assembled from."""
        return f"kernels.compute_{self.sm}.ptx"


def lanes(targets: Collection[Target], at_hand: Collection[str]) -> dict[str, Build]:
    """The cubin of each target that has a CUDA device.

    Args:
        targets: All targets.
        at_hand: CUDA versions there is a ptxas of.
    """
    found = {}
    for target in targets:
        if target.compute_capability is None:
            continue
        sm = "".join(str(part) for part in target.compute_capability)
        oldest = min(at_hand, key=_version)
        fits = [each for each in at_hand if target.cuda and _version(each) <= _version(target.cuda)]
        if target.cuda and not fits:
            sys.exit(
                f"{target.name}: has CUDA {target.cuda}, and the oldest ptxas here is of {oldest}, "
                f"whose cubins it does not load: install one of {target.cuda}"
            )
        found[target.name] = Build(sm, max(fits, key=_version, default=oldest))
    return found


def disagreements(cubin: Path, instances: Mapping[str, Any]) -> list[str]:
    """A sentence for each kernel that a cubin and the sources' table describe differently."""
    inside = elf.kernels(cubin)
    sentences = [
        f"{name} in {cubin.name}: the sources' table has no such kernel"
        for name in sorted(set(inside) - set(instances))
    ]
    for name, launch in instances.items():
        if name not in inside:
            sentences.append(f"{name}: is in the sources' table and not in {cubin.name}")
            continue
        compiled, launched = inside[name].block_threads, launch["block_threads"]
        if compiled != launched:
            sentences.append(
                f"{name} in {cubin.name}: compiled for blocks of {compiled} threads, the sources' "
                f"table launches {launched}"
            )
    return sentences


def index(
    folder: Path, builds: Collection[Build], targets: Collection[Target], table: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything a loader needs that is not in a cubin, and hashes of the files.

    Args:
        folder: Where the cubins and their PTX lie.
        builds: All of them.
        targets: All targets.
        table: ``instances.json``.
    """
    loaded = lanes(targets, {build.cuda for build in builds})
    return {
        **table,
        "targets": {
            target.name: {"cubin": loaded[target.name].file, "cuda": target.cuda}
            for target in targets
            if target.name in loaded
        },
        "cubins": {
            build.file: {
                "sha256": digest(folder / build.file),
                "sm": int(build.sm),
                "assembled_by_cuda": build.cuda,
                "ptx": build.ptx,
                "registers": {
                    name: kernel.registers
                    for name, kernel in elf.kernels(folder / build.file).items()
                },
            }
            for build in sorted(builds)
        },
        "ptx": {name: _ptx(folder / name) for name in sorted({build.ptx for build in builds})},
    }


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _ptx(path: Path) -> dict[str, str]:
    text = path.read_text(encoding="utf-8")
    version = re.search(r"(?m)^\.version (.+)$", text)
    compiler = re.search(r"(?m)^// Cuda compilation tools, release .*, V(.+)$", text)
    if version is None or compiler is None:
        sys.exit(f"{path.name}: names no PTX version or no compiler, expected nvcc's PTX")
    return {"sha256": digest(path), "version": version[1], "compiled_by_cuda": compiler[1]}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
