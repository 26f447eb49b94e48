"""Why a network cannot be exported: the operator and the line of its own code, and what to do.

The exporters name their own files and nodes. Here the network runs once more, untraced, while
every operator it calls is noted with the line that called it; what the exporter complained of is
looked up there. The same run shows which lines read a tensor's value (an `if`, an `int()`, an
`.item()`): a graph has one course for all inputs and cannot follow them.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import edgekd
from edgekd.data import IO
from edgekd.errors import ContractError, EdgekdError, ToolchainError
from edgekd.export.dynamo import CHANGING
from edgekd.models import Tensors, forward

_NOT_THEIRS = tuple(
    str(path)
    for path in (
        Path(torch.__file__).parent,
        Path(edgekd.__file__).parent,
        Path(sysconfig.get_path("stdlib")) / "contextlib.py",
        Path(sysconfig.get_path("purelib")) / "onnxscript",
    )
)
_READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal"}
# What changes with the data so that no shape can be told before: a graph might, an engine cannot.
_OPERATOR = re.compile(r"(?:operator '?\^?|op='|namespace )(\w+)(?:::|\.)(\w+)|\b(aten)::(\w+)")
_INSTEAD = "replace that operator or control flow by tensor operations"

Place = tuple[str, int]


def require_any_batch(model: nn.Module, example: Tensors, io: IO) -> None:
    """Refuse a network that takes one row at a time, or none at all.

    Args:
        model: In eval mode.
        example: {name: tensor[batch, ...]}, batch of at least 2.
        io: Names of the outputs.

    Raises:
        ContractError: It fails on these rows and answers the first of them alone.
    """
    rows = len(next(iter(example.values())))
    with torch.no_grad():
        try:
            forward(model, example, io)
            return
        except EdgekdError:
            raise
        except Exception as error:  # the network's own code raises what it likes
            failed = error
        try:
            forward(model, {name: tensor[:1] for name, tensor in example.items()}, io)
        except Exception:
            return  # it fails on any batch: the exporter's own complaint is about that
    raise ContractError(
        f"export: the network takes a batch of 1 only: on {rows} rows it fails"
        f"{_at(_innermost(failed))} ({_told(failed)}); an engine must take any batch: take the "
        "batch size from the input's shape there, x.shape[0] or -1, not the number 1"
    ) from failed


def require_no_reads(places: Sequence[Place], model: nn.Module, example: Tensors, io: IO) -> None:
    """Refuse a traced network whose course depends on its data, which the trace then lost.

    Args:
        places: (file, line) where the tracer met a tensor used as a Python value.
        model: In eval mode.
        example: What it was traced with.
        io: Names of the outputs.

    Raises:
        ToolchainError: One of these lines also reads a tensor's value when nothing is traced.
    """
    if not places:
        return
    calls = _calls(model, example, io)
    reads = [place for name, place in calls if name in _READS and place in set(places)]
    if reads:
        raise ToolchainError(
            f"export: the network's course depends on its data{_at(reads[0])}; the graph would "
            f"always go the way of one example: {_INSTEAD} (torch.where for a choice)"
        )


def explained(error: Exception, model: nn.Module, example: Tensors, io: IO) -> EdgekdError:
    """The sentence for what an exporter raised.

    Args:
        error: What it raised.
        model: In eval mode.
        example: What was to be exported.
        io: Names of the outputs.
    """
    chain = list(_chain(error))
    text = "\n".join(str(each) for each in chain)
    calls = _calls(model, example, io)
    if "specialized it to be a constant" in text or "Constraints violated" in text:
        found = re.search(r"marked (.+?) as dynamic.*?constant \((\d+)\)", text, re.DOTALL)
        what = f" ({found[1]} became {found[2]})" if found else ""
        return ContractError(
            "export: the network keeps a size of the example it was exported with"
            f"{what}: {CHANGING}"
        )
    operator = _named(text, calls)
    if operator is not None:
        name, place = operator
        return ToolchainError(
            f"export: torch.onnx could not trace the network: ONNX has no operator for {name}"
            f"{_at(place)}; {_INSTEAD}"
        )
    reads = [place for name, place in calls if name in _READS and place is not None]
    if reads and re.search(r"data-dependent|DataDependent|_local_scalar_dense", text):
        return ToolchainError(
            "export: torch.onnx could not trace the network: its course depends on its data"
            f"{_at(reads[0])}; {_INSTEAD} (torch.where for a choice)"
        )
    inner = chain[-1]
    reason = (str(inner).strip() or type(inner).__name__).splitlines()[0]
    return ToolchainError(
        f"export: torch.onnx could not trace the network: {reason}{_at(_innermost(error))}; "
        f"{_INSTEAD}"
    )


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operator that is called, and the line of the network's code that called it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[str, Place | None]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().partition(".")[0]
        self.found.append((name, _theirs(traceback.extract_stack())))
        return func(*args, **(kwargs or {}))


def _calls(model: nn.Module, example: Tensors, io: IO) -> list[tuple[str, Place | None]]:
    watch = _Calls()
    try:
        with torch.no_grad(), watch:
            forward(model, example, io)
    except Exception:  # it fails by itself; what it called until then is known
        return watch.found
    return watch.found


def _named(text: str, calls: Sequence[tuple[str, Place | None]]) -> tuple[str, Place | None] | None:
    """The operator an exporter's complaint names, and where it is called."""
    for groups in _OPERATOR.findall(text):
        space, name = (groups[0], groups[1]) if groups[0] else (groups[2], groups[3])
        # An exporter may have taken a special operator apart into one of a similar name.
        for each, place in calls:
            if each == f"{space}::{name}" or (space == "prims" and each.endswith(f"_{name}")):
                return each, place
    return None


def _chain(error: BaseException) -> Iterable[BaseException]:
    """An exception and what caused it, the root last."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _innermost(error: BaseException) -> Place | None:
    """The last line of the network's own code that an exception passed."""
    for each in reversed(list(_chain(error))):
        place = _theirs(traceback.extract_tb(each.__traceback__))
        if place is not None:
            return place
    return None


def _theirs(frames: Sequence[traceback.FrameSummary]) -> Place | None:
    for frame in reversed(frames):
        if not frame.filename.startswith((*_NOT_THEIRS, "<")) and frame.lineno is not None:
            return frame.filename, frame.lineno
    return None


def _at(place: Place | None) -> str:
    import linecache

    if place is None:
        return ""
    code = linecache.getline(*place).strip()
    return f" in {place[0]}, line {place[1]} (`{code}`)"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
