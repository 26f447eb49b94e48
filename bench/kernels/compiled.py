"""What the compiler made of every kernel, held to a checked-in budget; needs no GPU.

    make kernels                                 compile, gate, and write bench/results/kernels.json
    python bench/kernels/compiled.py --accept    write kernels/budget.json anew: read the difference

For sm_80 (A100), sm_87 (Jetson Orin) and sm_90 (where correctness can be shown): no spills and no
local memory, registers and instructions of the hot loop at most as in the budget, and exactly as
many MMAs in it, so that neither an unrolling nor an instruction gets lost.

JetPack 6 has CUDA 12.6, which loads neither the PTX nor the cubins of CUDA 13: for it the PTX gets
the header of the version whose instructions it uses, 8.5, and CUDA 12.6's own ptxas assembles it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import results  # noqa: E402
import sass  # noqa: E402

BUDGET = ROOT / "kernels" / "budget.json"
ARCHITECTURES = ("80", "87", "90")
JETPACK_6 = {"architecture": "87", "ptx": "8.5", "cuda": "12.6"}
_USED = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def main() -> int:
    """Compile, compare, write; 0 where every kernel keeps its budget."""
    out = ROOT / "out" / "kernels"
    out.mkdir(parents=True, exist_ok=True)
    found = {f"sm_{a}": compiled(out, a) for a in ARCHITECTURES}
    found["sm_87 by CUDA 12.6"] = jetpack_6(out)
    if sys.argv[1:] == ["--accept"]:
        BUDGET.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{BUDGET}: written; read what changed before it is kept")
    wrong = violations(found, json.loads(BUDGET.read_text(encoding="utf-8")))
    for sentence in wrong:
        print(sentence)
    if not wrong:
        print(written(found))
    return bool(wrong)


def violations(found: dict[str, Any], budget: dict[str, Any]) -> list[str]:
    """A sentence for each kernel that costs more than it may."""
    sentences = []
    for architecture, kernels in budget.items():
        for name, allowed in kernels.items():
            measured = found.get(architecture, {}).get(name)
            where = f"{name} on {architecture}"
            if measured is None:
                sentences.append(f"{where}: not compiled, expected by the budget")
                continue
            for what in ("spill_bytes", "local_accesses", "registers", "loop_instructions"):
                if measured[what] > allowed[what]:
                    sentences.append(
                        f"{where}: {what} {measured[what]}, expected at most {allowed[what]}"
                    )
            if measured["loop_mmas"] != allowed["loop_mmas"]:
                sentences.append(
                    f"{where}: {measured['loop_mmas']} MMAs in the hot loop, expected exactly "
                    f"{allowed['loop_mmas']}"
                )
        new = sorted(set(found[architecture]) - set(kernels))
        sentences += [
            f"{name} on {architecture}: has no budget: --accept gives it one" for name in new
        ]
    return sentences


def compiled(out: Path, architecture: str) -> dict[str, Any]:
    """What nvcc made of every kernel for one architecture."""
    cubin = f"kernels.sm_{architecture}.cubin"
    run("make", "-s", "-C", str(ROOT / "kernels"), "cubins", f"OUT={out}", f"NVCC={tool('nvcc')}",
        f"ARCHITECTURES={architecture}")  # fmt: skip
    log = (out / f"{cubin}.log").read_text(encoding="utf-8")
    return measured(out / cubin, log)


def jetpack_6(out: Path) -> dict[str, Any]:
    """The same PTX, assembled by the ptxas that JetPack 6 has."""
    ptx, cubin = out / "kernels.jetpack6.ptx", out / "kernels.jetpack6.sm_87.cubin"
    newer = out / "kernels.compute_87.ptx"
    run("make", "-s", "-C", str(ROOT / "kernels"), str(newer), f"OUT={out}", f"NVCC={tool('nvcc')}")
    text = newer.read_text(encoding="utf-8")
    older = re.sub(r"(?m)^\.version .*$", f".version {JETPACK_6['ptx']}", text)
    ptx.write_text(older, encoding="utf-8")
    log = run(tool("ptxas-12.6"), "-v", "-arch=sm_87", "-o", str(cubin), str(ptx))
    return measured(cubin, log)


def measured(cubin: Path, log: str) -> dict[str, Any]:
    """Registers and spills from ptxas's words, instructions from the machine code."""
    used = {name: (int(a) + int(b), int(regs)) for name, a, b, regs in _USED.findall(log)}
    listing = sass.kernels(run(tool("nvdisasm"), "-c", str(cubin)))
    if set(listing) != set(used) or not used:
        sys.exit(f"{cubin.name}: ptxas names {len(used)} kernels, nvdisasm {len(listing)}")
    found = {}
    for name, lines in sorted(listing.items()):
        spills, registers = used[name]
        loop = sass.hot_loop(lines)
        sparse = name.startswith("sparse_")
        wrong = sass.count(lines, "IMMA.SP") != (sass.count(lines, "IMMA") if sparse else 0)
        if wrong or not loop:
            sys.exit(
                f"{name} in {cubin.name}: its MMAs are not all {'sparse' if sparse else 'dense'}"
            )
        found[name] = {
            "registers": registers,
            "spill_bytes": spills,
            "local_accesses": sass.count(lines, "LDL") + sass.count(lines, "STL"),
            "loop_instructions": sass.count(loop, ""),
            "loop_mmas": sass.count(loop, "IMMA"),
        }
    return found


def written(found: dict[str, Any]) -> Path:
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
        {"nvcc": version, "budget": "kernels/budget.json", "compiled": summary},
    )  # fmt: skip


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


def run(*command: str) -> str:
    """Standard output and error of a command; its words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
