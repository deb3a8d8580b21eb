"""Files that survive a crash."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.runs.atomic_io import (
    atomic_write,
    drop_partial_line,
    is_disk_full,
    read_json,
    read_jsonl,
    resolve_model,
    to_json,
    verify_checkpoint,
    write_checkpoint,
    write_jsonl,
)
from schoolhouse.types import SchoolError

FILL = """
import resource, sys
import torch
from safetensors.torch import save_file
from schoolhouse.runs.atomic_io import is_disk_full
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
weights = {"a": torch.zeros(200_000)}
def by_handle():
    with open(sys.argv[1] + "/t.pt", "wb") as file:
        torch.save(weights, file)
for save in (lambda: save_file(weights, sys.argv[1] + "/m.safetensors"), by_handle):
    try: save()
    except Exception as error: print(type(error).__name__, is_disk_full(error))
"""


def test_a_full_disk_is_recognised_in_messages_of_libraries(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["True", "True"], done


def test_other_errors_do_not_mean_a_full_disk() -> None:
    assert not is_disk_full(PermissionError(13, "Permission denied"))
    assert not is_disk_full(ValueError("full of mistakes"))


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", "old")
    atomic_write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8))
def test_json_is_strict_and_has_null_for_numbers_that_are_not_finite(value: object) -> None:
    def expected(inner: object) -> object:
        if isinstance(inner, list):
            return [expected(each) for each in inner]
        return None if isinstance(inner, float) and not math.isfinite(inner) else inner

    assert json.loads(to_json(value), parse_constant=pytest.fail) == expected(value)


def test_json_accepts_numpy_and_paths() -> None:
    found = json.loads(to_json({"a": np.float32(0.5), "b": np.arange(2), 3: Path("x")}))
    assert found == {"a": 0.5, "b": [0, 1], "3": "x"}


@given(rows=st.lists(st.dictionaries(st.text(), st.integers(), max_size=2), min_size=1), cut=st.integers(1, 200))
def test_a_torn_last_line_leaves_the_others(
    rows: list[dict], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    last = to_json(rows[-1]).encode()
    whole = "".join(to_json(row) + "\n" for row in rows[:-1]).encode()
    path.write_bytes(whole + last[:cut])
    assert read_jsonl(path) == rows[:-1]
    drop_partial_line(path)
    assert path.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"a": 1}\n{"a":\n{"a": 2}\n')
    with pytest.raises(SchoolError, match=r"lines.jsonl:2 is damaged"):
        read_jsonl(tmp_path / "lines.jsonl")


def test_half_of_a_character_can_be_written_and_read(tmp_path: Path) -> None:
    rows = [{"reason": "ValueError: \ud800"}, {"ä": 1.5}]
    write_jsonl(tmp_path / "lines.jsonl", rows)
    assert read_jsonl(tmp_path / "lines.jsonl") == rows
    assert "ä" in (tmp_path / "lines.jsonl").read_text("utf-8")


@pytest.mark.parametrize("text", ['{"a": ', "[1]", "\udcff"])
def test_a_damaged_object_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "o.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SchoolError, match=r"o.json"):
        read_json(tmp_path / "o.json")


def test_the_model_of_a_run_is_its_newest_complete_checkpoint(tmp_path: Path) -> None:
    assert resolve_model(tmp_path) == tmp_path
    for name in ("000020", "000100", "000120.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert resolve_model(tmp_path) == tmp_path / "checkpoints" / "000100"
    for name in ("999999", "1000000"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert resolve_model(tmp_path) == tmp_path / "checkpoints" / "1000000"


class State:
    def save(self, folder: Path) -> None:
        (folder / "a.txt").write_text("a")
        (folder / "b.txt").write_text("b")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def test_all_files_of_a_checkpoint_are_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, fsync, rename = [], os.fsync, Path.rename

    def synced(handle: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def renamed(path: Path, to: Path) -> Path:
        order.append(f"-> {to.name}")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    write_checkpoint(tmp_path / "000001", State(), {})
    at = order.index("-> 000001")
    assert {"a.txt", "b.txt", "trainer.pt"} <= {*order[:at]}
    assert order[at + 1 :] == [tmp_path.name]


def test_a_changed_number_in_a_manifest_is_found(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "000001", State(), {"metrics_bytes": 100})
    assert verify_checkpoint(tmp_path / "000001")["metrics_bytes"] == 100
    manifest = tmp_path / "000001" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("100", "101"))
    with pytest.raises(SchoolError, match="its content has changed"):
        verify_checkpoint(tmp_path / "000001")


def test_the_folder_of_a_pipeline_names_its_stages(tmp_path: Path) -> None:
    for stage in ("pretrain", "sft"):
        (tmp_path / stage / "checkpoints" / "000010").mkdir(parents=True)
    with pytest.raises(
        SchoolError, match=r"several stages \(pretrain, sft\): give the folder of one stage, such as .*/sft"
    ):
        resolve_model(tmp_path)


def test_a_gguf_file_is_refused_with_the_command_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()
    with pytest.raises(SchoolError, match=r"tiny.gguf is a GGUF file: .* `school import .*tiny.gguf --to DIR`"):
        resolve_model(tmp_path / "tiny.gguf")


def test_a_name_that_is_neither_folder_nor_cached_names_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SchoolError, match="school/tiny@v2 is not a folder.*`school pull school/tiny --revision v2`"):
        resolve_model("school/tiny@v2")
