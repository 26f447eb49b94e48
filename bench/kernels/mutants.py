"""Faults put into the kernels one at a time: does a test of theirs notice each?

    make mutants                              all of them, and write bench/results/mutants.json
    python bench/kernels/mutants.py 3 17      only these, and print which test noticed

A kernel that no GPU has run is worth what its tests are worth. Each fault is one that a person makes:
a barrier forgotten, a pipeline one group short, lanes of the metadata exchanged, a tail unguarded. The
sources are copied, changed, compiled for the emulator and handed to ``tests/kernels``; a fault that the
compiler refuses (the layout proves itself) is noticed too. One that survives fails the run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import results  # noqa: E402


@dataclass(frozen=True)
class Fault:
    """One line of the sources as it is, and as a mistake would have it."""

    what: str
    file: str
    was: str
    becomes: str


FAULTS = (
    # Barriers.
    Fault("no __syncwarp after a wait", "small_m.h", "      warp_barrier();", "      "),
    Fault("no barrier before the sums", "small_m.h", "  barrier();  // the pipeline's", "  //"),
    Fault("no barrier after the sums", "small_m.h", "  barrier();\n\n  const int feature0", "\n  const int feature0"),
    Fault("no barrier in the main loop", "large_m.h", "    barrier();\n", ""),
    # Pipelines.
    Fault("waits for one group too few", "small_m.h", "wait_copies<kStages - 2>", "wait_copies<kStages - 1>"),
    Fault("waits for one group too few", "large_m.h", "wait_copies<kStages - 2>", "wait_copies<kStages - 1>"),
    Fault("no wait", "small_m.h", "      wait_copies<kStages - 2>();\n", ""),
    Fault("overwrites the stage in use", "small_m.h", "stage == 0 ? kStages - 1 : stage - 1", "stage"),
    Fault("overwrites the stage in use", "large_m.h", "stage == 0 ? kStages - 1 : stage - 1", "stage"),
    Fault("no commit in the loop", "small_m.h", "copy_tokens(next, stage == 0 ? kStages - 1 : stage - 1);\n      commit_copies();", "copy_tokens(next, stage == 0 ? kStages - 1 : stage - 1);"),
    Fault("no commit in the loop", "large_m.h", "    commit_copies();\n    const uint32_t here", "    const uint32_t here"),
    Fault("the ring is one stage too short", "large_m.h", "stage = stage + 1 == kStages", "stage = stage + 2 == kStages"),
    Fault("weights of the next step, not of the one after", "small_m.h", "fetch_weights(step + Tile::kAhead, p)", "fetch_weights(step + 1, p)"),
    # Tails and slices.
    Fault("rows past the end are read", "small_m.h", "(row < m ? row : m - 1)", "row"),
    Fault("rows past the end are read", "large_m.h", "(row < m ? row : m - 1)", "row"),
    Fault("rows past the end are stored", "epilogue.h", "    if (token + odd >= m) break;\n", ""),
    Fault("slices rounded down", "small_m.h", "(slabs - warp + kWarps - 1) / kWarps", "slabs / kWarps"),
    Fault("a warp's sum forgotten", "small_m.h", "w < kWarps; ++w", "w < kWarps - 1; ++w"),
    Fault("the second slab's tokens are the first's", "large_m.h", "4 * s + lane / 8", "lane / 8"),
    # Layout.
    Fault("metadata lanes 1 and 2 exchanged", "layout.h", "{lane / 4 + 8 * (lane % 2), lane % 4 / 2}", "{lane / 4 + 8 * (lane % 4 / 2), lane % 2}"),
    Fault("registers of A exchanged", "layout.h", "{lane / 4 + 8 * (reg % 2), 16 * (reg / 2)", "{lane / 4 + 8 * (reg / 2), 16 * (reg % 2)"),
    Fault("B in another order", "layout.h", "{16 * reg + 4 * (lane % 4) + byte, lane / 4}", "{4 * reg + 16 * (lane % 4) + byte, lane / 4}"),
    Fault("features in their own order", "layout.h", "return 8 * (row % 8) + 2 * tile + row / 8;", "return 16 * tile + row;"),
    Fault("no swizzle", "layout.h", "(chunk ^ ((row >> 1) & 3))", "chunk"),
    Fault("a swizzle that conflicts", "layout.h", "(chunk ^ (row & 7))", "(chunk ^ (row & 3))"),
    Fault("metadata of the first tile for all", "weights.h", "slab[kTiles][tile]", "slab[kTiles][0]"),
    Fault("halves of k exchanged", "weights.h", "slab[tile], tokens[0], tokens[1]", "slab[tile], tokens[2], tokens[3]"),
    # Packing.
    Fault("metadata of the first half for both", "pack.h", "column / 32 + c]", "column / 32]"),
    Fault("kept values exchanged", "pack.h", "column / 2 + c]", "column / 2 + (c ^ 1)]"),
    # Epilogue.
    Fault("a fused multiply-add", "epilogue.h", "add(multiply(to_float(acc[i]), c.scale[i]), c.bias[i])", "multiply_add(to_float(acc[i]), c.scale[i], c.bias[i])"),
    Fault("a product with the reciprocal", "epilogue.h", "multiply_add(remainder, by.reciprocal, first);", "first + 0.0f * remainder;"),
    Fault("the remainder of infinity", "epilogue.h", "minimum(maximum(multiply(y, by.reciprocal), -256.0f), 256.0f)", "multiply(y, by.reciprocal)"),
    Fault("the first token's residual", "epilogue.h", "residual ? residual + at : nullptr", "residual"),
    Fault("saturates at -127", "epilogue.h", "maximum(quotient, -128.0f)", "maximum(quotient, -127.0f)"),
    Fault("the tails of erf", "epilogue.h", "z <= -kEnd ? -1.0f : inside", "inside"),
)  # fmt: skip


def noticed(fault: Fault) -> str | None:
    """Who noticed: ``compiler``, or the name of a test; None where the fault survives."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kernels"
        shutil.copytree(ROOT / "kernels", copy)
        path = copy / "src" / fault.file
        text = path.read_text(encoding="utf-8")
        if text.count(fault.was) != 1:
            sys.exit(
                f"{fault.what}: {fault.file} holds {fault.was!r} {text.count(fault.was)} times, not once"
            )
        path.write_text(text.replace(fault.was, fault.becomes), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "tests/kernels"],
            cwd=ROOT, env={**os.environ, "EDGEKD_KERNELS": str(copy)},
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
    if done.returncode == 0:
        return None
    if "error:" in done.stdout and "make" in done.stdout:
        return "compiler"
    test = re.search(r"(?:FAILED|ERROR) \S+::(\S+)", done.stdout)
    return test[1] if test else sys.exit(f"{fault.what}: {done.stdout[-2000:]}{done.stderr[-500:]}")


def main() -> int:
    """Try the faults; 1 where one survives."""
    chosen = [int(each) for each in sys.argv[1:]] or range(len(FAULTS))
    rows = []
    for index in chosen:
        fault = FAULTS[index]
        by = noticed(fault)
        rows.append({"fault": fault.what, "file": fault.file, "noticed_by": by})
        print(f"{index:2} {fault.file:11} {fault.what}: {by or 'SURVIVES'}", flush=True)
    survived = [row for row in rows if row["noticed_by"] is None]
    print(f"{len(rows) - len(survived)} of {len(rows)} faults noticed")
    if not survived and len(rows) == len(FAULTS):
        covers = ("kernels/src", "kernels/include", "tests/kernels")
        print(results.write("mutants", "make mutants", covers, {"faults": rows}))
    return bool(survived)


if __name__ == "__main__":
    sys.exit(main())
