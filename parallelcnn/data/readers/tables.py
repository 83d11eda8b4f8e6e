"""Read tables of numbers with a column of labels: CSV files, plain, in .gz or in .zip, and folders of them.

Columns are separated by commas, semicolons or tabs. The first line may name them. A line is read at a time, so that an
error names it.
"""

import codecs
import csv
import math
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parallelcnn.data.assembly import ROLES, Part, assemble
from parallelcnn.data.conversion import Array
from parallelcnn.data.readers.idx import open_content
from parallelcnn.data.sets import DataSets
from parallelcnn.errors import DataError
from parallelcnn.files.archive import open_npz
from parallelcnn.resources import memory_limit
from parallelcnn.wording import listed

FORMAT = "CSV with a column of labels, also as .gz or .zip, or a folder of train.csv and test.csv"

_ENDS = (".csv", ".tsv")
_ROLE_OF = {"train": "train", "training": "train", "test": "test", "val": "validation", "valid": "validation"}
_ROLE_OF["validation"] = "validation"
_LABEL_NAMES = ("label", "labels", "class", "target", "y")
_ROW_NAMES = ("", "id", "index", "unnamed: 0")  # of columns that only number the rows
_PIXEL_NAME = re.compile(r"pi?x(el)?[ _-]?\d+|\d+x\d+")
_NUMBERED = re.compile(r"[a-z]*[ _-]?\d+|\d+x\d+")
_LEAST_PIXELS = 64  # of a table whose columns have no names of pixels
_BYTE = re.compile(r"[0-9]{1,3}")
_LONGEST_LINE = 1 << 24  # bytes
_PIECE_BYTES = 1 << 18
_SAMPLE = 100  # rows from which the form of a table is told


class _Table(NamedTuple):
    """A table that can be read.

    Attributes:
        title: how messages call it.
        open: opens its uncompressed contents; errors become DataErrors.
    """

    title: str
    open: Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class _Form:
    """How a table is laid out.

    Attributes:
        names: of the columns; None: the table does not name them.
        columns: number of columns.
        label: the column of labels.
        unused: columns that number the rows.
        bytes: whether the rows looked at hold whole numbers from 0 to 255.
    """

    separator: str
    names: tuple[str, ...] | None
    columns: int
    label: int
    unused: frozenset[int]
    bytes: bool

    def column(self, place: int) -> str:
        return f"column {place + 1}" if self.names is None else f"column {self.names[place]!r}"

    @property
    def features(self) -> list[int]:
        return [place for place in range(self.columns) if place != self.label and place not in self.unused]


def recognises(path: Path) -> bool:
    """Whether this is a CSV file by its name, an archive that holds one, or a folder with one of a data set's names."""
    if path.is_dir():
        return any(_is_table(name) and _role_of(name) for name in os.listdir(path))
    if path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
        return bool(_members(path))
    return path.is_file() and _is_table(path.name)


def load(path: Path, name: str) -> DataSets:
    """Load the tables. In a folder or archive of several, their names say which is which, such as train.csv.

    Raises:
        DataError: if a table is damaged, or the tables do not fit together.
    """
    tables = _find_tables(path)
    form = _form_of(tables["train"])
    notes = [f"labels in {form.column(form.label)}"]
    notes += [f"{form.column(place)} is not used" for place in sorted(form.unused)]
    forms = {}
    for role, table in tables.items():
        own = form if role == "train" else _form_like(table, form)
        if own is None:
            notes.append(f"{os.path.basename(table.title)} has no labels and is not used")
        else:
            forms[role] = own
    side = _side_of_images(form)

    def read(kind: type, side: int | None) -> DataSets:
        label_kinds: list[type] = []
        parts = {role: partial(_read_part, tables[role], one, kind, side, label_kinds) for role, one in forms.items()}
        return assemble(name, "CSV", parts)

    try:
        sets = read(np.uint8 if all(one.bytes for one in forms.values()) else np.float32, side)
    except _NotBytes:
        sets = read(np.float32, side if _has_pixel_names(form) else None)
    return replace(sets, found="; ".join([sets.found, *notes]))


class _NotBytes(Exception):
    """A table holds something else than whole numbers from 0 to 255, behind the rows that were looked at."""


def _is_table(name: str) -> bool:
    name = name.lower().removesuffix(".gz").removesuffix(".zip")
    return name.endswith(_ENDS) and not name.startswith(".")


def _role_of(name: str) -> str | None:
    roles = {_ROLE_OF[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _ROLE_OF}
    return roles.pop() if len(roles) == 1 else None


def _members(path: Path) -> list[str]:
    with open_npz(path, "zip file", DataError) as archive:
        names = archive.namelist()
    return [name for name in names if _is_table(os.path.basename(name)) and not name.startswith("__MACOSX")]


def _find_tables(path: Path) -> dict[str, _Table]:
    """The tables at a path, by role; the training set first."""
    if path.is_dir():
        names = sorted(name for name in os.listdir(path) if _is_table(name))
        tables = {}
        for name in names:
            for one, table in _tables_of_file(path / name).items():
                tables[one if one == name else f"{name}: {one}"] = table
    else:
        tables = _tables_of_file(path)
    if len(tables) == 1:
        return {"train": next(iter(tables.values()))}
    found: dict[str, _Table] = {}
    for name, table in tables.items():
        role = _role_of(os.path.basename(name))
        if role in found:
            raise DataError(f"{path}: {found[role].title} and {table.title} both seem to be the {ROLES[role]} set")
        if role:
            found[role] = table
    if "train" not in found:
        raise DataError(
            f"{path}: holds several tables, of which the names must say what they are, such as train.csv and test.csv, "
            f"got {listed(tables)}"
        )
    return {role: found[role] for role in ROLES if role in found}


def _tables_of_file(path: Path) -> dict[str, _Table]:
    if path.suffix.lower() == ".zip":
        return {name: _Table(f"{path}: {name}", partial(_open_member, path, name)) for name in _members(path)}
    return {path.name: _Table(str(path), partial(_open_file, path))}


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    try:
        with open_content(path) as file:
            yield file
    except (zlib.error, EOFError) as error:
        raise DataError(f"{path}: its gzip compression is damaged: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def _open_member(path: Path, name: str) -> Iterator[Any]:
    with open_npz(path, "zip file", DataError) as archive:
        entry = archive.getinfo(name)
        # With other methods zipfile decompresses to any size at once.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path}: {name} is compressed by another method than deflate")
        with archive.open(entry) as file:
            yield file


def _lines(table: _Table) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are not empty."""
    most, held, number, rest = memory_limit()[0], 0, 0, b""
    with table.open() as file:
        while True:
            piece = file.read1(_PIECE_BYTES)
            held += len(piece)
            lines = (rest + piece).splitlines(keepends=True)  # of all three kinds: LF, CR LF, and CR
            rest = lines.pop() if piece and not lines[-1].endswith(b"\n") else b""  # after CR, an LF may follow
            for line in lines:
                number += 1
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                try:
                    text = line.decode().rstrip("\r\n")
                except UnicodeDecodeError:
                    text = "\0"
                if "\0" in text:
                    raise DataError(f"{table.title}, line {number}: must be text in UTF-8")
                if text:
                    yield number, text
            if not piece:
                return
            if len(rest) > _LONGEST_LINE:
                raise DataError(f"{table.title}, line {number + 1}: is longer than {_LONGEST_LINE:,} bytes")
            if held > most:  # an archive may hold far more than its size
                raise DataError(f"{table.title}: what it holds does not fit into memory")


def _fields(line: str, separator: str) -> list[str]:
    if '"' not in line:
        return line.split(separator)
    try:
        reader = csv.reader([line, ""], delimiter=separator, skipinitialspace=True)
        fields = next(reader)
    except csv.Error:  # a field too long, because a quote is missing
        return [line]
    return fields if reader.line_num == 1 else [line]  # a field with an open quote takes the next line, too


def _form_of(table: _Table) -> _Form:
    """Tell the form of a table from its first rows."""
    separator, names, rows = _start_of(table)
    columns = len(names or rows[0])
    if columns < 2:
        raise DataError(
            f"{table.title}: must have a column of labels and others, separated by commas, semicolons or tabs, "
            f"got a line of {(names or rows[0])[0][:80]!r}"
        )
    rows = [row for row in rows if len(row) == columns]
    if not rows:
        raise DataError(f"{table.title}: no row has as many columns as the first line, {columns}")
    unused = frozenset(place for place, name in enumerate(names or ()) if name.lower() in _ROW_NAMES)
    form = _Form(separator, names, columns, _label_column(names, rows, unused), unused, False)
    if not form.features:
        raise DataError(f"{table.title}: must have other columns than that of the labels")
    return replace(form, bytes=_hold_bytes(rows, form))


def _start_of(table: _Table, separator: str | None = None) -> tuple[str, tuple[str, ...] | None, list[list[str]]]:
    """The separator, the names of the columns if there are any, and the first rows of a table."""
    lines = [line for _, line in islice(_lines(table), _SAMPLE + 1)]
    if not lines:
        raise DataError(f"{table.title}: is empty")
    separator = separator or max(",;\t", key=lines[0].count)
    rows = [[field.strip() for field in _fields(line, separator)] for line in lines]
    names = tuple(rows.pop(0)) if _is_header(rows[0]) else None
    if not rows:
        raise DataError(f"{table.title}: holds no rows, only the names of columns")
    return separator, names, rows


def _form_like(table: _Table, form: _Form) -> _Form | None:
    """The form of another table of the same source; None if it has no labels."""
    _, names, rows = _start_of(table, form.separator)
    without = form.columns - 1
    if names and form.names:
        if form.names[form.label] not in names and len(names) <= without:
            return None
        if names != form.names:
            raise DataError(
                f"{table.title}: must have the columns of the training table, {listed(form.names)}, got {listed(names)}"
            )
    elif len(rows[0]) == without:
        return None
    return replace(form, names=names, bytes=_hold_bytes(rows, form))


def _hold_bytes(rows: list[list[str]], form: _Form) -> bool:
    return all(
        _BYTE.fullmatch(row[place]) and int(row[place]) < 256
        for row in rows
        if len(row) == form.columns
        for place in form.features
    )


def _is_header(fields: list[str]) -> bool:
    """Whether these are names of columns: most are no numbers; or they count up, but for the name of a label column."""
    numbers = [field for field in fields if _is_number(field)]
    names = [field.lower() for field in fields if not _is_number(field)]
    if len(names) > len(numbers):
        return True
    counting = len(numbers) > 2 and numbers in [[str(first + n) for n in range(len(numbers))] for first in (0, 1)]
    return counting and set(names) <= {*_LABEL_NAMES, *_ROW_NAMES}


def _label_column(names: tuple[str, ...] | None, rows: list[list[str]], unused: frozenset[int]) -> int:
    """The column with the name of a label; else the only one without a name like the others', such as pixel7; else the
    first or the last, the one that holds no numbers, or whole ones if the other does not.
    """
    places = [place for place in range(len(rows[0])) if place not in unused]
    if names:
        lower = [name.lower() for name in names]
        for known in _LABEL_NAMES:
            if known in lower:
                return lower.index(known)
        others = [place for place in places if not _NUMBERED.fullmatch(lower[place])]
        if len(others) == 1:
            return others[0]
    if not places:
        return 0
    first, last = places[0], places[-1]
    first_numbers, last_numbers = (all(_is_number(row[place]) for row in rows if row[place]) for place in (first, last))
    if first_numbers != last_numbers:
        return last if first_numbers else first
    first_whole, last_whole = (all(_is_whole(row[place]) for row in rows if row[place]) for place in (first, last))
    return last if last_whole and not first_whole else first


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _is_whole(field: str) -> bool:
    return _is_number(field) and float(field).is_integer()


def _has_pixel_names(form: _Form) -> bool:
    return form.names is not None and all(_PIXEL_NAME.fullmatch(form.names[place].lower()) for place in form.features)


def _side_of_images(form: _Form) -> int | None:
    """Height and width of the images in a table's rows; None if they are no images.

    They are if their number is a square, and the columns have names of pixels (pixel0, 1x1), or there are 64 or more
    of whole numbers from 0 to 255, without names or with numbered ones.
    """
    side = math.isqrt(len(form.features))
    if side * side != len(form.features) or side < 2:
        return None
    numbered = form.names is None or all(_NUMBERED.fullmatch(form.names[place].lower()) for place in form.features)
    return side if _has_pixel_names(form) or (numbered and side * side >= _LEAST_PIXELS and form.bytes) else None


def _read_part(table: _Table, form: _Form, kind: type, side: int | None, label_kinds: list[type]) -> Part:
    """Read a table.

    Args:
        label_kinds: the kind of labels of each table before this one; that of this one is appended.
    """
    labels: list[str] = []
    try:
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            warnings.simplefilter("error", DeprecationWarning)  # some versions of numpy round 1.5 to an integer
            values: Array = np.loadtxt(_rows(table, form, labels), kind, None, form.separator, ndmin=2)
    except (ValueError, DeprecationWarning) as error:
        if isinstance(error, DataError):
            raise
        if kind is np.uint8:
            raise _NotBytes from None
        raise DataError(_first_damage(table, form) or f"{table.title}: is damaged: {error}") from None
    if values.shape[1] != len(form.features):  # all rows are as long, but not as those of the training table
        raise DataError(_first_damage(table, form) or f"{table.title}: is damaged")
    if kind is not np.uint8 and not np.isfinite(values).all():
        raise DataError(_first_damage(table, form) or f"{table.title}: numbers must fit into float32")
    shape = (side, side) if side else values.shape[1:]
    if not side:
        values = values.astype(np.float32, copy=False)  # no pixels, so that they must not be scaled as such
    title = f"{table.title}: {form.column(form.label)}"
    return Part(values.reshape(len(values), *shape), _as_labels(labels, label_kinds), table.title, title)


def _rows(table: _Table, form: _Form, labels: list[str]) -> Iterator[str]:
    """The lines of a table without labels and unused columns; the labels are added to `labels`."""
    lines, separator, last = _lines(table), form.separator, form.columns - 1
    if form.names is not None:
        next(lines)
    for number, line in lines:
        if '"' in line or form.unused or form.label not in (0, last):
            fields = _fields(line, separator)
            if len(fields) != form.columns:
                raise DataError(_wrong_length(table, form, number, len(fields)))
            label, line = fields[form.label], separator.join(fields[place] for place in form.features)
        elif form.label == 0:
            label, _, line = line.partition(separator)
        else:
            line, _, label = line.rpartition(separator)
        if not line:  # loadtxt would leave it out
            raise DataError(_no_number(table, form, number, form.features[0], line))
        label = label.strip()
        if not label:
            raise DataError(f"{table.title}, line {number}, {form.column(form.label)}: must be a label, got nothing")
        labels.append(label)
        yield line


def _as_labels(labels: Iterable[str], kinds: list[type]) -> Array:
    """Labels as integers, floats or names, whichever all of them are; names if those of the first table are.

    Args:
        kinds: see `_read_part`.
    """
    found = np.array(labels, str)
    for kind in () if kinds[:1] == [str] else (np.int64, np.float64):
        try:
            converted = found.astype(kind)
        except (ValueError, OverflowError):
            continue
        kinds.append(kind)
        return converted
    kinds.append(str)
    return found


def _wrong_length(table: _Table, form: _Form, number: int, found: int) -> str:
    return f"{table.title}, line {number}: must have {form.columns} columns, got {found}"


def _first_damage(table: _Table, form: _Form) -> str | None:
    """What is wrong with the first damaged line; None if none is. Slow, and only called after an error."""
    lines = _lines(table)
    if form.names is not None:
        next(lines)
    features = form.features
    for number, line in lines:
        fields = _fields(line, form.separator)
        if len(fields) != form.columns:
            return _wrong_length(table, form, number, len(fields))
        for place in features:
            if not _is_number(fields[place]) or not math.isfinite(float(fields[place])):
                return _no_number(table, form, number, place, fields[place])
    return None


def _no_number(table: _Table, form: _Form, number: int, place: int, field: str) -> str:
    return f"{table.title}, line {number}, {form.column(place)}: must be a finite number, got {field.strip()[:40]!r}"
