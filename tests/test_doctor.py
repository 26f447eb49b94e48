from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekd import doctor, target
from edgekd.cli import main
from edgekd.engine.build import Device

A100 = Device("NVIDIA A100-SXM4-80GB", [8, 0], 108, 13000)


def found(
    monkeypatch: pytest.MonkeyPatch, device: Device | None, **versions: str
) -> dict[str, str]:
    known = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(doctor, "find_device", lambda: device)
    monkeypatch.setattr(
        doctor, "versions", lambda *names: {name: known.get(name, "absent") for name in names}
    )
    return {each.what: f"{each.found} {each.mend}" for each in doctor.doctor(Path("out"))}


def test_without_any_library_every_verb_has_a_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = found(monkeypatch, None)
    assert "pip install 'edgekd[train]'" in lines["distill"]
    assert "pip install 'edgekd[ort]'" in lines["build for cpu, evaluate"]
    assert "pip install 'edgekd[rtx]'" in lines["target a100-sxm4-80gb-trt11.4"]
    assert "pip install 'edgekd[ort]'" in lines["target cpu"]
    assert "NVIDIA driver" in lines["CUDA device"]


def test_without_a_device_a_bundle_is_what_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = found(monkeypatch, None, tensorrt_rtx="1.7", onnxruntime="1.31")
    assert lines["target a100-sxm4-80gb-trt11.4"].startswith("Bundle, with evidence")
    assert lines["target jetson-agx-orin-64gb-jp6.2"].startswith("Bundle; no evidence")
    assert lines["target cpu"].startswith("Engine")


def test_on_the_device_itself_the_engine_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = target.load("a100-sxm4-80gb-trt11.4")
    version = f"{wanted.runtime_version}.0"
    lines = found(monkeypatch, A100, tensorrt=version)
    assert lines["target a100-sxm4-80gb-trt11.4"].startswith("Engine, built and measured here")
    other = found(monkeypatch, A100, tensorrt="10.3.0")
    assert not other["target a100-sxm4-80gb-trt11.4"].startswith("Engine")


def test_the_verbs_print_a_line_a_finding_and_json() -> None:
    text = CliRunner().invoke(main, ["doctor"])
    assert text.exit_code == 0
    document = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    assert {each["what"] for each in document} >= {"python", "CUDA device", "distill"}
    for each in document:
        assert each["what"] in text.stdout


def test_targets_lists_every_shipped_target() -> None:
    listed = CliRunner().invoke(main, ["targets"])
    assert [line.split()[0] for line in listed.stdout.splitlines()] == target.names()
    document = json.loads(CliRunner().invoke(main, ["targets", "--json"]).stdout)
    assert [each["name"] for each in document] == target.names()
