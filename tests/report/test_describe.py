"""What `edgekd inspect` prints."""

from __future__ import annotations

import json
import subprocess
import sys

from edgekd import artifact
from edgekd.report.describe import _shortened, _tree, describe

from .conftest import A100, Maker
from .latencies import accepted, verdict


def test_a_student_is_described_with_its_plan_and_numbered_reasons(maker: Maker) -> None:
    student = maker.student(maker.teacher(), "dense")
    lines = describe(student).splitlines()
    assert lines[0] == "Student (schema 2)"
    assert f"  id      {student.id}" in lines
    assert f"  key     {student.manifest.key}" in lines
    assert "  arm     dense" in lines
    assert any(line.startswith("  made    20") and " UTC in " in line for line in lines)
    assert f"  teacher  {student.manifest.parents['teacher']}" in lines
    assert "  accuracy          89.00%" in lines
    assert lines[lines.index("layers") + 1 :] == [
        "  layer    type     n   k   MACs  INT8    2:4",
        "  net.fc1  Linear  16  32  3,000  yes     no [1]",
        "  net.out  Linear   3  16  1,000  no [2]  no [3]",
        "  [1] 2:4 is off in this arm",
        "  [2] output layer: stays in float",
        "  [3] n is 3",
    ]


def test_calibration_is_counted_and_the_worst_layers_are_named() -> None:
    names = ("a", "b", "c", "d")
    errors = {n: {"max": 0.5 / 2**i, "mse": 0.25 / 2**i} for i, n in enumerate(names)}
    methods = {"a": "mse", "b": "max", "c": "mse", "d": "mse"}
    text = "\n".join(_tree(_shortened({"calibration": {"methods": methods, "errors": errors}})))
    assert text == (
        "  calibration\n"
        "    layers  3 by mse, 1 by max\n"
        "    largest mean squared errors, 3 of 4\n"
        "      a  0.25 by mse\n"
        "      b  0.25 by max\n"
        "      c  0.0625 by mse"
    )
    plain = {"calibration": {"methods": dict.fromkeys(names, "max"), "errors": {}}}
    assert _tree(_shortened(plain)) == ["  calibration", "    layers  4 by max"]
    assert _shortened({"layers": 4}) == {"layers": 4}


def test_nested_results_and_file_sizes_are_aligned(maker: Maker) -> None:
    text = describe(maker.model(maker.student(maker.teacher(), "sparse")))
    assert "\n  parity\n    argmax_differs         0\n" in text
    assert "\n    samples                200\n    vacuous                no\n" in text
    assert "\n  trt.onnx      11 B\n" in text


def test_an_engine_is_described_by_what_ran(maker: Maker) -> None:
    model = maker.model(maker.student(maker.teacher(), "sparse"))
    text = describe(maker.engine(model, A100, "tensorrt-rtx"))
    assert "\n  runtime  tensorrt-rtx\n" in text
    assert "\n  target   a100\n" in text
    assert text.endswith(
        "ran\n"
        "  layer    ran as  weight  input  output  INT8\n"
        "  net.fc1  gemm    Int8    Int8   Half    yes"
    )


def test_a_verdict_without_checks_says_that_nothing_was_judged(maker: Maker) -> None:
    (engine,) = maker.engines([maker.model(maker.teacher())])
    lines = describe(accepted(maker, engine)).splitlines()
    assert "  overall   accepted" in lines
    assert lines[-2:] == [
        "gate",
        "  nothing was judged: the engine became the baseline that others are compared with",
    ]
    assert "gate" not in describe(verdict(maker, engine, (1.0, 0.9, 1.0))).splitlines()


def test_a_bundle_is_described_with_its_commands(maker: Maker) -> None:
    model = maker.model(maker.student(maker.teacher(), "sparse"))
    text = describe(maker.bundle(model, A100))
    assert text.endswith(
        "commands\n  edgekd build model --out out/sparse\n  edgekd evaluate out/sparse"
    )


def test_rows_of_an_accuracy_report_are_numbered(maker: Maker) -> None:
    text = describe(maker.accuracy(maker.model(maker.teacher())))
    assert "  rows, 1 of 2\n" in text
    assert "    agreement            97.00%\n" in text


def test_a_copied_manifest_without_provenance_is_described(maker: Maker) -> None:
    teacher = maker.teacher()
    path = teacher.path / "manifest.json"
    body = {**json.loads(path.read_text()), "provenance": {}}
    path.write_text(json.dumps(body))
    assert "made" not in describe(artifact.load(teacher.path))


def test_a_name_cannot_steer_the_terminal(maker: Maker) -> None:
    evil = "net\x1b[2J\x07\nfc1"
    text = describe(maker.model(maker.student(maker.teacher(), "sparse"), layer=evil))
    assert "\x1b" not in text
    assert "  net\\x1b[2J\\x07\\nfc1  Linear" in text


def test_it_needs_nothing_that_a_device_lacks(maker: Maker) -> None:
    code = (
        "import sys\n"
        "for name in ('jinja2', 'rich', 'torch', 'onnx'): sys.modules[name] = None\n"
        "from pathlib import Path; from edgekd import artifact\n"
        "from edgekd.report.describe import describe\n"
        "print(describe(artifact.load(Path(sys.argv[1]))).splitlines()[0])\n"
    )
    command = [sys.executable, "-c", code, str(maker.teacher().path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "Teacher (schema 2)\n", done.stderr
