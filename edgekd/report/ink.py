"""What of matplotlib's SVG the page keeps: where the ink is, and none of its colours.

Colours, widths and fonts are the page's, by class, so that one drawing serves light, dark, print
and a phone, and carries neither a font nor an id. An artist names its classes in its gid; what has
none (backgrounds, spines) is not kept, and neither are clip paths, so limits have to hold the data.
Coordinates keep a tenth of a pixel: the same curves in a third of the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

INK = "ink "  # how a gid begins that names classes

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?|[A-Za-z]")
_ANCHOR = re.compile(r"text-anchor: (middle|end)")


def inked(text: str) -> str:
    """The content of an svg element.

    Args:
        text: What matplotlib's SVG backend wrote, with ``svg.fonttype`` none.
    """
    root = ElementTree.fromstring(text)
    shapes = {shape.get("id"): shape.get("d", "") for shape in root.iter(f"{_SVG}path")}

    def walk(found: ElementTree.Element, classes: str) -> Iterator[str]:
        name = found.get("id", "")
        if name.startswith(INK):
            classes = name[len(INK) :]
        if found.tag == f"{_SVG}text" and found.text:
            yield _text(found, classes)
        elif found.tag == f"{_SVG}path" and classes:
            yield f'<path class="{classes}" d="{_short(found.get("d", ""))}"/>'
        elif found.tag == f"{_SVG}use" and classes:
            x, y = (_round(float(found.get(axis, "0"))) for axis in "xy")
            shape = _short(shapes[found.get(_HREF, "")[1:]])
            yield f'<path class="{classes}" transform="translate({x} {y})" d="{shape}"/>'
        elif found.tag != f"{_SVG}defs":
            for inner in found:
                yield from walk(inner, classes)

    return "".join(walk(root, ""))


def _text(found: ElementTree.Element, classes: str) -> str:
    kept = ElementTree.Element("text", {"class": classes} if classes else {})
    if anchor := _ANCHOR.search(found.get("style", "")):
        kept.set("text-anchor", anchor[1])
    for axis in "xy":
        kept.set(axis, _round(float(found.get(axis, "0"))))
    kept.text = found.text
    return ElementTree.tostring(kept, encoding="unicode")


def _short(path: str) -> str:
    """A path to a tenth of a pixel, with H and V where a line runs along an axis."""
    words = _NUMBER.findall(path)
    parts, command, x, y, at = [], "", "", "", 0
    while at < len(words):
        if words[at].isalpha():
            command, at = words[at], at + 1
        if command in "zZ":
            parts.append("Z")
            continue
        length = {"M": 2, "L": 2, "Q": 4, "C": 6}[command]
        numbers = [_round(float(word)) for word in words[at : at + length]]
        at += length
        if command != "L":
            parts.append(command + " ".join(numbers))
        elif numbers != [x, y]:
            moved = f"V{numbers[1]}" if numbers[0] == x else f"L{numbers[0]} {numbers[1]}"
            parts.append(f"H{numbers[0]}" if numbers[1] == y else moved)
        x, y = numbers[-2:]
    return "".join(parts)


def _round(number: float) -> str:
    return f"{round(number, 1) + 0.0:g}"  # -0.0 + 0.0 is 0.0
