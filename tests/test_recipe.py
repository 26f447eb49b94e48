"""A recipe is checked where it enters; every problem is told, all of them together."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgekd import recipe
from edgekd.errors import ConfigError
from edgekd.recipe import Recipe, Section

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(file.stem for file in (ROOT / "edgekd" / "recipes").glob("*.toml"))
MINIMAL: dict[str, Any] = {
    "name": "tiny",
    "teacher": {"model": "python:somewhere:net"},
    "data": {"source": "python:somewhere:data"},
    "distill": {"steps": 10},
}


def with_change(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(MINIMAL)
    *sections, key = path.split(".")
    target = document
    for section in sections:
        target = target.setdefault(section, {})
    target[key] = value
    return document


def told(document: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe.parse(document, "tiny.toml")
    message = str(caught.value)
    assert message.startswith("tiny.toml: ")
    assert "\n" not in message
    return message.removeprefix("tiny.toml: ")


def test_defaults_of_a_minimal_recipe() -> None:
    found = recipe.parse(MINIMAL, "tiny.toml")
    assert found.arms == ["fp16", "dense", "sparse"]
    assert (found.seed, found.threads) == (0, None)
    assert (found.distill.steps, found.distill.batch_size) == (10, 32)
    assert (found.distill.losses.logits, found.distill.losses.temperature) == (1.0, 2.0)
    assert (found.export.batch_min, found.export.batch_opt, found.export.batch_max) == (1, 8, 64)
    assert found.sparsity.include == found.quantization.include == ["*"]
    assert found.student.model is None
    budgets = (found.gate.accuracy_drop_points, found.gate.latency_ms, found.gate.size_bytes)
    assert budgets == (None, None, None)
    assert (found.gate.minimum_effect, found.gate.minimum_effect_points) == (0.02, 2.0)


def test_a_recipe_is_frozen_and_survives_its_own_dump() -> None:
    found = recipe.parse(MINIMAL, "tiny.toml")
    with pytest.raises(ValidationError):
        found.seed = 1
    assert recipe.parse(found.model_dump(), "again") == found


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (
            "distill.step",
            3,
            'distill.step is an unknown key. Did you mean "steps"? There are: batch_size,',
        ),
        (
            "distil",
            {},
            'distil is an unknown key. Did you mean "distill"? There are: arms, data, distill,',
        ),
        (
            "distill.losses.logit",
            1.0,
            'distill.losses.logit is an unknown key. Did you mean "logits"?',
        ),
        (
            "teacher.fit",
            {"steps": 1, "lr": 0.1},
            "teacher.fit.lr is an unknown key. There are: batch_size",
        ),
        (
            "distill.steps",
            -1,
            "distill.steps: found -1, expected at least 0",
        ),
        (
            "distill.steps",
            "10",
            "distill.steps: found '10', expected a whole number without quotes",
        ),
        ("distill.steps", 1.5, "distill.steps: found 1.5, expected a whole number"),
        ("distill.batch_size", 0, "distill.batch_size: found 0, expected at least 1"),
        ("distill.learning_rate", 0.0, "distill.learning_rate: found 0.0, expected more than 0"),
        (
            "distill.learning_rate",
            float("inf"),
            "distill.learning_rate: found inf, expected a finite number",
        ),
        (
            "distill.weight_decay",
            float("nan"),
            "distill.weight_decay: found nan, expected a finite number",
        ),
        ("distill.warmup", 2, "distill.warmup: found 2, expected at most 1"),
        (
            "name",
            "Tiny net",
            "name: found 'Tiny net', expected lower-case letters, digits and hyphens",
        ),
        ("arms", [], "arms: found [], expected a list of 1 or more"),
        ("arms", ["int4"], "arms.0: found 'int4', expected 'fp16', 'dense' or 'sparse'"),
        (
            "sparsity.method",
            "random",
            "sparsity.method: found 'random', expected 'magnitude'",
        ),
        ("threads", 0, "threads: found 0, expected at least 1"),
        ("export.opset", 21, "export.opset: found 21, expected at most 20"),
        ("data.samples", True, "data.samples: found true, expected a whole number"),
        (
            "teacher",
            "vit",
            "teacher: found 'vit', expected a table, [teacher] with its keys below it",
        ),
        (
            "distill.losses",
            {"logits": 0.0, "blocks": 0.0},
            "distill.losses: all loss weights are 0: give at least one of logits, blocks, labels",
        ),
        (
            "distill.losses",
            {"blocks": 0.0, "critical": 0.5, "agreement": True},
            "distill.losses: blocks is 0, so nothing reads critical, agreement: remove it",
        ),
        (
            "distill.losses",
            {"labels": 1.0, "labels_from": "teacher", "task": "python:a:b"},
            "distill.losses: labels_from is 'teacher', which gives class numbers, and task is a",
        ),
        (
            "distill",
            {"steps": 1, "losses": {"block_weights": "inverse"}},
            "distill: losses.block_weights is 'inverse' and takes them from the sparse stage's",
        ),
        (
            "distill",
            {"steps": 1, "sparse": {"steps": 0}, "losses": {"block_weights": "inverse"}},
            "distill: losses.block_weights is 'inverse' and takes them from the sparse stage's",
        ),
        (
            "export",
            {"batch_min": 4, "batch_opt": 2},
            "export: batch sizes are min 4, opt 2, max 64: they must not decrease",
        ),
        (
            "teacher",
            {"model": "m", "checkpoint": "c", "fit": {"steps": 1}},
            "teacher.checkpoint and teacher.fit are both given: keep one",
        ),
        ("gate.latency_ms", 0, "gate.latency_ms: found 0, expected more than 0"),
        ("gate.percentile", 75, "gate.percentile: found 75, expected 50, 90, 95 or 99"),
        ("gate.size_bytes", 1.5, "gate.size_bytes: found 1.5, expected a whole number"),
        (
            "gate.accuracy_drop_points",
            -0.5,
            "gate.accuracy_drop_points: found -0.5, expected at least 0",
        ),
        (
            "gate.minimum_effect",
            -0.1,
            "gate.minimum_effect: found -0.1, expected at least 0",
        ),
        (
            "gate",
            {"percentile": 90},
            "gate: percentile is 90 without latency_ms: give the latency it may have",
        ),
        (
            "gate.latency",
            2.0,
            'gate.latency is an unknown key. Did you mean "latency_ms"? There are: accuracy_drop',
        ),
    ],
)
def test_each_problem_is_one_sentence(path: str, value: Any, expected: str) -> None:
    assert told(with_change(path, value)).startswith(expected)


@pytest.mark.parametrize(
    ("sparsity", "said"),
    [
        ({"method": "sparsegpt"}, 'sparsity.method = "sparsegpt"'),
        ({"permute": True, "pattern_rows": 4}, "sparsity.permute = true"),
        (
            {"method": "sparsegpt", "permute": True, "release": ["a"]},
            'sparsity.method = "sparsegpt" and sparsity.permute = true',
        ),
    ],
)
def test_masks_are_not_chosen_again_beside_a_student_that_has_them(
    sparsity: dict[str, Any], said: str
) -> None:
    document = {**MINIMAL, "student": {"start": "out/student"}, "sparsity": sparsity}
    assert told(document) == (
        f"student.start keeps the masks of 'out/student', so {said} would do nothing: remove it, "
        "or make that Student with it"
    )


def test_what_else_a_recipe_that_goes_on_may_say_of_sparsity() -> None:
    sparsity = {"method": "magnitude", "permute": False, "pattern_rows": 4, "release": ["a"]}
    found = recipe.parse(
        {**MINIMAL, "student": {"start": "out/student"}, "sparsity": sparsity}, "tiny.toml"
    )
    assert found.sparsity.pattern_rows == 4


def test_missing_keys_are_named() -> None:
    document = {key: value for key, value in MINIMAL.items() if key != "distill"}
    assert told(document) == "distill is missing"


def test_all_problems_are_told_together() -> None:
    document = with_change("distill.steps", -1)
    document["sead"] = 1
    del document["data"]["source"]
    message = told(document)
    assert message.startswith("3 problems: ")
    problems = message.removeprefix("3 problems: ").split("; ")
    assert problems[0] == "data.source is missing"
    assert problems[1] == "distill.steps: found -1, expected at least 0"
    assert problems[2].startswith('sead is an unknown key. Did you mean "seed"? There are: arms, ')


def test_unknown_keys_inside_lists_of_sections_name_their_neighbours() -> None:
    class Row(Section):
        """A section in a list."""

        height: int

    class Table(Section):
        """A file with a list of sections."""

        rows: list[Row]

    with pytest.raises(ConfigError, match=r'rows\.0\.heigt is an unknown .*ou mean "height"\?'):
        recipe.check(Table, {"rows": [{"height": 1, "heigt": 2}]}, "table.toml")


def test_load_from_a_file_remembers_where_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(
        'name = "tiny"\nteacher.model = "hf:net"\ndata.source = "python:a:b"\ndistill.steps = 1\n'
    )
    found = recipe.load(file)
    assert isinstance(found, Recipe)
    assert found.base == tmp_path
    assert found.teacher.model == "hf:net"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_travels_as_json_and_asks_for_no_file_it_names(name: str, tmp_path: Path) -> None:
    found = recipe.load(name)
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(found.as_json()), encoding="utf-8")
    again = recipe.load(file)
    assert again.model_dump() == found.model_dump()
    assert again.base == tmp_path
    assert list(tmp_path.iterdir()) == [file]  # neither model nor data lie there


def test_json_keeps_every_character_of_a_text(tmp_path: Path) -> None:
    odd = "quotes \" ' back\\slash, a\nnew line, \u00fc, \u96ea and \U0001f600"
    document = with_change("sparsity", {"exclude": [odd, ""]})
    document["teacher"] = {"model": odd, "fit": {"steps": 3, "learning_rate": 1e-05}}
    found = recipe.parse(document, "odd.toml")
    for ascii_only in (True, False):
        file = tmp_path / "recipe.json"
        text = json.dumps(found.as_json(), ensure_ascii=ascii_only)
        file.write_text(text, encoding="utf-8")
        assert recipe.load(file).model_dump() == found.model_dump()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[1]", r"recipe\.json: holds a JSON list, expected an object"),
        (b'{"name": ', r"recipe\.json: is not JSON: .*line 1 column 10"),
        (b'{"name": "\xff"}', r"recipe\.json: is not JSON: .*utf-8"),
        (b'{"name": "x", "seed": NaN}', r"seed: found nan, expected a whole number"),
    ],
)
def test_a_recipe_json_that_is_none(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "recipe.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        recipe.load(file)


def test_the_shipped_recipe_loads_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-vit").mkdir()
    found = recipe.load("digits-vit")
    assert found.name == "digits-vit"
    assert (found.base / "digits-vit.toml").is_file()


def test_a_name_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe.load("digit-vit")
    assert str(caught.value).startswith(
        "recipe 'digit-vit': no such file, and no shipped recipe has that name. "
        'Did you mean "digits-vit"? There are: '
    )


def test_what_is_not_toml_is_told_with_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('name = "x"\nsteps = \n')
    with pytest.raises(ConfigError, match=r"bad\.toml: is not TOML: .*line 2, column"):
        recipe.load(file)
    file.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match=r"bad\.toml: is not TOML: .*utf-8"):
        recipe.load(file)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: no such file"):
        recipe.read_toml(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=f"{tmp_path.name}: cannot be read: Is a directory"):
        recipe.read_toml(tmp_path)


FILES = {"source": "hf:csv", "train": "a.csv", "evaluation": ["b.csv", "c.csv"]}


@pytest.mark.parametrize(
    "section",
    [
        FILES,
        {**FILES, "text": "one", "text_pair": "two", "label": "same", "max_length": 64},
        {"source": "hf:someone/something", "train": "train[:10%]", "evaluation": "validation"},
        {"source": "random", "preprocess": "timm:resnet18", "samples": 8},
        {"source": "python:a:b", "metric": "python:a:c"},
    ],
)
def test_data_has_many_sources(section: dict[str, Any]) -> None:
    found = recipe.parse({**MINIMAL, "data": section}, "r.toml").data
    assert found.model_dump(exclude_unset=True) == section


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"source": "hf:csv", "train": "a"}, "evaluation is missing: source 'hf:csv' reads it"),
        ({"source": "python:a:b", "train": "a"}, "source 'python:a:b' does not read train: remove"),
        ({"source": "python:a:b", "preprocess": "hf:a"}, "does not read preprocess: remove it"),
        ({"source": "random", "label": "a", "text": "b"}, "does not read text, label: remove it"),
        ({**FILES, "max_length": 1}, "data.max_length: found 1, expected at least 2"),
    ],
)
def test_keys_that_the_source_does_not_read_are_told(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe.parse({**MINIMAL, "data": section}, "r.toml")
