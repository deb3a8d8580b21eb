"""Rows of data files: every format gives the same rows, places are lines, and damaged files are named."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.data.files import data_files, iter_rows
from schoolhouse.types import SchoolError

ROWS: list[dict[str, Any]] = [
    {"question": "What is 6 times 3?", "answer": "18"},
    {"question": 'Say "hi",\nand é.', "answer": "007"},
]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def csv_bytes(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def arrow_bytes(rows: list[dict[str, Any]]) -> bytes:
    file, table = io.BytesIO(), pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def zstd(raw: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(raw, asbytes=True)


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "rows.jsonl": jsonl,
    "rows.ndjson": jsonl,
    "lines.json": jsonl,
    "array.json": lambda rows: json.dumps(rows, indent=2).encode(),
    "compact.json": lambda rows: json.dumps(rows).encode(),
    "wrapped.json": lambda rows: json.dumps({"version": 1, "data": rows}).encode(),
    "bom.json": lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode(),
    "rows.csv": csv_bytes,
    "rows.tsv": lambda rows: csv_bytes(rows, "\t"),
    "rows.parquet": parquet_bytes,
    "rows.arrow": arrow_bytes,
    "rows.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "rows.jsonl.zst": lambda rows: zstd(jsonl(rows)),
    "frames.jsonl.zst": lambda rows: b"".join(zstd(jsonl([row])) for row in rows),
    "rows.jsonl.bz2": lambda rows: bz2.compress(jsonl(rows)),
    "rows.jsonl.xz": lambda rows: lzma.compress(jsonl(rows)),
    "rows.csv.gz": lambda rows: gzip.compress(csv_bytes(rows)),
    "array.json.zst": lambda rows: zstd(json.dumps(rows).encode()),
}


def values(source: Path | str, **options: str) -> list[dict[str, Any]]:
    rows = list(iter_rows(str(source), **options))
    assert not [row.error for row in rows if row.error]
    return [dict(row.values) for row in rows]


def without_bytes(value: object) -> str | None:
    """The id of a parameter: compressed bytes differ from process to process."""
    return "bytes" if isinstance(value, bytes) else None


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WRITERS[name](ROWS))
    assert values(tmp_path / name) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": 2}', [":1", ":3"]),
        ("a.json", b'[\n  {"a": 1},\n\n  {"a":\n 2},\n {"a": 3}]', [":2", ":4", ":6"]),
        ("a.json", b'{"a": 1}\n{"a":\n2}\n{"a": 3}', [":1", ":2", ":4"]),
        ("a.json", b'{"rows": [{"a": 1}, {"a": 2}]}', [", row 1 of `rows`", ", row 2 of `rows`"]),
        ("a.csv", b'a,b\n1,"x\ny"\n2,z\n', [":2", ":4"]),
        ("a.parquet", parquet_bytes([{"a": 1}, {"a": 2}]), [", row 1", ", row 2"]),
    ],
    ids=without_bytes,
)
def test_the_place_of_a_row_is_its_line_or_number(tmp_path: Path, name: str, content: bytes, places: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert [row.place.removeprefix(str(path)) for row in iter_rows(str(path))] == places


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(rows=st.lists(st.dictionaries(st.text(), JSON), min_size=1), indent=st.sampled_from([None, 0, 3]))
def test_an_array_is_what_json_reads(tmp_path_factory: pytest.TempPathFactory, rows: list, indent: int | None) -> None:
    path = tmp_path_factory.mktemp("array") / "rows.json"
    path.write_text(json.dumps(rows, indent=indent))
    read = list(iter_rows(str(path)))
    assert [row.values for row in read] == rows
    lines = path.read_text().split("\n")
    if indent == 3:
        assert all(lines[int(row.place.rpartition(":")[2]) - 1].startswith("   {") for row in read)


@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")), st.text("ab,\"'\n"))
    )
)
def test_cells_of_csv_are_text_as_written(tmp_path_factory: pytest.TempPathFactory, cells: list) -> None:
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    rows = [{"first": first, "second": second} for first, second in cells]
    path.write_bytes(csv_bytes(rows or [{"first": "1", "second": "2"}]))
    assert values(path) == (rows or [{"first": "1", "second": "2"}])


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("a.jsonl", b'{"a": 1}\nnope', ":2", "not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]', ":2", "not a JSON object; each line must be one"),
        ("a.jsonl", b'{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}', ":2", "the key `c` occurs twice"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}', ":2", "not UTF-8"),
        ("a.json", b'[{"a": 1},\n 2]', ":2", "not a JSON object; each element of the array"),
        ("a.csv", b"a,b\n1,2\n3\n", ":3", "has 1 cells; the first line names 2 columns"),
    ],
    ids=without_bytes,
)
def test_a_bad_row_keeps_its_place_and_reason(
    tmp_path: Path, name: str, content: bytes, place: str, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    good, bad = iter_rows(str(tmp_path / name))
    assert not good.error
    assert bad.place == f"{tmp_path / name}{place}"
    assert reason in bad.error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"a": 1}\n {"a": 2}]', "a.json:2: the JSON array needs `,` or `]`"),
        ("a.json", b'[{"a": 1},\n{"a": ', "a.json:2: not JSON"),
        ("a.json", b'[{"a": 1}', "a.json:1: the JSON array .*the file is complete"),
        ("a.json", b"[" * 100_000, "a.json:1: the JSON cannot be read"),
        ("a.json", b'{"a": "\xe9"}', "a.json:1: not UTF-8"),
        ("a.csv", b"a;b\n1;2\n", "a.csv:1: `;` separates the columns"),
        ("a.csv", b"a,a\n1,2\n", "a.csv:1: the first line is a,a; it must name each column once"),
        ("a.csv", b'a,b\n1,"2\n', "a.csv:2: not CSV"),
        ("a.csv", b"a,b\n1,\xe9\n", "a.csv:2: not UTF-8"),
        ("a.parquet", b"PAR1 nonsense", "a.parquet is damaged, or its name has a wrong ending"),
        ("a.arrow", b"nonsense nonsense", "a.arrow is damaged, or its name has a wrong ending"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer.*git lfs pull"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("a.arrow", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("a.json.gz", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("a.jsonl.gz", b"no gzip", "cannot read .*a.jsonl.gz: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(jsonl(ROWS), mtime=0)[:-9], "cannot read .*a.jsonl.gz"),
        ("a.jsonl.zst", b"no zstd at all", "cannot read .*a.jsonl.zst"),
        ("a.jsonl.zst", zstd(jsonl(ROWS))[:-5], "cannot read .*a.jsonl.zst"),
        ("a.txt", b"x", "a.txt has an unknown format; the name of a data file ends in .jsonl"),
    ],
    ids=without_bytes,
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SchoolError, match=message):
        list(iter_rows(str(tmp_path / name)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.jsonl.zst", "a.jsonl.gz"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SchoolError, match=f"cannot read .*{name}: No such file"):
        list(iter_rows(str(tmp_path / name)))


def test_the_first_rows_come_before_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(
        gzip.compress(
            jsonl(
                [{"n": n, "text": "x" * 100} for n in range(20_000)],
            )
        )[:-9]
    )
    rows = iter_rows(str(path))
    assert [next(rows).values["n"] for _ in range(100)] == list(range(100))  # the damage is at the end


# ---- folders and globs


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "rows.parquet" if name.endswith(".parquet") else "array.json" if name.endswith(".json") else "rows.jsonl"
        path.write_bytes(WRITERS[kind]([{"file": name}]))


def names_in(source: Path | str, **options: str) -> list[str]:
    return [row["file"] for row in values(source, **options)]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    write_files(tmp_path, "b.jsonl", "a.jsonl", ".cache/c.jsonl", "config.json", "notes.md")
    assert names_in(tmp_path) == ["a.jsonl", "b.jsonl"]


def test_a_split_of_a_folder_is_chosen(tmp_path: Path) -> None:
    write_files(
        tmp_path, "data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-0.parquet"
    )
    with pytest.raises(SchoolError, match=r"files of several splits \(test, train\); choose one: `\?split=test`"):
        names_in(tmp_path)
    assert names_in(tmp_path, split="train") == [f"data/train-0000{n}-of-00002.parquet" for n in (0, 1)]
    assert names_in(tmp_path / "data", split="test") == ["data/test-0.parquet"]
    with pytest.raises(SchoolError, match="no files of the split `dev`; choose one of its splits: test, train"):
        names_in(tmp_path, split="dev")


def test_copies_in_two_formats_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jsonl", "a.parquet")
    with pytest.raises(
        SchoolError, match="files of several formats .*, which may hold the same rows; choose the files of one format"
    ):
        names_in(tmp_path)
    assert names_in(f"{tmp_path}/**/*.jsonl*") == ["a.jsonl"]


def test_a_split_of_one_file_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jsonl", "test.jsonl")
    with pytest.raises(
        SchoolError, match="a.jsonl is one file, but `split=test` chooses files of a folder; remove `split`"
    ):
        names_in(tmp_path / "a.jsonl", split="test")
    assert names_in(tmp_path / "test.jsonl", split="test") == ["test.jsonl"]


def test_rows_of_the_hubs_server_are_unwrapped(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"features": [], "rows": [{"row_idx": 0, "row": {"a": 1}}]}))
    assert values(tmp_path / "a.json") == [{"a": 1}]


def test_a_folder_of_subsets_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "algebra/train.jsonl", "geometry/train.jsonl")
    with pytest.raises(SchoolError, match="has data in several folders .*; give one of them"):
        names_in(tmp_path)
    assert names_in(tmp_path / "algebra") == ["algebra/train.jsonl"]


def test_a_glob_pattern_names_files(tmp_path: Path) -> None:
    write_files(tmp_path, "a/x.jsonl", "b/x.jsonl", "b/y.md")
    assert names_in(f"{tmp_path}/*/x.jsonl") == ["a/x.jsonl", "b/x.jsonl"]
    assert names_in(f"{tmp_path}/**/*") == ["a/x.jsonl", "b/x.jsonl"]
    with pytest.raises(SchoolError, match="has no data files"):
        names_in(f"{tmp_path}/*.csv")


def test_a_file_with_a_bracket_in_its_name_is_a_file(tmp_path: Path) -> None:
    write_files(tmp_path, "a[1].jsonl")
    assert data_files(str(tmp_path / "a[1].jsonl")) == [tmp_path / "a[1].jsonl"]


# ---- the hub, by the library `datasets`


def test_a_hub_data_set_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_files(tmp_path / "org" / "name", "train.jsonl", "test.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SchoolError, match=r"hub:org/name has the splits .*; choose one: `\?split="):
        list(iter_rows("hub:org/name"))
    (row,) = iter_rows("hub:org/name", split="test")
    assert (row.values["file"], row.place) == ("test.jsonl", "hub:org/name, row 1")


def test_a_hub_data_set_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(SchoolError, match="hub:no-such/data-set cannot be loaded"):
        list(iter_rows("hub:no-such/data-set"))
