"""Every key of every file a person writes: a wrong value is answered in words a person knows."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_origin

import annotated_types as limits
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edgekd import recipe, target
from edgekd.bench.scenario import Scenario
from edgekd.errors import ConfigError
from edgekd.recipe import Recipe, Section
from edgekd.target import Target

VALID: dict[type[BaseModel], dict[str, Any]] = {
    Recipe: recipe.load("digits-vit").as_json(),
    Target: target.load("jetson-agx-orin-64gb-jp6.2").as_json(),
    Scenario: {
        "name": "mine",
        "scenario": "SingleStream",
        "batch": 1,
        "percentile": 90,
        "queries": 64,
        "repetitions": 9,
    },
}
THEIR_WORDS = ("input should", "should be", "should have", "pattern", "pydantic", "type=", "valid ")
DATE = datetime.date(2026, 1, 2)  # TOML has dates; no key takes one
WRONG_TYPES: tuple[Any, ...] = (DATE, True, 1.5, "two words", ["x", 3], {"a": DATE}, [], {})


class Key(NamedTuple):
    model: type[BaseModel]
    path: tuple[str, ...]
    field: FieldInfo

    @property
    def name(self) -> str:
        return ".".join(self.path)


def keys(model: type[BaseModel], top: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Key]:
    """Every key of a file, those of its sections included."""
    for name, field in model.model_fields.items():
        yield Key(top, (*path, name), field)
        for option in (field.annotation, *get_args(field.annotation)):
            if isinstance(option, type) and issubclass(option, BaseModel):
                # Sections of a table of them are named by the person who writes it.
                of_many = ("sequence",) if get_origin(field.annotation) is dict else ()
                yield from keys(option, top, (*path, name, *of_many))


KEYS = [key for model in VALID for key in keys(model, model)]
every_key = pytest.mark.parametrize(
    "key", KEYS, ids=[f"{key.model.__name__}-{key.name}" for key in KEYS]
)


def without_names(message: str) -> str:
    """A message without the keys' own names: ``pattern_rows`` is a word of ours."""
    for name in {key.path[-1] for key in KEYS if "_" in key.path[-1]}:
        message = message.replace(name, "")
    return message


def told(key: Key, value: Any) -> list[str]:
    """What is said of a key with this value; empty where it is accepted."""
    document = json.loads(json.dumps(VALID[key.model]))
    place = document
    for section in key.path[:-1]:
        place = place.setdefault(section, {})
    place[key.path[-1]] = value
    try:
        recipe.check(key.model, document, "mine.toml")
    except ConfigError as error:
        message = str(error)
        assert message.startswith("mine.toml: ")
        for words in THEIR_WORDS:
            assert words not in without_names(message).lower()
        assert "\n" not in message
        # One file may have more problems: a section that lost its keys misses them too.
        said = message.removeprefix("mine.toml: ").partition(" problems: ")[2] or message[11:]
        return [each for each in said.split("; ") if each.startswith(key.name)]
    return []


@every_key
def test_the_valid_document_is_valid(key: Key) -> None:
    recipe.check(key.model, VALID[key.model], "mine.toml")


@every_key
def test_a_wrong_type_names_the_key_what_was_found_and_what_would_do(key: Key) -> None:
    refused = 0
    for value in WRONG_TYPES:
        for said in told(key, value):
            if "unknown key" in said or said.endswith("is missing"):
                continue
            refused += 1
            if ": found " in said:
                assert ", expected " in said, said
                assert "another kind of value" not in said
    assert refused >= 3
    (first,) = told(key, DATE)
    assert first.startswith(f"{key.name}: found 2026-01-02, expected "), first


def beyond(key: Key) -> Iterator[tuple[Any, str]]:
    """Values just beyond a key's limits, and the words that must be told of each."""
    for limit in key.field.metadata:
        if isinstance(limit, limits.Ge):
            yield limit.ge - 1, f"found {limit.ge - 1}, expected at least {limit.ge}"
        elif isinstance(limit, limits.Gt):
            yield limit.gt, f"found {limit.gt}, expected more than {limit.gt}"
        elif isinstance(limit, limits.Le):
            yield limit.le + 1, f"found {limit.le + 1}, expected at most {limit.le}"
        elif isinstance(limit, limits.MinLen):
            yield [], f"found [], expected a list of {limit.min_length} or more"
        elif isinstance(limit, limits.MaxLen):
            yield [1] * 9, f"expected a list of {limit.max_length} or fewer"
        else:
            assert limit.pattern is not None, f"{limit}: a limit that this test does not know"
            yield "No Name!", ", such as "  # an example stands for the regular expression


@every_key
def test_a_value_out_of_its_limits_is_told_beside_the_limit(key: Key) -> None:
    for value, words in beyond(key):
        (said,) = [each for each in told(key, value) if ": found " in each]
        assert words in said


def test_the_limits_of_all_files_were_tried() -> None:
    tried = [words for key in KEYS for _, words in beyond(key)]
    assert len(tried) > 40
    for word in ("at least", "more than", "at most", "or more", "such as"):
        assert any(word in each for each in tried)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("distill.steps", "10", "found '10', expected a whole number without quotes"),
        ("distill.warmup", "0.5", "found '0.5', expected a number without quotes"),
        ("distill.weight_decay", math.nan, "found nan, expected a finite number"),
        ("arms", "sparse", "found 'sparse', expected a list in brackets, [...]"),
        ("data.samples", True, "found true, expected a whole number"),
        ("teacher", "vit", "found 'vit', expected a table, [teacher] with its keys below it"),
        ("teacher.model", 3, "found 3, expected text in quotes"),
        ("gate.percentile", 75, "found 75, expected 50, 90, 95 or 99"),
        (
            "name",
            "Tiny net",
            "found 'Tiny net', expected lower-case letters, digits and hyphens, such as tiny-vit",
        ),
    ],
)
def test_the_sentences(path: str, value: Any, said: str) -> None:
    (key,) = [each for each in KEYS if each.model is Recipe and each.name == path]
    assert told(key, value) == [f"{path}: {said}"]


def test_a_long_value_is_cut() -> None:
    (key,) = [each for each in KEYS if each.model is Recipe and each.name == "distill.steps"]
    (said,) = told(key, "0" * 500)
    assert said == f"distill.steps: found '{'0' * 79}..., expected a whole number without quotes"


def test_a_problem_without_words_of_its_own_shows_nothing_of_pydantics() -> None:
    class Odd(Section):
        """A section with a kind of key that no file has."""

        when: datetime.date
        code: str = recipe.Field(pattern="^x$")

    with pytest.raises(ConfigError) as caught:
        recipe.check(Odd, {"when": 1, "code": "y"}, "odd.toml")
    assert str(caught.value) == (
        "odd.toml: 2 problems: when: found 1, expected another kind of value; "
        "code: found 'y', expected text of the form ^x$"
    )
