"""The one cache directory: what is slow to get again and is no artifact, keyed by hash.

Wheels from the index (`edgekd.engine.wheel`), and TensorRT's timing caches: how long each tactic
took for each layer shape. Timing is most of a build, minutes on a Jetson, and a rebuild after a
change of the model, or of the next arm, asks mostly for shapes that were timed before. TensorRT
takes such timings on one device with one version, which make the key. Two things follow that a
person should know, and why every Engine says whether its build was given timings:

* With them a rebuild picks the tactics of the first build, also where that one was unlucky. The
  bytes of a plan are no function of the question either way (see `edgekd.engine.build`).
* They do not know the power mode they were taken in. After a change of it remove ``timings-*``;
  nothing but time is lost.

TensorRT-RTX times nothing when it builds: it compiles its kernels where the plan runs, and keeps
those in a runtime cache. The only plans of it that are made here are never run.

A cache helps or is not there: one that is damaged or cannot be written costs a word and some time,
never the build.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.durable import lock, replace_file
from edgekd.errors import ArtifactError
from edgekd.progress import say

_DIGEST_BYTES = hashlib.sha256().digest_size


def directory() -> Path:
    """``$XDG_CACHE_HOME/edgekd``, by default ``~/.cache/edgekd``; it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edgekd"


def timings(device: Mapping[str, Any], version: str) -> Path:
    """The file of tactic timings taken on a device.

    Args:
        device: Name, compute capability, multiprocessors and driver.
        version: TensorRT's.
    """
    key = hashlib.sha256(json.dumps([device, version], sort_keys=True).encode()).hexdigest()
    return directory() / f"timings-{key[:16]}"


def read(file: Path) -> bytes:
    """What `keep` kept, nothing where there is none or one byte is not what was kept."""
    try:
        content = file.read_bytes()
    except OSError:
        return b""
    digest, kept = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(kept).digest() != digest:
        say(f"{file}: is damaged and not used; the build writes it anew")
        return b""
    return kept


def keep(file: Path, content: bytes) -> None:
    """Replace a file of the cache; of two builds at once the later one stays.

    Args:
        file: From `timings`.
        content: What the next build is to be given.
    """
    whole = hashlib.sha256(content).digest() + content
    try:
        with lock(file.parent / ".work" / f"{file.name}.lock"):
            replace_file(file, lambda path: path.write_bytes(whole))
    except (OSError, ArtifactError) as error:
        say(f"{file}: could not be kept ({error}); the next build is as slow as this one")
