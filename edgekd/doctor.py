"""What this machine can do, verb by verb and target by target, and the command that mends the rest.

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
from edgekd.engine.build import RTX_COMPUTE_CAPABILITIES, Device, find_device
from edgekd.origin import versions

FREE_BYTES = 2 * 1024**3
# What each verb imports besides edgekd's own requirements; the whole chain at once, the page too.
DISTILL = ("torch", "transformers", "nvidia-modelopt", "safetensors")
EXPORT = (*DISTILL, "onnx", "onnx-ir", "onnxruntime")
RUN = (*EXPORT, "jinja2", "matplotlib")
NEEDS = {"run": RUN, "compress": EXPORT, "distill": DISTILL, "export": EXPORT}
TRAIN = "pip install 'edgekd[train]'"
# Runtimes of Engines: these verbs need the one that the Engine they are given was built with.
RUNTIMES = ("onnxruntime", "tensorrt")
MEASURING = {
    "evaluate": "an OnnxModel needs onnxruntime, an Engine its own runtime",
    "bench": "needs the runtime of the Engines it is given",
    "gate": "needs the runtime of the Engine it is given",
}
MEND = {
    "tensorrt": "pip install 'edgekd[trt]' on x86-64; on Jetson use the system's TensorRT from an "
    "environment made with --system-site-packages",
    "tensorrt-rtx": "pip install 'edgekd[rtx]'",
    "onnxruntime": "pip install 'edgekd[ort]'",
    "pip": "python -m ensurepip",
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
    return [
        *_machine(out, device),
        *(_needing(verb, packages) for verb, packages in NEEDS.items()),
        Finding("build", "needs an OnnxModel; what it makes, each target below says", True),
        *(_measuring(verb, words) for verb, words in MEASURING.items()),
        Finding("inspect", "needs nothing more", True),
        *(_target(target.load(name), device) for name in target.names()),
    ]


def _machine(out: Path, device: Device | None) -> list[Finding]:
    free = shutil.disk_usage(out if out.exists() else Path()).free
    return [
        Finding("python", platform.python_version(), True),
        Finding(
            "CUDA device",
            f"{device.name}, compute capability {'.'.join(map(str, device.compute_capability))}"
            if device
            else "none",
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


def _needing(verb: str, packages: tuple[str, ...]) -> Finding:
    """A verb that needs all of some packages."""
    found = versions(*packages)
    missing = [name for name, version in found.items() if version == "absent"]
    words = ", ".join(f"{name} {version}" for name, version in found.items())
    return Finding(verb, f"needs {words}", not missing, TRAIN if missing else "")


def _measuring(verb: str, words: str) -> Finding:
    """A verb that needs the runtime of what it is given."""
    here = versions(*RUNTIMES)
    found = ", ".join(f"{name} {version}" for name, version in here.items())
    good = set(here.values()) != {"absent"}
    return Finding(verb, f"{words}: {found}", good, "" if good else MEND["onnxruntime"])


def _target(wanted: target.Target, device: Device | None) -> Finding:
    """What `edgekd build --target` would make here."""
    what = f"target {wanted.name}"
    here = versions(*RUNTIMES, "tensorrt-rtx")
    if wanted.runtime == "onnxruntime":
        good = here["onnxruntime"] != "absent"
        mend = "" if good else MEND["onnxruntime"]
        return Finding(what, "Engine, built and measured here" if good else "nothing", good, mend)
    on_it = device is not None and _is_it(wanted, device)
    if on_it and here["tensorrt"] != "absent":
        return _on_the_device(what, wanted, here["tensorrt"])
    made = _elsewhere(what, wanted, here["tensorrt-rtx"])
    if on_it:
        return Finding(what, f"{made.found}; no TensorRT here", False, MEND["tensorrt"])
    return made


def _elsewhere(what: str, wanted: target.Target, rtx: str) -> Finding:
    """This machine is not the target, or cannot build for it: a Bundle, or why not even that."""
    if wanted.compute_capability not in RTX_COMPUTE_CAPABILITIES:
        number = "".join(map(str, wanted.compute_capability or ()))
        return _bundle(what, f"no evidence, as tensorrt-rtx has no SM{number}")
    if rtx != "absent":
        return _bundle(what, f"with evidence by tensorrt-rtx {rtx}")
    return Finding(what, "nothing: its Bundle needs tensorrt-rtx", False, MEND["tensorrt-rtx"])


def _is_it(wanted: target.Target, device: Device) -> bool:
    facts = (device.name, device.compute_capability, device.multiprocessors)
    return facts == (wanted.device, wanted.compute_capability, wanted.multiprocessors)


def _on_the_device(what: str, wanted: target.Target, version: str) -> Finding:
    """This machine is the target and has TensorRT: an Engine, or why not."""
    if wanted.accepts_runtime(version):
        return Finding(what, "Engine, built and measured here", True)
    return Finding(
        what,
        f"no Engine: it has TensorRT {wanted.runtime_version}, this machine {version}",
        False,
        "name the target that is this machine, or ask for a Bundle with edgekd build --bundle",
    )


def _bundle(what: str, evidence: str) -> Finding:
    """A Bundle; edgekd's own wheel is written without tools, pip downloads the others."""
    if versions("pip")["pip"] == "absent":
        found = f"Bundle, {evidence}; without pip it lacks the wheels the device needs"
        return Finding(what, found, False, MEND["pip"])
    return Finding(what, f"Bundle, {evidence}; pip fetches its wheels from your index", True)
