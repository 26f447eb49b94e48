"""The README says what is there: its verbs, its make targets, its files, its options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekd import recipe, target
from edgekd.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    page
    for page in sorted(ROOT.rglob("*.md"))
    if not {part for part in page.relative_to(ROOT).parts if part.startswith((".", "out"))}
]


def test_every_verb_is_in_the_readme_and_every_verb_in_it_exists() -> None:
    named = set(re.findall(r"(?:^|[`(])edgekd ([a-z]+)", README, re.MULTILINE))
    assert named == set(main.commands)


def test_every_option_shown_exists() -> None:
    shown = set(re.findall(r"(?<=[ `])--[a-z][a-z-]+", README))
    helps = " ".join(CliRunner().invoke(main, [verb, "--help"]).stdout for verb in main.commands)
    assert shown
    assert not {option for option in shown if option not in helps}


def test_targets_and_recipes_shown_are_shipped() -> None:
    for name in re.findall(r"--target ([a-z0-9.-]+)", README):
        target.load(name)
    for name in re.findall(r"edgekd run ([a-z-]+)", README):
        recipe.load(name)


def test_make_targets_shown_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"^make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_tree_shown_is_the_tree() -> None:
    block = README.split("## Where things are")[1].split("```")[1]
    for name in re.findall(r"(?<![\w/])([a-z0-9_]+(?:\.py|/))", block):
        assert (ROOT / name).exists() or (ROOT / "edgekd" / name).exists(), name
