"""Faults put into the kernels one at a time: does a test of theirs notice each?

    make mutants                              all of them, and write bench/results/mutants.json
    python bench/kernels/mutants.py 3 17      only these, and print which test noticed

A kernel that no GPU has run is worth what its tests are worth. Each fault, of faults.toml, is one
that a person makes: a barrier forgotten, a pipeline one group short, lanes of the metadata
exchanged, a tail unguarded. The sources are copied, changed, compiled for the emulator and handed
to ``tests/kernels``; a fault that the compiler refuses (the layout proves itself) is noticed too.
One that survives fails the run.
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

import tomllib

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import results  # noqa: E402


@dataclass(frozen=True)
class Fault:
    """One line of the sources as it is, and as a mistake would have it."""

    what: str
    file: str
    was: str
    becomes: str


FAULTS = [Fault(**each) for each in tomllib.loads((HERE / "faults.toml").read_text())["fault"]]


def noticed(fault: Fault) -> str | None:
    """Who noticed: ``compiler``, or the name of a test; None where the fault survives."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kernels"
        shutil.copytree(ROOT / "kernels", copy)
        path = copy / "src" / fault.file
        text = path.read_text(encoding="utf-8")
        if text.count(fault.was) != 1:
            sys.exit(f"{fault.what}: {fault.file} does not hold {fault.was!r} exactly once")
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
