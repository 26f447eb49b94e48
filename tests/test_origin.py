"""What is hashed into a question: files, sources, what a module imports, versions."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from pathlib import Path

import pytest

from edgekd import origin
from edgekd.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from tiny.artifacts import says


def test_file_hash_reads_past_one_chunk(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "big").write_bytes(content)
    assert len(content) > 1 << 20
    assert origin.file_hash(tmp_path / "big") == hashlib.sha256(content).hexdigest()


class TestSourceHash:
    @pytest.fixture(autouse=True)
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        package = tmp_path / "hashed_package"
        (package / "deep").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "deep" / "a.py").write_text("raise RuntimeError('never imported')\n")
        (package / "data.csv").write_text("1")
        (tmp_path / "hashed_module.py").write_text("x = 1\n")
        monkeypatch.syspath_prepend(tmp_path)
        return package

    def test_an_edited_line_changes_it_and_data_does_not(self, package: Path) -> None:
        before = origin.source_hash("hashed_package")
        (package / "data.csv").write_text("2")
        assert origin.source_hash("hashed_package") == before
        (package / "deep" / "a.py").write_text("x = 1\n")
        assert origin.source_hash("hashed_package") != before

    def test_a_renamed_file_changes_it(self, package: Path) -> None:
        before = origin.source_hash("hashed_package")
        (package / "deep" / "a.py").rename(package / "deep" / "b.py")
        assert origin.source_hash("hashed_package") != before

    def test_a_module_is_its_file(self, tmp_path: Path) -> None:
        before = origin.source_hash("hashed_module")
        (tmp_path / "other.py").write_text("")
        assert origin.source_hash("hashed_module") == before
        assert origin.source_hash("hashed_module", "hashed_package") != before

    @pytest.mark.parametrize("name", ["no_such_module", "hashed_module.x", "", ".x", "sys"])
    def test_a_name_without_a_file_is_told(self, name: str) -> None:
        expected = says(f"python module {name!r} was not found as a file", "PYTHONPATH")
        with pytest.raises(ConfigError, match=expected):
            origin.source_hash(name)


class TestImported:
    """What a user's module imports, read from the files and never run."""

    @pytest.fixture(autouse=True)
    def project(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    def write(self, root: Path, files: dict[str, str]) -> None:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

    def test_a_helper_beside_the_module_counts_and_a_stranger_does_not(self, project: Path) -> None:
        self.write(project, {
            "my_model.py": "import my_blocks\nraise RuntimeError('never run')\n",
            "my_blocks.py": "def block():\n    from my_deep import width\n    return width\n",
            "my_deep.py": "width = 3\n",
            "my_other.py": "x = 1\n",
        })  # fmt: skip
        assert set(origin.imported("my_model")) == {"my_model", "my_blocks", "my_deep"}
        before = origin.user_hash("my_model")
        (project / "my_other.py").write_text("x = 2\n")
        assert origin.user_hash("my_model") == before
        for name in ("my_model.py", "my_blocks.py", "my_deep.py"):
            text = (project / name).read_text()
            (project / name).write_text(f"{text}# edited\n")
            assert origin.user_hash("my_model") != before, name
            (project / name).write_text(text)
        assert origin.user_hash("my_model") == before

    def test_what_is_imported_already_makes_no_difference(self, project: Path) -> None:
        self.write(project, {"seen_model.py": "import seen_blocks\n", "seen_blocks.py": "x = 1\n"})
        before = origin.user_hash("seen_model")
        importlib.import_module("seen_model")
        assert origin.user_hash("seen_model") == before
        (project / "seen_blocks.py").write_text("x = 2\n")
        assert origin.user_hash("seen_model") != before

    def test_a_cycle_ends(self, project: Path) -> None:
        self.write(project, {"ring_a.py": "import ring_b\n", "ring_b.py": "import ring_a\n"})
        assert set(origin.imported("ring_a")) == set(origin.imported("ring_b"))

    @pytest.mark.parametrize(
        ("statement", "found"),
        [
            ("import nets.deep.c", {"nets.deep", "nets.deep.c"}),
            ("from nets.deep import c as see", {"nets.deep", "nets.deep.c"}),
            ("from .deep import c", {"nets.deep", "nets.deep.c"}),
            ("from .deep.c import thing", {"nets.deep", "nets.deep.c"}),
            ("from . import b", {"nets.b"}),
            ("from .b import *", {"nets.b"}),
            ("try:\n    import helper\nexcept ImportError:\n    pass", {"helper"}),
            ("import no_such_module, torch, numpy, json, sys, edgekd.data", set()),
        ],
    )
    def test_every_way_to_import(self, project: Path, statement: str, found: set[str]) -> None:
        self.write(project, {
            "nets/__init__.py": "", "nets/a.py": f"{statement}\n", "nets/b.py": "",
            "nets/deep/__init__.py": "", "nets/deep/c.py": "from .. import z\n",
            "helper.py": "",
        })  # fmt: skip
        assert set(origin.imported("nets.a")) == {"nets", "nets.a"} | found

    def test_a_relative_import_climbs(self, project: Path) -> None:
        self.write(project, {
            "tall/__init__.py": "", "tall/b.py": "", "tall/x/__init__.py": "from .. import b\n",
            "tall/x/y.py": "from ..b import z\n",
        })  # fmt: skip
        assert set(origin.imported("tall.x.y")) == {"tall", "tall.b", "tall.x", "tall.x.y"}

    def test_the_whole_package_of_the_module_counts_and_helpers_outside_it(
        self, project: Path
    ) -> None:
        self.write(project, {
            "zoo/__init__.py": "", "zoo/net.py": "import zoo_helper\n", "zoo/listed.py": "x = 1\n",
            "zoo_helper.py": "x = 1\n",
        })  # fmt: skip
        before = origin.user_hash("zoo.net")
        (project / "zoo" / "listed.py").write_text("x = 2\n")
        after = origin.user_hash("zoo.net")
        (project / "zoo_helper.py").write_text("x = 2\n")
        assert len({before, after, origin.user_hash("zoo.net")}) == 3

    def test_a_directory_without_init_is_a_package_too(self, project: Path) -> None:
        self.write(project, {"plain/net.py": "from plain import blocks\n", "plain/blocks.py": "",
                             "plain/other.py": ""})  # fmt: skip
        assert set(origin.imported("plain.net")) == {"plain.net", "plain.blocks"}
        before = origin.user_hash("plain.net")
        (project / "plain" / "other.py").write_text("x = 2\n")
        assert origin.user_hash("plain.net") == before

    def test_another_place_gives_the_same_hash(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write(project, {"moved/__init__.py": "", "moved/net.py": "x = 1\n"})
        before = origin.user_hash("moved.net")
        (project / "elsewhere").mkdir()
        (project / "moved").rename(project / "elsewhere" / "moved")
        monkeypatch.syspath_prepend(project / "elsewhere")
        assert origin.user_hash("moved.net") == before

    def test_an_installed_distribution_is_not_followed(self, project: Path) -> None:
        self.write(project, {"site-packages/bought.py": "", "buyer.py": "import bought\n"})
        sys.path.insert(0, str(project / "site-packages"))
        try:
            assert set(origin.imported("buyer")) == {"buyer"}
        finally:
            sys.path.remove(str(project / "site-packages"))

    def test_a_file_that_cannot_be_parsed_counts_by_its_bytes(self, project: Path) -> None:
        self.write(project, {"broken.py": "def (\n"})
        before = origin.user_hash("broken")
        (project / "broken.py").write_text("def )\n")
        assert origin.user_hash("broken") != before

    def test_our_own_module_stands_for_itself(self) -> None:
        assert origin.user_hash("edgekd.recipes.digits") == origin.source_hash(
            "edgekd.recipes.digits"
        )
        found = set(origin.imported("edgekd.artifact"))
        assert {"edgekd.artifact", "edgekd.durable", "edgekd.errors", "edgekd.progress"} <= found
        assert {name.partition(".")[0] for name in found} == {"edgekd"}

    @pytest.mark.parametrize("name", ["no_such_module", "sys", "", "no_such.x"])
    def test_a_module_that_is_not_there(self, name: str) -> None:
        for ask in (origin.imported, origin.user_hash):
            with pytest.raises(ConfigError, match=says(f"python module {name!r} was not found")):
                ask(name)


def test_versions_are_read_without_import_and_absence_is_said() -> None:
    found = origin.versions("pydantic", "no-such-distribution")
    assert re.fullmatch(r"\d+\.\d+.*", found["pydantic"])
    assert found["no-such-distribution"] == "absent"
