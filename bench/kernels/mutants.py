"""Faults put into the kernels one at a time: does a test of theirs notice each?

    make mutants                              all of them, and write bench/results/mutants.json
    python bench/kernels/mutants.py 3 17      only these, and print which test noticed

A kernel that no GPU has run is worth what its tests are worth. Each fault, of
``tests/kernels/faults.toml``, is one that a person makes: a barrier forgotten, a pipeline one group
short, lanes of the metadata exchanged, a tail unguarded. The sources are copied, changed, compiled
for the emulator and handed to ``tests/kernels``; a fault that the compiler refuses (the layout
proves itself) is noticed too, and so is one with which the tests do not end. One that survives
fails the run.

The sources go through unchanged first, and must pass: where they do not, every fault would count as
noticed, by whatever is broken here.
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

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
TESTS = "tests/kernels"  # in which the faults lie too, so that a result covers them
LONGEST_S = 600  # the tests take under one minute
sys.path.insert(0, str(ROOT / "bench"))

import results  # noqa: E402


@dataclass(frozen=True)
class Fault:
    """Lines of the sources as they are, and as a mistake would have them."""

    what: str
    file: str
    was: str
    becomes: str


FAULTS = [
    Fault(**each)
    for each in tomllib.loads((ROOT / TESTS / "faults.toml").read_text(encoding="utf-8"))["fault"]
]


def noticed(fault: Fault | None) -> str | None:
    """Who noticed: ``compiler``, ``no end``, or a test's name; None where all tests pass.

    Args:
        fault: What is seeded; None runs the sources as they are.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kernels"
        shutil.copytree(ROOT / "kernels", copy)
        if fault is not None:
            seed(fault, copy / "src" / fault.file)
        # What nvcc makes of the sources is another gate's, and takes half a minute a fault.
        compiled = f"--ignore={TESTS}/test_whole_gate.py"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", TESTS,
                   compiled]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, "EDGEKD_KERNELS": str(copy)},
                capture_output=True, text=True, check=False, timeout=LONGEST_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "no end"
    if done.returncode == 0:
        return None
    if "error:" in done.stdout and "make" in done.stdout:
        return "compiler"
    test = re.search(r"(?:FAILED|ERROR) \S+::(\S+)", done.stdout)
    what = "the unchanged sources" if fault is None else fault.what
    return test[1] if test else sys.exit(f"{what}: {done.stdout[-2000:]}{done.stderr[-500:]}")


def seed(fault: Fault, path: Path) -> None:
    """Put a fault into one file of a copy."""
    text = path.read_text(encoding="utf-8")
    if text.count(fault.was) != 1:
        sys.exit(f"{fault.what}: {fault.file} does not hold {fault.was!r} exactly once")
    path.write_text(text.replace(fault.was, fault.becomes), encoding="utf-8")


def main() -> int:
    """Try the faults; 1 where one survives."""
    chosen = [int(each) for each in sys.argv[1:]] or range(len(FAULTS))
    if (broken := noticed(None)) is not None:
        sys.exit(f"without a fault: {broken}, expected every test to pass: mend that first")
    print("without a fault: every test passes", flush=True)
    rows = []
    for index in chosen:
        fault = FAULTS[index]
        by = noticed(fault)
        rows.append({"fault": fault.what, "file": fault.file, "noticed_by": by})
        print(f"{index:2} {fault.file:11} {fault.what}: {by or 'SURVIVES'}", flush=True)
    survived = [row for row in rows if row["noticed_by"] is None]
    print(f"{len(rows) - len(survived)} of {len(rows)} faults noticed")
    if not survived and len(rows) == len(FAULTS):
        covers = ("kernels/src", "kernels/include", TESTS)
        print(results.write("mutants", "make mutants", covers, {"faults": rows}))
    return bool(survived)


if __name__ == "__main__":
    sys.exit(main())
