"""Reads rows from data files: JSON lines, JSON arrays, Parquet, Arrow, CSV and TSV. A file can be compressed.

A source is a file, a folder or a glob pattern. The rows of a file are read one after another, so the first rows of a
large file are available early. Only a .json file is read as a whole. Each row has a place (`FILE:LINE`, or
`FILE, row N`), which error messages name. If a source begins with `hub:`, the library `datasets` reads a data set of
the hub.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from schoolhouse.types import SchoolError

FORMATS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv")
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
HUB = "hub:"
SPLITS = ("train", "test", "validation", "valid", "val", "dev")
WRAPPERS = ("data", "rows", "train", "examples", "instances")
"""Keys of a JSON object whose value can be the list of rows."""

_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # written by `datasets`
_BATCH = 1_024
_DECODE_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)
_LFS = b"version https://git-lfs"


class SourceRow(NamedTuple):
    """One row of a file. If the row cannot be read, `error` gives the reason and `values` is empty."""

    values: Mapping[str, Any]
    place: str
    error: str = ""


def data_files(source: str, split: str = "") -> list[Path]:
    """Return the files of a source (a file, a folder or a glob pattern), sorted by name.

    split  only the files of this split are returned, such as `train-00000-of-00002.parquet` or `test/data.jsonl`

    Raises SchoolError if the source has no data files, or if it has files of several splits or subsets.
    """
    path = Path(source)
    if path.is_dir():
        found = [each for each in sorted(path.rglob("*")) if _is_data(each) and not _is_hidden(each, path)]
        lines = [each for each in found if format_of(each) != ".json"]
        found = lines or found  # beside other data, a .json file describes the data
    elif path.exists() or not glob.has_magic(source):
        if split and split != split_of(path, path.parent):
            raise SchoolError(f"{source} is one file, but `split={split}` chooses files of a folder; remove `split`")
        return [path]
    else:
        found = [Path(name) for name in sorted(glob.glob(source, recursive=True)) if _is_data(Path(name))]
    if not found:
        kinds = ", ".join(FORMATS)
        raise SchoolError(f"{source} has no data files; a data file has a name with {kinds}, also with .gz or .zst")
    by_split: dict[str, list[Path]] = {}
    for each in found:
        by_split.setdefault(split_of(each, path), []).append(each)
    if split:
        if split not in by_split:
            known = ", ".join(name for name in by_split if name) or "none"
            raise SchoolError(f"{source} has no files of the split `{split}`; choose one of its splits: {known}")
        found = by_split[split]
    elif len(by_split) > 1:
        names = [name for name in by_split if name]
        advice = f"choose one: `?split={names[0]}`"
        raise SchoolError(
            f"{source} has files of several splits ({', '.join(name or 'others' for name in by_split)}); {advice}"
        )
    if len(formats := sorted({format_of(each) for each in found})) > 1:
        advice = f"choose the files of one format: `{path if path.is_dir() else '...'}/**/*{formats[0]}*`"
        raise SchoolError(
            f"{source} has files of several formats ({', '.join(formats)}), which may hold the same rows; {advice}"
        )
    parents = sorted({str(each.parent) for each in found})
    if path.is_dir() and len(parents) > 1 and len({Path(each).name for each in parents} - set(SPLITS)) > 1:
        raise SchoolError(f"{source} has data in several folders ({', '.join(parents[:4])}, ...); give one of them")
    return found


def split_of(path: Path, root: Path) -> str:
    """Return the split that the file name or a folder below `root` names, or an empty text."""
    parts = path.parts[len(root.parts) :] if path.is_relative_to(root) else path.parts[-1:]
    for part in reversed(parts):
        words = re.split(r"[^a-z]+", part.casefold())
        if named := next((split for split in SPLITS if split in words), ""):
            return named
    return ""


def format_of(path: Path) -> str:
    """Return the format by the file name, such as `.jsonl` for `rows.jsonl.gz`. If the format is unknown, an empty text
    is returned."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else ""


def iter_rows(source: str, split: str = "", subset: str = "") -> Iterator[SourceRow]:
    """Yield the rows of a file, a folder, a glob pattern, or a data set of the hub (`hub:ORG/NAME`).

    split   the split of a folder or a hub data set
    subset  the configuration of a hub data set
    A row that cannot be read is yielded with its error. Raises SchoolError if a whole file cannot be read.
    """
    if source.startswith(HUB):
        yield from _hub_rows(source.removeprefix(HUB), split, subset)
        return
    if subset:
        raise SchoolError(f"{source} is not on the hub, and only the hub has `subset`; give the folder of the subset")
    for path in data_files(source, split):
        yield from _file_rows(path)


def _file_rows(path: Path) -> Iterator[SourceRow]:
    kind = format_of(path)
    try:
        if kind and not path.is_fifo():  # a pipe can be read only once
            _refuse_pointer(path)
        match kind:
            case ".parquet":
                yield from _parquet_rows(path)
            case ".arrow":
                yield from _arrow_rows(path)
            case ".csv" | ".tsv":
                yield from _csv_rows(path)
            case ".json":
                yield from _json_rows(path)
            case ".jsonl" | ".ndjson":
                yield from _jsonl_rows(path)
            case _ if not path.exists():
                raise SchoolError(f"cannot read {path}: No such file or directory; give a file of {', '.join(FORMATS)}")
            case _:
                raise SchoolError(f"{path} has an unknown format; the name of a data file ends in {', '.join(FORMATS)}")
    except _DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SchoolError(f"cannot read {path}: {reason}; give the path of an undamaged file") from error


def _refuse_pointer(path: Path) -> None:
    """Raise SchoolError if Git LFS has not yet replaced its pointer by the data."""
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise SchoolError(f"{path} is a Git LFS pointer, not the data; run `git lfs pull`")


def open_binary(path: Path) -> io.BufferedIOBase:
    """Open a file for reading. The end of the file name says how the file is decompressed."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path, "rb")
        case ".bz2":
            return bz2.open(path, "rb")
        case ".xz":
            return lzma.open(path, "rb")
        case ".zst":
            pyarrow = import_module("pyarrow")
            return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    return path.open("rb")


# ---- JSON


def _jsonl_rows(path: Path) -> Iterator[SourceRow]:
    with open_binary(path) as file:
        for line, raw in enumerate(file, 1):
            place = f"{path}:{line}"
            try:
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                yield SourceRow({}, place, "not UTF-8 text; save the file as UTF-8")
                continue
            if text:
                yield _parse_line(text, place)


def _parse_line(text: str, place: str) -> SourceRow:
    try:
        row = json.loads(text, object_pairs_hook=_mapping)
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg} at column {error.colno}); each line must be one JSON object"
        return SourceRow({}, place, reason)
    except (ValueError, RecursionError) as error:
        return SourceRow({}, place, f"the JSON cannot be read ({error}); each line must be one JSON object")
    return _checked(row, place, "each line")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object. Raises ValueError if a key occurs twice, because one of the two values would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(
            f"the key `{next(key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1)}` occurs twice"
        )
    return found


def _checked(row: Any, place: str, each: str) -> SourceRow:
    if not isinstance(row, dict):
        return SourceRow(
            {}, place, f'not a JSON object; {each} must be one, such as {{"question": ..., "answer": ...}}'
        )
    return SourceRow(row, place)


def _json_rows(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of a .json file: an array of objects, an object with such an array, or objects one after
    another."""
    with open_binary(path) as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SchoolError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    start = _skip_blanks(text, 0)
    if text[start : start + 1] == "[":
        yield from _array_rows(path, text, start)
        return
    rows = list(_sequence(path, text, start))
    inner = [key for key in WRAPPERS if len(rows) == 1 and _is_rows(rows[0].values.get(key))]
    if inner:
        for number, row in enumerate(rows[0].values[inner[0]], 1):
            if row.keys() >= {"row_idx", "row"}:  # as the server of the hub answers
                row = row["row"]
            yield _checked(row, f"{path}, row {number} of `{inner[0]}`", "each row")
        return
    yield from rows


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _array_rows(path: Path, text: str, start: int) -> Iterator[SourceRow]:
    at, line, counted = _skip_blanks(text, start + 1), 1, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        value, at = _decode(path, text, at, line)
        yield _checked(value, f"{path}:{line}", "each element of the array")
        at = _skip_blanks(text, at)
        if text[at : at + 1] == ",":
            at = _skip_blanks(text, at + 1)
        elif text[at : at + 1] != "]":
            line += text.count("\n", counted, at)
            raise SchoolError(f"{path}:{line}: the JSON array needs `,` or `]` here; check that the file is complete")


def _sequence(path: Path, text: str, at: int) -> Iterator[SourceRow]:
    line, counted = 1, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        value, at = _decode(path, text, at, line)
        yield _checked(value, f"{path}:{line}", "each value")
        at = _skip_blanks(text, at)


def _decode(path: Path, text: str, at: int, line: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder(object_pairs_hook=_mapping).raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise SchoolError(
            f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno}); correct the file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SchoolError(f"{path}:{line}: the JSON cannot be read ({error}); correct the file") from None


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


# ---- tables


def _csv_rows(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of a CSV or TSV file. Every cell is text, so `007` stays `007`."""
    tabs = format_of(path) == ".tsv"
    csv.field_size_limit(sys.maxsize)
    with open_binary(path) as file:
        reader = csv.reader(_utf8_lines(path, file), delimiter="\t" if tabs else ",", strict=True)
        try:
            header = next(reader, [])
            names = ["index" if not name.strip() and at == 0 else name.strip() for at, name in enumerate(header)]
            if len(names) == 1 and ";" in names[0]:
                raise SchoolError(f"{path}:1: `;` separates the columns; save the file with commas between columns")
            if not all(names) or len(set(names)) < len(names):
                raise SchoolError(f"{path}:1: the first line is {','.join(header)[:80]}; it must name each column once")
            end = reader.line_num
            for cells in reader:
                place, end = f"{path}:{end + 1}", reader.line_num
                if not cells:
                    continue
                if len(cells) != len(names):
                    yield SourceRow({}, place, f"has {len(cells)} cells; the first line names {len(names)} columns")
                else:
                    yield SourceRow(dict(zip(names, cells, strict=True)), place)
        except csv.Error as error:
            raise SchoolError(f"{path}:{reader.line_num}: not CSV ({error}); put text with commas in quotes") from None


def _utf8_lines(path: Path, file: Iterable[bytes]) -> Iterator[str]:
    for number, raw in enumerate(file, 1):
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise SchoolError(f"{path}:{number}: not UTF-8 text; save the file as UTF-8") from None


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    if path.suffix.lower() != ".parquet":
        raise SchoolError(f"{path} is a compressed Parquet file; decompress it to a file whose name ends in .parquet")
    parquet = import_module("pyarrow.parquet")
    with _arrow_errors(path), parquet.ParquetFile(path) as opened:
        number = 0
        for batch in opened.iter_batches(_BATCH):
            for row in batch.to_pylist():
                number += 1
                yield SourceRow(row, f"{path}, row {number}")


def _arrow_rows(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of an Arrow file. The library `datasets` writes Arrow files with `save_to_disk` and into its
    cache."""
    pyarrow = import_module("pyarrow")
    with _arrow_errors(path), pyarrow.memory_map(str(path)) as file:
        number = 0
        for batch in pyarrow.ipc.open_stream(file):
            batch.validate(full=True)  # offsets in a damaged file may lead anywhere
            for row in batch.to_pylist():
                number += 1
                yield SourceRow(row, f"{path}, row {number}")


@contextmanager
def _arrow_errors(path: Path) -> Generator[None]:
    """Turn an error of pyarrow into a SchoolError that names the file."""
    try:
        yield
    except (import_module("pyarrow").ArrowException, ValueError, TypeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise SchoolError(f"{path} is damaged, or its name has a wrong ending ({reason}); copy it again") from error


def _hub_rows(name: str, split: str, subset: str) -> Iterator[SourceRow]:
    """Yield the rows of a hub data set. The library `datasets` downloads the data set, or reads it from the cache."""
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise SchoolError(
            f"{HUB}{name} needs the library `datasets`; install it (pip install datasets), or give the path of a file"
        ) from None
    try:
        loaded = datasets.load_dataset(name, subset or None)
    except Exception as error:  # the library raises errors of many packages
        raise SchoolError(
            f"{HUB}{name} cannot be loaded ({str(error).partition(chr(10))[0]}); check the name and the network"
        ) from error
    splits = [str(name) for name in loaded]
    if split not in splits and (split or len(splits) > 1):
        raise SchoolError(f"{HUB}{name} has the splits {', '.join(splits)}; choose one: `?split={splits[0]}`")
    for number, row in enumerate(loaded[split or splits[0]], 1):
        yield SourceRow(row, f"{HUB}{name}, row {number}")


# ---- folders


def _is_data(path: Path) -> bool:
    return path.is_file() and bool(format_of(path)) and path.name not in _METADATA


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
