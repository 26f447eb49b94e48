"""Examples from files: images, text and text pairs through Hugging Face `datasets`.

`datasets` turns files into Arrow tables in its own cache directory (``HF_DATASETS_CACHE``), maps
them into memory and gives any rows by number. A batch is read, decoded and preprocessed when it is
taken, so a data set is never in memory as a whole, and its order is that of the sorted files. No
code of a data set is ever run: what is read is folders of images, parquet and csv. A hub id is
passed through to `datasets`, which downloads it where it may (``HF_HUB_OFFLINE``); what is tested
here is what is said where it cannot.

Labels become class numbers in the order of the network's own names where it has them, since a
checkpoint's classes are not the data's. Words without such an order are numbered as they sort:
those of the training split, and a word that only the evaluation split has is an error. With
``distill.losses.labels_from = "teacher"`` nobody reads the training split's: it may have none, and
those it has are zeros from here on.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import data, interface, noise
from edgekd.data import IO, Arrays, Data
from edgekd.errors import ConfigError, names_that_exist
from edgekd.interface import Interface
from edgekd.io_json import TOKENIZER
from edgekd.origin import file_hash, versions
from edgekd.preprocess import Preprocessor
from edgekd.recipe import Recipe

FORMATS = ("imagefolder", "parquet", "csv")
LABEL = "label"  # what its column is called on the hub and in most files
CHUNK = 1 << 16  # rows whose labels are held as Python objects at a time


def load(recipe: Recipe) -> Data:
    """The data of a recipe, whatever its source.

    Args:
        recipe: Its data section decides; for files, with the teacher's own preprocessing.

    Raises:
        ConfigError: The source, a file, a column or a label is wrong; see `data.load` too.
    """
    scheme = recipe.data.source.partition(":")[0]
    if scheme == "hf":
        found = _from_files(recipe)
    elif recipe.data.source == "random":
        found = noise.draw(recipe)
    else:
        found = data.load(recipe.data.source)
    if recipe.data.metric is None:
        return found
    data.python_object(recipe.data.metric, "data.metric")
    return dataclasses.replace(found, io=found.io.model_copy(update={"metric": recipe.data.metric}))


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read."""

    inputs: list[str]
    label: str


@dataclass(frozen=True)
class Rows:
    """A split of a table that lies on disk.

    Attributes:
        table: A `datasets.Dataset`.
        columns: What is read of it.
        labels: int64[rows].
        prepare: Makes the inputs.
        where: To begin messages with.
    """

    table: Any
    columns: Columns
    labels: NDArray[np.int64]
    prepare: Preprocessor
    where: str

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> tuple[Arrays, NDArray[np.int64]]:
        """Read, decode and preprocess some rows.

        Raises:
            ConfigError: One of them cannot be read; it is named.
        """
        picked = self.table[rows.tolist()]
        first = picked[self.columns.inputs[0]]
        names = [f"{self.where}, row {row}" for row in rows]
        if self.prepare.kind == "image":
            names = [_told(n, cell) for n, cell in zip(names, first, strict=True)]
            return self.prepare([_bytes(cell) for cell in first], names), self.labels[rows]
        pair = len(self.columns.inputs) == 2
        items = list(zip(first, picked[self.columns.inputs[1]], strict=True)) if pair else first
        return self.prepare(items, names), self.labels[rows]


def _bytes(cell: Any) -> Any:
    if cell is None:
        return b""
    return cell["bytes"] if cell["bytes"] is not None else cell["path"]


def _told(name: str, cell: Any) -> str:
    path = None if cell is None else cell["path"]
    return f"{name} ({path})" if path else name


def _from_files(recipe: Recipe) -> Data:
    settings, what = recipe.data, interface.of_recipe(recipe)
    where = f"data.source {settings.source!r}"
    files: dict[str, list[str]] = {}
    kind = settings.source.partition(":")[2]
    if kind in FORMATS:
        named = {"train": settings.train, "evaluation": settings.evaluation}
        files = {split: _files(recipe.base, given, split) for split, given in named.items()}
        # Together, so that both have the same classes; `datasets` then wants the same columns.
        together = [files] if _read_labels(recipe, "train") else [{k: v} for k, v in files.items()]
        tables = {s: t for part in together for s, t in _read(kind, part, where).items()}
    else:
        tables = {
            split: _read_hub(kind, str(getattr(settings, split)), where)
            for split in ("train", "evaluation")
        }
    labelled = {split: table for split, table in tables.items() if _read_labels(recipe, split)}
    features = next(iter(labelled.values())).features
    columns = _columns(recipe, features, where)
    io = what.io(labels := _labels(labelled, columns.label, what, where))
    if _type(features[columns.label]) != "integer":
        interface.tell_order(recipe, what, labels)
    prepare = Preprocessor(io, what.files.get(TOKENIZER), where)
    splits = {}
    for split, table in tables.items():
        called = f"{where}, {split} split"
        wanted = [*columns.inputs, *([columns.label] if split in labelled else [])]
        if missing := [name for name in wanted if name not in table.features]:
            raise ConfigError(
                f"{called}: has columns {', '.join(table.features)}, expected {missing[0]!r} too"
            )
        splits[split] = _rows(
            table, columns, labels if split in labelled else None, prepare, called
        )
    content = functools.partial(_content, recipe, columns, files) if files else None
    return Data(splits["train"], splits["evaluation"], io, what.files, content)


def _read_labels(recipe: Recipe, split: str) -> bool:
    """Whether anybody reads the labels of a split."""
    fit, losses = recipe.teacher.fit, recipe.distill.losses
    fitted = fit is not None and fit.steps > 0
    return split != "train" or fitted or losses.labels_from == "truth"


def _rows(
    table: Any, columns: Columns, labels: Sequence[str] | None, prepare: Preprocessor, where: str
) -> Rows:
    """A split; its labels are zeros where nobody reads them (`labels` is None)."""
    import datasets

    unread = np.zeros(len(table), np.int64)
    numbers = unread if labels is None else _numbers(table, columns.label, labels, where)
    if len(numbers) == 0:
        raise ConfigError(f"{where}: holds 0 examples, expected at least 1")
    if prepare.kind == "image":
        # Decoded by edgekd.preprocess, as an image file is on the device.
        table = table.cast_column(columns.inputs[0], datasets.Image(decode=False))
    table = table.select_columns(columns.inputs)
    return Rows(table, columns, numbers, prepare, where)


def _files(base: Path, given: str | list[str] | None, split: str) -> list[str]:
    """Sorted absolute paths of what a recipe names: files, patterns, or whole directories."""
    found: set[str] = set()
    for pattern in [given] if isinstance(given, str) else given or []:
        matched = glob(str(base.resolve() / pattern), recursive=True)  # noqa: PTH207 (may be absolute)
        if not matched:
            raise ConfigError(f"data.{split}: {pattern!r} names no file below {base.resolve()}")
        for path in map(Path, matched):
            inside = path.rglob("*") if path.is_dir() else [path]
            found |= {str(file) for file in inside if file.is_file()}
    if not found:
        raise ConfigError(f"data.{split}: {given!r} names directories without files")
    return sorted(found)


def _read(kind: str, files: Mapping[str, list[str]], where: str) -> dict[str, Any]:
    import datasets

    options: dict[str, Any] = {}
    if kind == "imagefolder":
        options = {"drop_labels": False}
    elif kind == "csv":
        # "NA" and "null" are words; the tab-separated format knows no quotes.
        tabs = {Path(file).suffix == ".tsv" for named in files.values() for file in named}
        if len(tabs) > 1:
            raise ConfigError(f"{where}: names .tsv files and others, expected one kind")
        options = {
            "keep_default_na": False,
            **({"sep": "\t", "quoting": 3} if True in tabs else {}),
        }
    data_files = {split: [escape(file) for file in named] for split, named in files.items()}
    with _quiet(where):
        return dict(datasets.load_dataset(kind, data_files=data_files, **options))


def _read_hub(name: str, split: str, where: str) -> Any:
    import datasets

    with _quiet(where):
        return datasets.load_dataset(name, split=split)


@contextmanager
def _quiet(where: str) -> Iterator[None]:
    """Without its progress bars; whatever it raises as one sentence."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:  # datasets, pyarrow, pandas and fsspec raise what they like
        root = error.__cause__ or error
        reason = " ".join(str(root).split())[:300]
        raise ConfigError(f"{where}: cannot be read ({type(root).__name__}: {reason})") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _columns(recipe: Recipe, features: Mapping[str, Any], where: str) -> Columns:
    """The columns a recipe names, or the only ones of their type."""
    settings = recipe.data
    types = {name: _type(feature) for name, feature in features.items()}
    text = settings.text is not None or (settings.image is None and "image" not in types.values())
    asked = {"text": settings.text, "text_pair": settings.text_pair} if text else {}
    named = [settings.image] if settings.image else [name for name in asked.values() if name]
    for name in [*named, *([settings.label] if settings.label else [])]:
        if name not in types:
            raise ConfigError(f"{where}: has no column {name!r}. {names_that_exist(name, types)}")
    # A column that is called so may hold words beside a text; of others only the type tells.
    kinds = ("class", "integer", "text" if not text else "class")
    usual = types.get(LABEL) in (*kinds, "text") and LABEL not in named
    if LABEL in types and not usual and settings.label is None and LABEL not in named:
        raise ConfigError(
            f"{where}: column {LABEL!r} holds {types[LABEL]}, expected class names or numbers: "
            f"name another as data.label, or use a python: source. Columns: {_listed(types)}"
        )
    label = settings.label or (LABEL if usual else _only(types, kinds, named, "label", where))
    wanted = "text" if text else "image"
    if not named or (text and settings.text is None):
        named = [_only(types, (wanted,), [label, *named], wanted, where), *named]
    for name in named:
        if types[name] != wanted:
            raise ConfigError(
                f"{where}: column {name!r} holds {types[name]}, expected {wanted}. Columns: "
                f"{_listed(types)}"
            )
    return Columns(named, label)


def _only(
    types: Mapping[str, str], wanted: Sequence[str], taken: Sequence[str], what: str, where: str
) -> str:
    """The one column of the first wanted type that any free column has."""
    for kind in wanted:
        free = [name for name, found in types.items() if found == kind and name not in taken]
        if len(free) == 1:
            return free[0]
        if free:
            break
    without = ""
    if what == "label" and not free:
        without = " (the training split alone can do without, with distill.losses.labels_from = "
        without += "'teacher')"
    raise ConfigError(
        f"{where}: which column is the {what} is not clear, name it as data.{what}{without}. "
        f"Columns: {_listed(types)}"
    )


def _listed(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in types.items())


def _type(feature: Any) -> str:
    """What a column holds: image, class, integer or text, else its dtype."""
    import datasets

    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}:
        return "image"  # as any parquet writer stores it, without the library's own remark
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    name = getattr(feature, "dtype", "")
    if name.startswith(("int", "uint")) or name == "bool":
        return "integer"
    return "text" if name in ("string", "large_string") else str(name or "other")


def _labels(tables: Mapping[str, Any], column: str, what: Interface, where: str) -> list[str]:
    """Names of the classes, in the order of their numbers."""
    first = next(iter(tables.values()))  # the training split, where its labels are read
    feature = first.features[column]
    kind = _type(feature)
    if kind == "class":
        names = list(feature.names)
    elif kind == "text":
        names = sorted(word for word in first.unique(column) if word)
    elif kind == "integer":
        values = [v for table in tables.values() for v in table.unique(column)]
        count = what.classes or 1 + max(int(v) for v in values if v is not None)
        return list(what.labels or map(str, range(count)))
    else:
        raise ConfigError(
            f"{where}: column {column!r} holds {getattr(feature, 'dtype', feature)}, expected "
            "class names or numbers: use a python: source for another task"
        )
    if what.labels and set(names) <= set(what.labels):
        return list(what.labels)
    if what.labels:
        strange = sorted(set(names) - set(what.labels))
        raise ConfigError(
            f"{where}: {len(strange)} of {len(names)} classes are not the network's own, first "
            f"{strange[0]!r}. {names_that_exist(strange[0], what.labels[:20])}"
        )
    return names


def _numbers(table: Any, column: str, labels: Sequence[str], where: str) -> NDArray[np.int64]:
    """Class numbers int64[rows] in the order of `labels`."""
    feature, rows = table.features[column], table.select_columns([column])
    order, kind = {name: number for number, name in enumerate(labels)}, _type(feature)
    numbers = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), CHUNK):
        cells = rows[start : start + CHUNK][column]
        for index, cell in enumerate(cells, start):
            if cell is None or cell == "":
                raise ConfigError(f"{where}: row {index} has no {column!r}: give it a label")
            if kind == "class" and cell < 0:
                raise ConfigError(f"{where}: row {index} has no label (-1): leave it out")
            if kind == "integer":
                numbers[index] = cell
                continue
            name = feature.names[cell] if kind == "class" else cell
            if name not in order:
                raise ConfigError(
                    f"{where}: row {index} has label {name!r}, which neither the training split "
                    "nor the network's configuration has: correct it, or leave the row out. "
                    f"{names_that_exist(name, labels[:20])}"
                )
            if len(order) < len(labels) and labels.count(name) > 1:
                raise ConfigError(
                    f"{where}: row {index} has label {name!r}, the name of {labels.count(name)} of "
                    f"the network's {len(labels)} classes: give each its own in id2label"
                )
            numbers[index] = order[name]
    io = IO(inputs=[], outputs=[], labels=list(labels))
    data.check_labels(where, numbers, io, 0, len(numbers))
    return numbers


def _content(recipe: Recipe, columns: Columns, files: Mapping[str, list[str]]) -> str:
    """SHA-256 of the files, how rows are read from them, and the libraries that decode them."""
    digest = hashlib.sha256(f"{recipe.data.source} {columns}".encode())
    digest.update(str(versions("pillow", "tokenizers")).encode())
    for split, named in files.items():
        for name in named:
            # Where a file lies decides the class in an imagefolder, and the order everywhere.
            place = Path(os.path.relpath(name, recipe.base.resolve())).as_posix()
            status = Path(name).stat()
            found = _hash(name, status.st_size, status.st_mtime_ns)
            digest.update(f"{split} {place} {found}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=1 << 20)
def _hash(name: str, _size: int, _mtime_ns: int) -> str:
    """A file's hash, once a process: every stage asks for it."""
    return file_hash(Path(name))
