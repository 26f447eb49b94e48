"""The page of `make vit-s`: the demo's run, and the latency of another network beside it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny import programs

from edgekd.artifact import Artifact
from edgekd.report import report
from edgekd.report.claims import claims
from edgekd.report.collection import Collection
from edgekd.report.summary import verdict
from edgekd.run import Result

from .conftest import A100, Maker
from .latencies import latency, samples, scenario

ARMS = ("fp16", "dense", "sparse")  # ratios are to the first


def timed(
    maker: Maker, network: str, medians_us: tuple[float, ...], **asked: Any
) -> list[Artifact]:
    """A run of three arms that fitted its teacher for no step; its LatencyReport comes last."""
    teacher = maker.teacher(name=network, fit={"steps": 0})
    sources = [teacher if arm == "fp16" else maker.student(teacher, arm) for arm in ARMS]
    models = [maker.model(source, name=network) for source in sources]
    engines = maker.engines(models)
    chosen = scenario(**asked)
    report = latency(maker, engines, samples(medians_us, chosen, spread=0), chosen)
    return [*models, *engines, report]


@pytest.fixture
def demo(tmp_path: Path) -> list[Artifact]:
    """A network too small to gain from INT8, and a Bundle for a device that is not here."""
    maker = Maker(tmp_path / "out")
    found = timed(maker, "digits-vit", (300, 330, 345))
    return [*found, maker.bundle(found[2], A100)]


@pytest.fixture
def larger(tmp_path: Path) -> Artifact:
    """The LatencyReport of a network that does; everything else of it lies in another directory."""
    maker = Maker(tmp_path / "out" / "vit-s")
    return timed(maker, "vit-s-random", (120_000, 60_000, 60_000), name="vit-s")[-1]


@pytest.fixture(scope="module")
def vit_s() -> ModuleType:
    return programs.load("bench/vit_s/run.py")


def test_each_network_has_its_own_subsection_the_runs_first(
    demo: list[Artifact], larger: Artifact, tmp_path: Path
) -> None:
    page = report([larger, *demo], tmp_path / "report.html").read_text(encoding="utf-8")
    own = page.index("<h3>one-by-one on cpu</h3>")
    other = page.index("<h3>Latency only, random weights: vit-s-random, vit-s on cpu</h3>")
    assert own < other
    assert "<strong>330 µs</strong>" in page[own:other]
    assert "<strong>1.15</strong>" in page[own:other]
    assert "<strong>0.50</strong>" in page[other:]
    assert "<strong>60.0 ms</strong>" in page[other:]
    assert "so its answers mean nothing" in page[other:]
    assert "Accuracy against" not in page[other:]
    assert "<title>digits-vit: edgekd report</title>" in page


def test_the_first_screen_tells_them_apart(demo: list[Artifact], larger: Artifact) -> None:
    run = Collection([*demo, larger])
    told = {sentence.lead: sentence.text for sentence in verdict(run, claims(run))}
    assert told["Latency"] == (
        "2:4 INT8 takes 1.15 times the float teacher's p90 (1.15 to 1.15), measured on cpu with "
        "ONNX Runtime, which uses no 2:4: that stands for no other device. Uncontrolled machine: "
        "ratios only. Not measured on a100."
    )
    assert told["Latency only"] == (
        "of vit-s-random (random weights), measured on cpu: 2:4 INT8 takes 0.50 times the float "
        "teacher's p90 (0.50 to 0.50). Uncontrolled machine: ratios only."
    )


def test_the_other_network_enters_no_claim(demo: list[Artifact], larger: Artifact) -> None:
    assert claims(Collection([*demo, larger])) == claims(Collection(demo))


def test_vit_s_writes_the_demos_page_again_with_both(
    demo: list[Artifact],
    larger: Artifact,
    vit_s: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = report(demo, tmp_path / "out" / "report.html")
    assert "vit-s-random" not in alone.read_text(encoding="utf-8")
    asked: list[Any] = []

    def answered_from_cache(*what: Any) -> Result:  # the demo takes minutes
        asked.extend(what)
        return Result(demo, alone)

    monkeypatch.setattr(vit_s, "run", answered_from_cache)
    assert vit_s.page(larger, tmp_path / "out") == alone
    assert "random weights: vit-s-random" in alone.read_text(encoding="utf-8")
    wanted, targets, out, scene = asked
    assert (wanted.name, out, scene.name) == ("digits-vit", tmp_path / "out", "single-stream")
    assert {target.name for target in targets} >= {"cpu", "a100-sxm4-80gb-trt11.4"}


def test_vit_s_without_a_demo_says_whose_page_it_is(
    larger: Artifact, vit_s: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vit_s.page(larger, tmp_path / "out") == tmp_path / "out" / "vit-s" / "report.html"
    assert "holds no artifacts of digits-vit: the page is of this network alone" in (
        capsys.readouterr().out
    )


def test_a_smaller_network_is_described_by_its_layers(vit_s: ModuleType, tmp_path: Path) -> None:
    from edgekd.models import describe

    names = {2: "vit-s-random-2-layers", vit_s.LAYERS: "vit-s-random"}
    for layers, name in names.items():
        found = vit_s.described(layers, tmp_path)
        assert found.name == name
        config = describe(found.teacher.model, found._base)["config"]
        assert config["num_hidden_layers"] == layers
        assert (config["hidden_size"], found.teacher.fit.steps) == (384, 0)


def test_the_demo_is_the_one_that_make_runs(vit_s: ModuleType) -> None:
    makefile = (programs.ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.split("\ndemo:")[1].split("\n\n")[0]
    assert f"edgekd run {vit_s.demo.RECIPE} " in recipe
    assert recipe.count("--target ") == len(vit_s.demo.TARGETS)
    assert all(f"--target {name} " in recipe for name in vit_s.demo.TARGETS)
    assert f"--scenario {vit_s.demo.SCENARIO} " in recipe
