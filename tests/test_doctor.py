from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekd import doctor, errors, target
from edgekd.cli import main
from edgekd.engine.build import Device

A100 = Device("NVIDIA A100-SXM4-80GB", [8, 0], 108, 13000)
TRAIN, ORT, RTX, TRT = (
    f"pip install -c constraints.txt -e '.[{extra}]'" for extra in ("train", "ort", "rtx", "trt")
)
A100_TARGET, ORIN_TARGET = "target a100-sxm4-80gb-trt11.4", "target jetson-agx-orin-64gb-jp6.2"


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])


def found(
    monkeypatch: pytest.MonkeyPatch, device: Device | None, **versions: str
) -> dict[str, str]:
    known = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(doctor, "find_device", lambda: device)
    monkeypatch.setattr(
        doctor, "versions", lambda *names: {name: known.get(name, "absent") for name in names}
    )
    return {each.what: f"{each.found} {each.mend}" for each in doctor.doctor(Path("out"))}


def test_every_verb_that_works_on_a_model_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = found(monkeypatch, None)
    assert set(main.commands) - set(lines) == {"doctor", "targets"}


def test_without_any_library_every_verb_has_a_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = found(monkeypatch, None)
    for verb in ("run", "compress", "distill", "export"):
        assert lines[verb].startswith("needs torch absent, transformers absent, nvidia-modelopt")
        assert lines[verb].endswith(TRAIN)
    assert "onnx-ir absent" not in lines["distill"]
    assert "onnx-ir absent" in lines["export"]
    assert "jinja2 absent, matplotlib absent" in lines["run"]
    assert lines["report"] == f"needs jinja2 absent, matplotlib absent {TRAIN}"
    assert lines["plan"] == f"needs torch absent, transformers absent {TRAIN}"
    assert lines["recipe digits-vit"] == f"needs scikit-learn absent {TRAIN}"
    for verb in ("evaluate", "bench", "gate"):
        assert lines[verb].endswith(f"onnxruntime absent, tensorrt absent {ORT}")
    assert lines["inspect"] == "needs nothing more "
    assert "CUDA device" in lines
    assert "NVIDIA driver" in lines["CUDA device"]


def test_a_runtime_is_enough_to_measure_its_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = found(monkeypatch, None, tensorrt="10.3.0")
    assert lines["bench"] == (
        "needs the runtime of the Engines it is given: onnxruntime absent, tensorrt 10.3.0 "
    )
    assert lines["evaluate"].startswith("an OnnxModel needs onnxruntime, an Engine its own runtime")


def test_without_any_library_a_bundle_is_made_where_no_evidence_belongs_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = found(monkeypatch, None, pip="26.0")
    assert lines[A100_TARGET] == (f"nothing: its Bundle needs tensorrt-rtx {RTX}")
    assert lines[ORIN_TARGET] == (
        "Bundle, no evidence, as tensorrt-rtx has no SM87; pip fetches its wheels from your index "
    )
    assert lines["target cpu"] == f"nothing {ORT}"


def test_without_pip_a_bundle_lacks_its_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = found(monkeypatch, None, tensorrt_rtx="1.7")
    assert lines[A100_TARGET].startswith("Bundle, with evidence by tensorrt-rtx 1.7; without pip")
    assert lines[A100_TARGET].endswith("it lacks the wheels the device needs python -m ensurepip")


def test_without_a_device_a_bundle_is_what_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = found(monkeypatch, None, tensorrt_rtx="1.7", onnxruntime="1.31", pip="26.0")
    assert lines[A100_TARGET].startswith("Bundle, with evidence by tensorrt-rtx 1.7; pip fetches")
    assert lines[ORIN_TARGET].startswith("Bundle, no evidence")
    assert lines["target cpu"] == "Engine, built and measured here "


def test_on_the_device_itself_the_engine_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = found(monkeypatch, A100, tensorrt="11.4.0")
    assert lines[A100_TARGET] == "Engine, built and measured here "
    assert lines["CUDA device"].startswith("NVIDIA A100-SXM4-80GB, compute capability 8.0")


def test_on_the_device_itself_another_tensorrt_builds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = found(monkeypatch, A100, tensorrt="10.3.0", tensorrt_rtx="1.7", pip="26.0")
    assert lines[A100_TARGET] == (
        "no Engine: it has TensorRT 11.4, this machine 10.3.0 name the target that is this "
        "machine, or ask for a Bundle with edgekd build --bundle"
    )
    lines = found(monkeypatch, A100, tensorrt_rtx="1.7", pip="26.0")
    assert lines[A100_TARGET].startswith("Bundle, with evidence by tensorrt-rtx 1.7; pip fetches")
    assert f"; no TensorRT here {TRT} on x86-64" in lines[A100_TARGET]


def test_half_a_device_is_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    half = replace(A100, multiprocessors=54)
    lines = found(monkeypatch, half, tensorrt="11.4.0", tensorrt_rtx="1.7", pip="26.0")
    assert lines[A100_TARGET].startswith("Bundle, with evidence")


def test_a_checkout_is_told_what_its_tests_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "PYENV", tmp_path)
    lines = found(monkeypatch, None)
    for what in ("chromium", "a C++ compiler", "CPython 3.10"):
        assert lines[what] == "the tests need it: absent make system-deps"


def test_a_python310_that_does_not_run_is_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shim = tmp_path / "python3.10"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "PYENV", tmp_path)
    assert found(monkeypatch, None)["CPython 3.10"].endswith("absent make system-deps")
    shim.write_text("#!/bin/sh\necho '(3, 10)'\n")
    assert found(monkeypatch, None)["CPython 3.10"] == "the tests need it: python3.10 "


def test_what_was_installed_is_mended_by_its_own_version_and_has_no_tests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(errors, "ROOT", tmp_path)
    lines = found(monkeypatch, None)
    assert "pip install 'edgekd[train]==" in lines["distill"]
    assert not {"chromium", "a C++ compiler", "CPython 3.10"} & set(lines)


def test_nothing_heavy_is_imported_to_look() -> None:
    code = (
        "import sys; from pathlib import Path; from edgekd.doctor import doctor\n"
        "doctor(Path('out')); heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'modelopt',"
        " 'tensorrt', 'tensorrt_rtx', 'jinja2', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


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
