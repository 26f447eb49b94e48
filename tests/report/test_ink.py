"""Only what has a class stays, to a tenth of a pixel."""

from __future__ import annotations

from edgekd.report.ink import inked

SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">
<metadata>who</metadata><g id="patch_1"><path d="M 0 0 L 9 9 z" style="fill: #ffffff"/></g>
<g id="ink line s0"><path d="M 0.04 0 L 10.06 0 L 10.0601 0.001 L 10.1 20 L 5 5 z"/></g>
<g id="ink mark s1"><defs><path id="m1" d="M 0 3 C 1.25 2 3 -1 -0.04 0 z"/></defs>
<g clip-path="url(#p)"><use xlink:href="#m1" x="1.26" y="7" style="fill: red"/></g></g>
<g id="text_1"><text style="font: 9px; text-anchor: middle" x="1" y="2.04">a &lt; b</text></g>
<defs><clipPath id="p"><rect width="1"/></clipPath></defs></svg>"""


def test_classes_and_places_are_kept_and_all_else_goes() -> None:
    assert inked(SVG) == (
        '<path class="line s0" d="M0 0H10.1V20L5 5Z"/>'
        '<path class="mark s1" transform="translate(1.3 7)" d="M0 3C1.2 2 3 -1 0 0Z"/>'
        '<text text-anchor="middle" x="1" y="2">a &lt; b</text>'
    )
