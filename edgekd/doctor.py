"""What this machine can do, what is missing, and the command that mends it.

Nothing heavy is imported: a package counts by its metadata, a CUDA device by asking the driver. So
the doctor also answers where half of the installation is broken, which is when it is needed.
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd import target
from edgekd.engine.build import RTX_COMPUTE_CAPABILITIES, find_device
from edgekd.origin import versions

FREE_BYTES = 2 * 1024**3
CAN = {
    "distill": ("torch", "transformers", "nvidia-modelopt", "safetensors"),
    "export": ("torch", "onnx", "onnx-ir", "onnxruntime", "nvidia-modelopt"),
    "build for cpu, evaluate": ("onnxruntime",),
    "evidence for A100 (SM80)": ("tensorrt-rtx",),
    "engine for a CUDA target": ("tensorrt",),
    "report": ("jinja2",),
    "progress bars": ("rich",),
}
MEND = {
    "tensorrt": "pip install 'edgekd[trt]' on x86-64; on Jetson use the system's TensorRT from an "
    "environment made with --system-site-packages",
    "tensorrt-rtx": "pip install 'edgekd[rtx]'",
    "onnxruntime": "pip install 'edgekd[ort]'",
    "rich": "pip install 'edgekd[device]'",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        what: What was looked for.
        found: What is there, in words.
        good: Whether it is as it should be; a thing only some machines need is not bad to lack.
        mend: The command that changes it, empty where there is nothing to do.
    """

    what: str
    found: str
    good: bool
    mend: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def doctor(out: Path) -> list[Finding]:
    """Look at this machine.

    Args:
        out: Where artifacts would go; its disk is looked at.

    Returns:
        Findings: the machine, each verb, each target.
    """
    device = find_device()
    free = shutil.disk_usage(out if out.exists() else Path()).free
    findings = [
        Finding("python", platform.python_version(), True),
        Finding(
            "CUDA device",
            f"{device.name}, compute capability {device.compute_capability}" if device else "none",
            device is not None,
            "" if device else "run on a machine with an NVIDIA driver, or take a Bundle to one",
        ),
        Finding(
            f"free space for {out}",
            f"{free / 1024**3:.1f} GiB",
            free >= FREE_BYTES,
            "" if free >= FREE_BYTES else "free at least 2 GiB, or choose another --out",
        ),
    ]
    findings += [_ability(what, packages) for what, packages in CAN.items()]
    return findings + [_target(target.load(name)) for name in target.names()]


def _ability(what: str, packages: tuple[str, ...]) -> Finding:
    found = versions(*packages)
    missing = [name for name, version in found.items() if version == "absent"]
    words = ", ".join(f"{name} {version}" for name, version in found.items())
    mend = MEND.get(missing[0], "pip install 'edgekd[train]'") if missing else ""
    return Finding(what, words, not missing, mend)


def _target(wanted: target.Target) -> Finding:
    """What `edgekd build --target` would make here."""
    here = versions("onnxruntime", "tensorrt", "tensorrt-rtx")
    if wanted.runtime == "onnxruntime":
        good = here["onnxruntime"] != "absent"
        return Finding(f"target {wanted.name}", "Engine" if good else "nothing", good,
                       "" if good else MEND["onnxruntime"])  # fmt: skip
    device = find_device()
    fits = (
        device is not None
        and (device.name, device.compute_capability) == (wanted.device, wanted.compute_capability)
        and here["tensorrt"] != "absent"
        and wanted.accepts_runtime(here["tensorrt"])
    )
    if fits:
        return Finding(f"target {wanted.name}", "Engine, built and measured here", True)
    if wanted.compute_capability not in RTX_COMPUTE_CAPABILITIES:
        return Finding(f"target {wanted.name}", "Bundle; no evidence (no such SM)", True)
    if here["tensorrt-rtx"] != "absent":
        return Finding(f"target {wanted.name}", "Bundle, with evidence", True)
    return Finding(f"target {wanted.name}", "nothing", False, MEND["tensorrt-rtx"])
