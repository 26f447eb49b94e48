"""Results that are committed: what was run, on what, and which sources they hold for.

    python bench/results.py slow      record that the slow tests passed on these sources

A result names the modules, or folders (with a slash), that it covers, and the hash of their source.
When one of them changes the result is stale: a test says so, and the result's own command makes it
anew. It covers as little as is honest.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.durable import replace_file
from edgekd.origin import source_hash, versions

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "bench" / "results"
# What a kill can break: how artifacts are written, and the one stage that keeps checkpoints.
SLOW = ("edgekd.artifact", "edgekd.durable", "edgekd.distill.loop")


def write(
    name: str, command: str, covers: Sequence[str], content: Mapping[str, Any],
    needs: str | None = None,
) -> Path:  # fmt: skip
    """Write ``bench/results/<name>.json``.

    Args:
        name: File name without its ending.
        command: What makes the result anew.
        covers: Modules and folders whose change makes it stale.
        content: The numbers.
        needs: A device without which the command cannot run: CI has none, so that such a result may
            be stale, and is said to be.
    """
    document = {
        "command": command,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "state": "shared and uncontrolled",
        },
        "versions": versions("torch", "transformers", "nvidia-modelopt", "onnx", "onnxruntime"),
        "covers": {name: digest(name) for name in covers},
        **({} if needs is None else {"needs": needs}),
        **content,
    }
    path = FOLDER / f"{name}.json"
    text = json.dumps(document, indent=1) + "\n"
    # A run that is cut off while it writes leaves what it wrote before.
    replace_file(path, lambda new: new.write_text(text, encoding="utf-8"))
    return path


def stale(path: Path) -> list[str]:
    """Modules and folders that changed since a result was made."""
    covers = json.loads(path.read_text(encoding="utf-8"))["covers"]
    return [name for name, found in covers.items() if digest(name) != found]


def digest(name: str) -> str:
    """SHA-256 (hex) of a module's source, or of the files below a folder of the repository."""
    if "/" not in name:
        return source_hash(name)
    total, folder = hashlib.sha256(), ROOT / name
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(ROOT).as_posix()} {path.stat().st_size}\n".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def peak_bytes() -> int:
    """Largest resident set of this process since it was started.

    Not `getrusage`'s: that of a process that a large one starts begins at the large one's.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None, "the kernel reports no VmHWM"
    return int(found[1]) * 1024


def processor() -> str:
    """Model name of the processor."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1] if found else platform.processor()


if __name__ == "__main__":
    if sys.argv[1:] != ["slow"]:
        sys.exit(__doc__)
    print(write("slow", "make slow", SLOW, {"slow_tests": "passed"}))
