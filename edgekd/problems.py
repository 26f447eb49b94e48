"""What pydantic found wrong with a file, in our words: which key, what stands there, what would do.

pydantic's own messages are for those who wrote the model ("String should match pattern ..."); a
recipe is written by people who never saw it. Each kind of problem has its words here, one table for
all files that a person writes; a test tries every key of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel

from edgekd.errors import names_that_exist

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# pydantic's name of the problem -> what would have been right; its limits are filled in.
_EXPECTED: Mapping[str, str] = {
    "bool_type": "true or false",
    "dict_type": "a table, [{key}] with its keys below it",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_type": "a whole number",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "list_type": "a list in brackets, [...]",
    "literal_error": "{expected}",
    "model_type": "a table, [{key}] with its keys below it",
    "string_type": "text in quotes",
    "too_long": "a list of {max_length} or fewer",
    "too_short": "a list of {min_length} or more",
}
_NUMBERS = ("int_type", "float_type")
# Regular expressions are not for reading.
_PATTERNS: Mapping[str, str] = {
    r"^[a-z0-9][a-z0-9-]*$": "lower-case letters, digits and hyphens, such as tiny-vit",
    r"^[a-z0-9][a-z0-9.-]*$": "lower-case letters, digits, dots and hyphens, such as orin-jp6.2",
    r"^\d+(\.\d+)*$": "numbers with dots between them, such as 10.3",
    r"^3\.\d+$": "a version of Python 3, such as 3.10",
}
# What pydantic puts behind a key for each form that its value may take.
_FORMS = ("str", "list[str]")
_SHOWN = 80  # characters of a wrong value


def sentences(model: type[BaseModel], found: Sequence[ErrorDetails]) -> list[str]:
    """Every problem in words; a value that may take several forms is told once, with all of them.

    Args:
        model: What was validated.
        found: ``ValidationError.errors()``.
    """
    grouped: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for problem in found:
        place = tuple(part for part in problem["loc"] if part not in _FORMS)
        grouped.setdefault(place, []).append(problem)
    told = []
    for place, problems in grouped.items():
        if len(problems) == 1:
            told.append(sentence(model, problems[0]))
            continue
        key = ".".join(str(part) for part in place)
        forms = " or ".join(dict.fromkeys(_expected(key, problem) for problem in problems))
        told.append(f"{key}: found {_shown(problems[0]['input'])}, expected {forms}")
    return told


def sentence(model: type[BaseModel], problem: ErrorDetails) -> str:
    """One problem in words.

    Args:
        model: What was validated.
        problem: One of ``ValidationError.errors()``.

    Returns:
        For example ``distill.steps: found -1, expected at least 0``. A sentence raised by one of
        our validators is kept as it is.
    """
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{key} is an unknown key. {names_that_exist(path[-1], _keys_at(model, path[:-1]))}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    return f"{key}: found {_shown(problem['input'])}, expected {_expected(key, problem)}"


def _expected(key: str, problem: ErrorDetails) -> str:
    limits = problem.get("ctx", {})
    if problem["type"] == "string_pattern_mismatch":
        return _PATTERNS.get(limits["pattern"], f"text of the form {limits['pattern']}")
    words = _EXPECTED.get(problem["type"], "another kind of value").format(key=key, **limits)
    quoted = isinstance(problem["input"], str) and problem["type"] in _NUMBERS
    return f"{words} without quotes" if quoted else words


def _shown(value: object) -> str:
    """A value as it was written, near enough; a long one is cut."""
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if isinstance(value, str | int | float | list | dict) else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """Names of the keys a section accepts, following `path` from the top."""
    for part in path:
        if part not in model.model_fields:  # an index into the list just followed
            continue
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        sections = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)
