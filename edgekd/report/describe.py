"""An artifact in a terminal, for ``edgekd inspect``: what it is, what it holds, what was proven.

Plain text without colour, so that it can be piped and compared; hashes are whole, so that they can
be copied. Names may come from somebody else's model: what a terminal would obey is printed as an
escape. It needs no library beyond the device side's: a Bundle is inspected on its device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.artifact import Artifact
from edgekd.report.words import UNJUDGED, duration, percent, size, value, when

_INDENT = "  "
_WORST = 3  # layers
_SHARES = {"accuracy", "teacher_accuracy", "top1", "agreement",
           "accuracy_before", "accuracy_after", "kept_before", "kept_after"}  # fmt: skip


def describe(found: Artifact) -> str:
    """Describe an artifact in a compact text, without a newline at its end.

    Args:
        found: Any artifact.

    Returns:
        Kind, name, hashes, parents, when and where it was made, results, files, and for Student and
        OnnxModel the layer plan, for an Engine what ran, for a Bundle its commands.
    """
    manifest, told = found.manifest, found.manifest.provenance
    head = {"name": found.path.name, "id": manifest.id, "key": manifest.key}
    for name in ("name", "arm", "runtime"):
        if name in found.config:
            head["recipe" if name == "name" else name] = str(found.config[name])
    if "target" in found.config:
        head["target"] = str(found.config["target"]["name"])
    if told:
        head["made"] = (
            f"{when(told['time'])} in {duration(told['seconds'])} on {told['host']} "
            f"({told['machine']}), edgekd {told['edgekd_git']}"
        )
    parts = [f"{found.kind} (schema {manifest.schema_})", *_pairs(head)]
    parts += _section("parents", _pairs(manifest.parents))
    parts += _section("results", _tree(_shortened(found.results)))
    sizes = {name: size(entry.bytes) for name, entry in manifest.files.items()}
    parts += _section(
        f"files ({size(sum(e.bytes for e in manifest.files.values()))})", _sizes(sizes)
    )
    parts += _section("after the graph", _postprocess(found))
    return "\n".join(_harmless(line) for line in parts + _details(found))


def _shortened(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Results whose tables of a row a layer are a count and the worst; ``--json`` has them all."""
    found = results.get("calibration")
    if not found:
        return results
    methods, errors = found["methods"], found["errors"]
    count = Counter(methods.values()).most_common()
    told: dict[str, Any] = {"layers": ", ".join(f"{n} by {m}" for m, n in count) or "none"}
    chosen = {layer: errors[layer][methods[layer]] for layer in errors}
    worst = sorted(chosen, key=lambda layer: -chosen[layer])[:_WORST]
    if worst:
        rows = {layer: f"{chosen[layer]:.3g} by {methods[layer]}" for layer in worst}
        told[f"largest mean squared errors, {len(worst)} of {len(chosen)}"] = rows
    return {**results, "calibration": told}


def _postprocess(found: Artifact) -> list[str]:
    """What the host must do with the outputs, as ``io.json`` names it; a Bundle's arms agree."""
    named = [name for name in found.manifest.files if name.rpartition("/")[2] == "io.json"]
    told = {found.read_json(name).get("postprocess") for name in named}
    return [_INDENT + text for text in sorted(each for each in told if each)]


def _harmless(line: str) -> str:
    """A line in which nothing moves a terminal's cursor or changes its colours."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _details(found: Artifact) -> list[str]:
    """What only one kind has."""
    if found.kind in ("Student", "OnnxModel"):
        return _section("layers", _plan(found.read_json("layers.json")))
    if found.kind == "Engine":
        rows = found.read_json("layers.json")["ran"]
        return _section("ran", _ran(rows)) if rows else []
    if found.kind == "Verdict":
        return [] if found.results["checks"] else _section("gate", [_INDENT + UNJUDGED])
    if found.kind == "Bundle":
        return _section(
            "commands", [_INDENT + c for c in found.read_json("bundle.json")["commands"]]
        )
    return []


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", title, *lines] if lines else []


def _pairs(pairs: Mapping[str, str]) -> list[str]:
    width = max(map(len, pairs), default=0)
    return [f"{_INDENT}{name:<{width}}  {text}" for name, text in pairs.items()]


def _sizes(sizes: Mapping[str, str]) -> list[str]:
    wide, right = max(map(len, sizes), default=0), max(map(len, sizes.values()), default=0)
    return [f"{_INDENT}{name:<{wide}}  {text:>{right}}" for name, text in sizes.items()]


def _tree(results: Mapping[str, Any], depth: int = 1) -> list[str]:
    """Nested results, one value a line, names of one level aligned."""
    width = max((len(n) for n, v in results.items() if not _nested(v)), default=0)
    lines = []
    for name, inner in sorted(results.items(), key=lambda item: _nested(item[1])):
        indent = _INDENT * depth
        if isinstance(inner, dict) and inner:
            lines += [f"{indent}{name}", *_tree(inner, depth + 1)]
        elif _nested(inner):
            for number, row in enumerate(inner, 1):
                lines += [f"{indent}{name}, {number} of {len(inner)}", *_tree(row, depth + 1)]
        else:
            lines.append(f"{indent}{name:<{width}}  {_result(name, inner)}")
    return lines


def _nested(inner: Any) -> bool:
    return bool(inner) and (
        isinstance(inner, dict) or (isinstance(inner, list) and isinstance(inner[0], dict))
    )


def _result(name: str, inner: Any) -> str:
    share = "share" in name or name in _SHARES
    return percent(inner, 2) if share and isinstance(inner, float) else value(inner)


def _plan(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The layer plan; reasons repeat and are long, so they stand below, numbered."""
    reasons: dict[str, int] = {}

    def planned(yes: bool, reason: str) -> str:
        return "yes" if yes else f"no [{reasons.setdefault(reason, len(reasons) + 1)}]"

    table = [("layer", "type", "n", "k", "MACs", "INT8", "2:4")]
    for row in rows:
        numbers = (f"{row[name]:,}" for name in ("n", "k", "macs"))
        below = row["int8"] and row.get("bits", 8) < 8
        int8 = f"{row['bits']} bits" if below else planned(row["int8"], row["int8_reason"])
        sparse = planned(row["sparse"], row["sparse_reason"])
        table.append((row["layer"], row["type"], *numbers, int8, sparse))
    notes = [f"{_INDENT}[{number}] {reason}" for reason, number in reasons.items()]
    return _aligned(table, right=(2, 3, 4)) + notes


def _ran(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    table = [("layer", "ran as", "weight", "input", "output", "INT8")]
    for row in rows:
        ran = row["type"] or "in no engine layer"
        types = (row["weight_dtype"], row["input_dtype"], row["output_dtype"])
        table.append((row["layer"], ran, *types, "yes" if row["int8"] else "no"))
    return _aligned(table)


def _aligned(table: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [
            f"{cell:>{width}}" if column in right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((_INDENT + "  ".join(cells)).rstrip())
    return lines
