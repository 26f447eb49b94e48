"""What this machine can do, verb by verb and target by target, and the command that mends the rest.

Nothing heavy is imported: a package counts by its metadata, a CUDA device by asking the driver. So
the doctor also answers where half of the installation is broken, which is when it is needed. In a
checkout it also says what `make test` needs from the system.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd import target
from edgekd.engine.build import RTX_COMPUTE_CAPABILITIES, Device, find_device
from edgekd.errors import at_root, checkout, install
from edgekd.origin import versions

FREE_BYTES = 2 * 1024**3
# What each verb imports besides edgekd's own requirements; the whole chain at once, the page too.
NETWORK = ("torch", "transformers")
DISTILL = (*NETWORK, "nvidia-modelopt", "safetensors")
EXPORT = (*DISTILL, "onnx", "onnx-ir", "onnxruntime")
PAGE = ("jinja2", "matplotlib")
NEEDS = {
    "init": NETWORK,
    "plan": NETWORK,
    "run": (*EXPORT, *PAGE),
    "compress": EXPORT,
    "distill": DISTILL,
    "export": EXPORT,
    "recipe digits-vit": ("scikit-learn",),  # where the shipped recipe's digits come from
    "report": PAGE,
}
# Runtimes of Engines: these verbs need the one that the Engine they are given was built with.
RUNTIMES = ("onnxruntime", "tensorrt")
MEASURING = {
    "evaluate": "an OnnxModel needs onnxruntime, an Engine its own runtime",
    "bench": "needs the runtime of the Engines it is given",
    "gate": "needs the runtime of the Engine it is given",
    "infer": "an OnnxModel needs onnxruntime, an Engine its own runtime, a Student torch",
}
EXTRAS = {"onnxruntime": "ort", "tensorrt-rtx": "rtx", "tensorrt": "trt"}
# What the tests need and pip cannot install: names of commands, of which one is enough.
SYSTEM = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "a C++ compiler": ("c++",),
    "CPython 3.10": ("python3.10",),
}
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"


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
        Findings: the machine, each verb, each target; in a checkout what its tests need too.
    """
    device = find_device()
    return [
        *_machine(out, device),
        *(_needing(verb, packages) for verb, packages in NEEDS.items()),
        Finding("build", "needs an OnnxModel; what it makes, each target below says", True),
        *(_measuring(verb, words) for verb, words in MEASURING.items()),
        Finding("inspect", "needs nothing more", True),
        *(_target(target.load(name), device) for name in target.names()),
        *(_system(what, commands) for what, commands in SYSTEM.items() if checkout()),
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
    return Finding(verb, f"needs {words}", not missing, install("train") if missing else "")


def _measuring(verb: str, words: str) -> Finding:
    """A verb that needs the runtime of what it is given."""
    here = versions(*RUNTIMES)
    found = ", ".join(f"{name} {version}" for name, version in here.items())
    good = set(here.values()) != {"absent"}
    return Finding(verb, f"{words}: {found}", good, "" if good else _mend("onnxruntime"))


def _mend(package: str) -> str:
    """The command that brings a runtime, or pip."""
    if package == "pip":
        return "python -m ensurepip"
    command = install(EXTRAS[package])
    if package != "tensorrt":
        return command
    return (
        f"{command} on x86-64; on Jetson use the system's TensorRT from an environment made with "
        "--system-site-packages"
    )


def _system(what: str, commands: tuple[str, ...]) -> Finding:
    """Something that the tests need from the system."""
    if what == "CPython 3.10":
        found = next(filter(_runs_310, (*commands, *map(str, PYENV.glob("3.10*/bin/python")))), "")
    else:
        found = next(filter(None, map(shutil.which, commands)), "")
    mend = "" if found else at_root("make system-deps")
    return Finding(what, f"the tests need it: {found or 'absent'}", bool(found), mend)


def _runs_310(command: str) -> bool:
    """Whether it is a Python 3.10 that runs: a shim on PATH may name one that does not."""
    ask = [command, "-c", "import ensurepip, sys; print(sys.version_info[:2])"]
    with contextlib.suppress(OSError):
        done = subprocess.run(ask, capture_output=True, text=True, check=False)
        return done.stdout.strip() == "(3, 10)"
    return False


def _target(wanted: target.Target, device: Device | None) -> Finding:
    """What `edgekd build --target` would make here."""
    what = f"target {wanted.name}"
    here = versions(*RUNTIMES, "tensorrt-rtx")
    if wanted.runtime == "onnxruntime":
        good = here["onnxruntime"] != "absent"
        mend = "" if good else _mend("onnxruntime")
        return Finding(what, "Engine, built and measured here" if good else "nothing", good, mend)
    on_it = device is not None and _is_it(wanted, device)
    if on_it and here["tensorrt"] != "absent":
        return _on_the_device(what, wanted, here["tensorrt"])
    made = _elsewhere(what, wanted, here["tensorrt-rtx"])
    if on_it:
        return Finding(what, f"{made.found}; no TensorRT here", False, _mend("tensorrt"))
    return made


def _elsewhere(what: str, wanted: target.Target, rtx: str) -> Finding:
    """This machine is not the target, or cannot build for it: a Bundle, or why not even that."""
    if wanted.compute_capability not in RTX_COMPUTE_CAPABILITIES:
        number = "".join(map(str, wanted.compute_capability or ()))
        return _bundle(what, f"no evidence, as tensorrt-rtx has no SM{number}")
    if rtx != "absent":
        return _bundle(what, f"with evidence by tensorrt-rtx {rtx}")
    return Finding(what, "nothing: its Bundle needs tensorrt-rtx", False, _mend("tensorrt-rtx"))


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
        return Finding(what, found, False, _mend("pip"))
    return Finding(what, f"Bundle, {evidence}; pip fetches its wheels from your index", True)
