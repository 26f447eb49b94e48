"""What the compiler made of every kernel, held to a checked-in budget; needs no GPU.

    make kernels                                 compile, gate, index; bench/results/kernels.json
    python bench/kernels/compiled.py --accept    write kernels/budget.json anew: read the difference

What it leaves in ``out/kernels`` is to be shipped: the cubin of every target (`cubins.lanes`), of
sm_90 where correctness can be shown, their PTX, and ``index.json``, with which cuModuleLoad or a
plugin of TensorRT can launch them. A run that finds a kernel over its budget leaves no index.

No spills and no local memory, registers, shared memory and instructions of the hot loop at most as
in the budget, and exactly as many MMAs in it, so that neither an unrolling nor an instruction gets
lost. Every cubin is assembled from one PTX an architecture, whose header names the version its
instructions are of: what nvcc writes there, its own version, is refused by JetPack 6's CUDA 12.6.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import cubins  # noqa: E402
import results  # noqa: E402
import sass  # noqa: E402
from cubins import Build  # noqa: E402

from edgekd import target  # noqa: E402

KERNELS = ROOT / "kernels"
BUDGET = KERNELS / "budget.json"
OUT = ROOT / "out" / "kernels"
# Of `make library`; the newest assembler makes all of them, whichever the targets load.
ARCHITECTURES = ("80", "87", "90")
_AT_MOST = ("spill_bytes", "local_accesses", "registers", "shared_bytes", "loop_instructions")
_USED = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers([^\n]*)",
    re.DOTALL,
)


def main() -> int:
    """Compile, compare, write; 0 where every kernel keeps its budget."""
    OUT.mkdir(parents=True, exist_ok=True)
    index = OUT / "index.json"
    index.unlink(missing_ok=True)
    make("instances")
    table = json.loads((OUT / "instances.json").read_text(encoding="utf-8"))
    targets = [target.load(name) for name in target.names()]
    ptxas = assemblers()
    newest = list(ptxas)[-1]
    builds = {*cubins.lanes(targets, ptxas).values(), *(Build(a, newest) for a in ARCHITECTURES)}
    found = {}
    for build in sorted(builds):
        make("cubins", f"NVCC={tool('nvcc')}", f"PTXAS={ptxas[build.cuda]}",
             f"ARCHITECTURES={build.sm}", f"BY=.cuda{build.cuda}")  # fmt: skip
        found[str(build)] = measured(OUT / build.file, table["kernels"])
    if sys.argv[1:] == ["--accept"]:
        BUDGET.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{BUDGET}: written; read what changed before it is kept")
    wrong = violations(found, json.loads(BUDGET.read_text(encoding="utf-8")))
    for sentence in wrong:
        print(sentence)
    if not wrong:
        document = cubins.index(OUT, builds, targets, table)
        index.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(index)
        for name, loads in document["targets"].items():
            why = f"CUDA {loads['cuda']}" if loads["cuda"] else "its CUDA is not stated: the oldest"
            print(f"  {name} loads {loads['cubin']} ({why})")
        print(written(found, document))
    return bool(wrong)


def violations(found: dict[str, Any], budget: dict[str, Any]) -> list[str]:
    """A sentence for each kernel that costs more than it may."""
    sentences = []
    for cubin in sorted({*budget, *found}):
        kernels, compiled = budget.get(cubin, {}), found.get(cubin, {})
        for name, allowed in kernels.items():
            measured = compiled.get(name)
            where = f"{name} on {cubin}"
            if measured is None:
                sentences.append(f"{where}: not compiled, expected by the budget")
                continue
            for what in _AT_MOST:
                if measured[what] > allowed[what]:
                    sentences.append(
                        f"{where}: {what} {measured[what]}, expected at most {allowed[what]}"
                    )
            if measured["loop_mmas"] != allowed["loop_mmas"]:
                sentences.append(
                    f"{where}: {measured['loop_mmas']} MMAs in the hot loop, expected exactly "
                    f"{allowed['loop_mmas']}"
                )
        new = sorted(set(compiled) - set(kernels))
        sentences += [f"{name} on {cubin}: has no budget: --accept gives it one" for name in new]
    return sentences


def measured(cubin: Path, instances: Mapping[str, Any]) -> dict[str, Any]:
    """Registers and spills from ptxas's words, instructions from the machine code."""
    log = cubin.with_name(f"{cubin.name}.log").read_text(encoding="utf-8")
    used = {
        name: (int(stores) + int(loads), int(registers), fixed_shared_bytes(more))
        for name, stores, loads, registers, more in _USED.findall(log)
    }
    listing = sass.kernels(run(tool("nvdisasm"), "-c", str(cubin)))
    if set(listing) != set(used) or not used:
        sys.exit(f"{cubin.name}: ptxas names {len(used)} kernels, nvdisasm {len(listing)}")
    if wrong := cubins.disagreements(cubin, instances):
        sys.exit("\n".join(wrong))
    found = {}
    for name, lines in sorted(listing.items()):
        spills, registers, fixed = used[name]
        loop = sass.hot_loop(lines)
        kind = "sparse" if name.startswith("sparse_") else "dense"
        mmas, sparse = sass.count(lines, "IMMA"), sass.count(lines, "IMMA.SP")
        looped = sass.count(loop, "IMMA")
        if sparse != (mmas if kind == "sparse" else 0) or not looped:
            sys.exit(
                f"{name} in {cubin.name}: {mmas} MMAs, {sparse} of them sparse, {looped} in its "
                f"hot loop, expected all {kind} and some in the loop"
            )
        found[name] = {
            "registers": registers,
            "shared_bytes": fixed + instances[name]["dynamic_shared_bytes"],
            "spill_bytes": spills,
            "local_accesses": sass.count(lines, "LDL") + sass.count(lines, "STL"),
            "loop_instructions": sass.count(loop, ""),
            "loop_mmas": looped,
        }
    return found


def fixed_shared_bytes(words: str) -> int:
    """Shared memory that a kernel has besides its launch's, in ptxas's words; 0 where unnamed."""
    found = re.search(r"(\d+) bytes smem", words)
    return int(found[1]) if found else 0


def written(found: dict[str, Any], index: dict[str, Any]) -> Path:
    """The committed result: what was compiled with what, and the costliest kernels."""
    summary = {
        architecture: {
            "kernels": len(kernels),
            "most_registers": max(each["registers"] for each in kernels.values()),
            "spill_bytes": sum(each["spill_bytes"] for each in kernels.values()),
            "instructions_an_mma": {
                name: round(each["loop_instructions"] / each["loop_mmas"], 2)
                for name, each in kernels.items()
                if name.endswith("_gelu_s8")
            },
        }
        for architecture, kernels in found.items()
    }
    version = run(tool("nvcc"), "--version").splitlines()[-2].strip()
    return results.write(
        "kernels", "make kernels", ("kernels/src", "kernels/include"),
        {"nvcc": version, "budget": "kernels/budget.json",
         "cubins": {name: cubin["sha256"] for name, cubin in index["cubins"].items()},
         "compiled": summary},
    )  # fmt: skip


def assemblers() -> dict[str, str]:
    """Every ptxas at hand by its CUDA version, the oldest first.

    JetPack 6's is always wanted: its PTX and its cubins are what no newer CUDA makes.
    """
    found = {}
    for name in ("ptxas-12.6", "ptxas"):
        version = re.search(r"release (\d+\.\d+)", run(tool(name), "--version"))
        if version is None:
            sys.exit(f"{tool(name)}: names no release, expected a ptxas")
        found[version[1]] = tool(name)
    return found


def tool(name: str) -> str:
    """A program of the CUDA toolkit: from PyPI's packages (extra ``cuda``), else from PATH."""
    folder, program = ("cuda_nvcc", "ptxas") if name == "ptxas-12.6" else ("cu13", name)
    for packages in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        path = Path(packages) / "nvidia" / folder / "bin" / program
        if path.is_file():
            return str(path)
    if name == "ptxas-12.6":
        sys.exit("CUDA 12.6's ptxas is not here: pip install 'edgekd[cuda]'")
    return program


def make(*arguments: str) -> None:
    """Run ``kernels/Makefile``."""
    run("make", "-s", "-C", str(KERNELS), f"OUT={OUT}", *arguments)


def run(*command: str) -> str:
    """Standard output and error of a command; its words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
