"""The page as a browser, a screen reader and a stranger's model name meet it."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgekd.artifact import Artifact
from edgekd.errors import ArtifactError
from edgekd.report import report
from edgekd.report.claims import claims
from edgekd.report.collection import Collection

from .conftest import A100, CPU, Maker
from .latencies import latency, samples, scenario

STATES = {"proven", "evidence", "not measured", "failed"}
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """What the tests ask of a page; raises nothing and forgives nothing."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.unbalanced: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(t for tag, t in self.texts if tag != "style").split())


def written(artifacts: list[Artifact], path: Path) -> str:
    return report(artifacts, path / "page" / "report.html").read_text(encoding="utf-8")


def test_the_page_is_whole_and_refers_to_nothing_else(
    whole: list[Artifact], tmp_path: Path
) -> None:
    text = written(whole, tmp_path)
    page = Page(text)
    assert page.unbalanced == []
    assert page.open == []
    assert len(text) < 2_000_000
    assert not re.search(r"https?://|url\(|@import", text)
    assert {"script", "img", "iframe", "object", "form"}.isdisjoint(tag for tag, _ in page.tags)
    policy = page.all("meta")[2]["content"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert [link["href"] for link in page.all("link")] == ["data:,"]


def test_ids_are_unique_and_every_reference_resolves(whole: list[Artifact], tmp_path: Path) -> None:
    page = Page(written(whole, tmp_path))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in page.all("a")]
    assert len(links) > 20
    assert {link[0] for link in links} == {"#"}
    assert {link[1:] for link in links} <= set(ids)
    labels = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    assert set(labels) <= set(ids)


def test_tables_have_captions_and_scopes_and_headings_keep_their_order(
    whole: list[Artifact], tmp_path: Path
) -> None:
    text = written(whole, tmp_path)
    page = Page(text)
    assert len(page.all("table")) > 10
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in attributes for attributes in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[:2] == [1, 2]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    # Whatever scrolls can be reached and is named; the claims table reflows instead.
    assert text.count('class="scroll" role="region"') == len(page.all("table")) - 1
    drawings = page.all("svg")
    assert drawings
    assert all(a.get("aria-hidden") == "true" or a.get("aria-label") for a in drawings[:4])


def test_every_claim_has_its_state_on_the_page(whole: list[Artifact], tmp_path: Path) -> None:
    text = written(whole, tmp_path)
    body = text[text.index('<table class="claims"') :]
    body = body[: body.index("</table>")]
    badges = re.findall(r'<span class="state [a-z-]+">(?:\S) ([a-z ]+)</span>', body)
    findings = [f for claim in claims(Collection(whole)) for f in claim.findings]
    assert badges == [finding.state for finding in findings]
    assert set(badges) <= STATES
    assert "Not measured: no such device here." in body


def test_the_page_says_what_went_in_and_came_out(whole: list[Artifact], tmp_path: Path) -> None:
    text = Page(written(whole, tmp_path)).text
    for made in whole:
        assert made.path.name in text
        assert made.id in text
    for words in (
        "method 2:4 INT8: magnitude",  # the dense arm has no such section
        "model hf:tiny",
        "edgekd build model --out out/sparse",
        "1, missing: numpy",
    ):
        assert words in text
    assert "97.0% 93.6% to 98.6%" in text  # agreement
    assert "0.012 0.0080 to 0.020" in text  # KL, nats
    assert "net.fc1 Linear 16 32 3,000 75.0% yes yes gemm Int8 Int8 to Half" in text
    assert "no n is 3" in text
    assert "2:4 INT8 75.00% 75.00%" in text
    # 512 weights of 0.625 bytes and 48 of 2, against 560 of 4.
    assert "416 B 19%" in text
    assert "dense INT8 ships, and that is a useful answer too." in text


def test_equal_artifacts_make_equal_bytes_in_any_order_and_number(
    whole: list[Artifact], tmp_path: Path
) -> None:
    shuffled = [*whole, *whole[:3]]
    random.Random(0).shuffle(shuffled)
    assert written(shuffled, tmp_path / "a") == written(whole, tmp_path / "b")


def test_the_page_holds_no_path_of_this_machine(whole: list[Artifact], tmp_path: Path) -> None:
    assert str(tmp_path) not in written(whole, tmp_path)


def test_names_from_a_model_cannot_inject_html(maker: Maker, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    teacher = maker.teacher(name=evil)
    model = maker.model(maker.student(teacher, "sparse"), layer=evil)
    engine = maker.engine(model, {**A100, "name": evil}, "tensorrt-rtx")
    bundle = maker.bundle(model, {**A100, "name": evil, "device": evil}, engine)
    here = maker.engine(model, {**CPU, "name": evil}, "onnxruntime")
    timed = latency(maker, [here], samples([400], scenario()))
    other = maker.model(maker.teacher(name=evil, fit={"steps": 0}), name=evil, layers=9)
    away = latency(maker, maker.engines([other]), samples([900], scenario()))
    artifacts = [teacher, model, engine, here, bundle, timed, away, maker.accuracy(model)]
    text = written(artifacts, tmp_path)
    page = Page(text)
    assert page.unbalanced == []
    assert page.all("script") == []
    assert page.all("img") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert evil in page.text


def test_a_teacher_alone_makes_a_whole_page(maker: Maker, tmp_path: Path) -> None:
    page = Page(written([maker.teacher()], tmp_path))
    assert page.unbalanced == []
    assert "Only a teacher is here: 560 parameters, 90.0% right on 200 samples." in page.text
    assert "Nothing is shown yet." in page.text
    assert "Not measured All that a student is judged by." in page.text
    assert "No AccuracyReport is among these artifacts." in page.text
    assert "Teacher, labels loss" in page.text


@pytest.mark.parametrize(
    "kind",
    ["Student", "OnnxModel", "Engine", "Bundle", "AccuracyReport", "LatencyReport", "Verdict"],
)
def test_any_artifact_alone_makes_a_whole_page(
    kind: str, whole: list[Artifact], tmp_path: Path
) -> None:
    alone = next(made for made in whole if made.kind == kind)
    page = Page(written([alone], tmp_path))
    assert page.unbalanced == []
    assert alone.id in page.text
    assert {a["href"][1:] for a in page.all("a")} <= {a["id"] for _, a in page.tags if "id" in a}


def test_latencies_are_told_with_what_they_are_not(whole: list[Artifact], tmp_path: Path) -> None:
    text = Page(written(whole, tmp_path)).text
    for words in (
        "ONNX Runtime uses no 2:4: dense and 2:4 INT8 are expected to be equally fast here",
        "one-by-one on cpu One sample a query, the next when the last is answered; the result is",
        "Measured 2026-01-02 03:04:05 UTC . Uncontrolled machine: ratios only.",
        "Latency only, random weights: large, one-by-one on cpu",
        "Another graph than this run’s (2 layers, ort.onnx of 9 B)."  # noqa: RUF001
        " It went through the same export with random weights, so its answers mean nothing",
        "A processor, threads 2",
        "edgekd-1 clock=perf_counter_ns",
        "Not measured on a100 and orin.",
    ):
        assert words in text
    assert text.count("all-at-once on cpu") >= 3


def test_the_gate_is_on_the_page_where_there_is_one(
    whole: list[Artifact], maker: Maker, tmp_path: Path
) -> None:
    text = Page(written(whole, tmp_path)).text
    assert "✓ pass 2:4 INT8, one-by-one, cpu" in text
    assert "latency to baseline ✓ pass 0.99 0.95 to 1.02 1.03" in text
    assert "Gate: pass. No claim failed: 3 of 8 proven, 4 shown in part, 1 not measured." in text
    assert "Checks of the gate" not in Page(written([maker.teacher()], tmp_path)).text


def test_a_failure_comes_first(maker: Maker, tmp_path: Path) -> None:
    model = maker.model(maker.student(maker.teacher(), "sparse"), layers_sparse=0)
    text = Page(written([model], tmp_path)).text
    headline = text.index("1 claim failed: 2 of 8 proven, 5 not measured.")
    failed = text.index("Failed That the 2:4 mask is exact in the weights that ship. Look there")
    assert headline < failed < text.index("Made The teacher became a")


def test_without_artifacts_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="0 artifacts were given, expected at least 1"):
        report([], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_one_sentence(
    whole: list[Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, _write: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("edgekd.report.page.replace_file", refuse)
    with pytest.raises(ArtifactError, match=r"report\.html.*read-only.*--out"):
        report(whole, tmp_path / "report.html")


def test_the_page_needs_no_heavy_library(whole: list[Artifact], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgekd import artifact\n"
        "from edgekd.report import report\n"
        "report([artifact.load(Path(p)) for p in sys.argv[2:]], Path(sys.argv[1]))\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'tensorrt'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "p.html"), *(str(a.path) for a in whole)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
