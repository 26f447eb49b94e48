"""Results that are committed: what was run, on what, and which sources they hold for.

    python bench/results.py slow      record that the slow tests passed on these sources

A result names the modules it covers and the hash of their source. When one of them changes the
result is stale: a test says so, and the result's own command makes it anew. It covers as little as
is honest.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.origin import source_hash, versions

FOLDER = Path(__file__).parent / "results"
# What a kill can break: how artifacts are written, and the one stage that keeps checkpoints.
SLOW = ("edgekd.artifact", "edgekd.durable", "edgekd.distill.loop")


def write(name: str, command: str, covers: Sequence[str], content: Mapping[str, Any]) -> Path:
    """Write ``bench/results/<name>.json``.

    Args:
        name: File name without its ending.
        command: What makes the result anew.
        covers: Modules whose change makes it stale.
        content: The numbers.
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
        "covers": {module: source_hash(module) for module in covers},
        **content,
    }
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def stale(path: Path) -> list[str]:
    """Modules that changed since a result was made."""
    covers = json.loads(path.read_text(encoding="utf-8"))["covers"]
    return [module for module, found in covers.items() if source_hash(module) != found]


def processor() -> str:
    """Model name of the processor."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1] if found else platform.processor()


if __name__ == "__main__":
    if sys.argv[1:] != ["slow"]:
        sys.exit(__doc__)
    print(write("slow", "make slow", SLOW, {"slow_tests": "passed"}))
