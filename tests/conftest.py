"""Shared by every test: one thread a process, `tiny`, and one way to skip, which is counted."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The workers share the cores; a second thread pool in each makes them slower, not faster.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Networks, data and recipes of tests; recipes name them as any user's module, ``python:tiny...``.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module", autouse=True)
def _what_a_module_left_is_collected() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.collect()


@pytest.fixture(autouse=True)
def _only_what_is_new_is_looked_at(_what_a_module_left_is_collected: None) -> None:
    """Take what is alive before a test, all imported libraries above all, from the collector.

    An export collects at every step, and looking through a whole run's libraries each time would
    take a quarter of the run.
    """
    gc.freeze()


@pytest.fixture(scope="session")
def needs() -> Callable[[str, bool, str], None]:
    """The only way to skip a test: for want of what only root, not pip, can install.

    ``needs("python3.10", found, "make system-deps")`` skips with that reason, which pytest counts
    at the end of the run. With EDGEKD_STRICT=1 (``make test STRICT=1``, CI) it fails instead.
    """

    def check(what: str, found: bool, how: str) -> None:
        if found:
            return
        reason = f"needs {what}, which only root can install: {how}"
        if os.environ.get("EDGEKD_STRICT") == "1":
            pytest.fail(f"{reason} (STRICT=1 allows no skip)")
        pytest.skip(reason)

    return check


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of public data sets (``cifar10/``, ``sst2/``), for slow tests alone."""
    root = os.environ.get("EDGEKD_DATA")
    if not root:
        pytest.skip("needs real data sets: set EDGEKD_DATA to the folder of cifar10/ and sst2/")
    return Path(root)
