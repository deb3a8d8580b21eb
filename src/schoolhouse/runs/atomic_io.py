"""Writes files and checkpoints that stay whole in a crash.

Each file is written completely or not at all, and synced to the disk.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from schoolhouse.runs.hub_cache import find_cached_model, parse_hub_name
from schoolhouse.types import SchoolError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fsync(path: Path) -> None:
    """Wait until the content of a file is stored on the disk.

    For a folder, wait until the folder's list of files is stored on the disk.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: Path, text: str) -> None:
    """Write a text file. If the process crashes, the file has either the complete old text or the complete new text."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    fsync(partial)
    partial.rename(path)
    fsync(path.parent)


def checksum(path: Path) -> str:
    """Compute the sha256 checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderInUse(SchoolError):
    """The error that is raised if another process uses a folder."""


def lock_folder(file: TextIO, folder: Path) -> None:
    """Lock a folder for this process. `file` is the open lock file of the folder.

    Raises FolderInUse if another process holds the lock.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise FolderInUse(
            f"{folder} is in use by process {file.read().strip() or '(unknown)'}; "
            "wait until this process ends, or choose another folder with --dir"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()


def is_disk_full(error: BaseException | None) -> bool:
    """Return True if an error, or one of its causes, means that the disk is full.

    An error about a full disk quota or about the maximum file size also counts as a full disk. Libraries that write
    files from C++ or Rust give the reason only in the text of their error.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return True
        if any(os.strerror(code) in str(error) for code in _DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def to_json(value: Any, indent: int | None = None) -> str:
    """Convert a value to strict JSON.

    Numpy numbers become JSON numbers. Numbers that are not finite become null. Objects of other types become strings.
    A text with a lone surrogate (half of a character) is written with escapes, because UTF-8 has no lone surrogates.
    """
    try:  # most values are plain already, and large
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (ValueError, TypeError):
        value = _plain(value)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, indent=indent)
    return text


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy and torch, numbers and arrays
        return _plain(value.tolist())
    return str(value)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises SchoolError if the file is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SchoolError(f"the file {path} is missing; restore it") from None
    except (ValueError, RecursionError) as error:
        raise SchoolError(f"the file {path} is damaged ({error}); restore the whole file") from None
    if not isinstance(found, dict):
        raise SchoolError(
            f"the file {path} is damaged (expected a JSON object, found {type(found).__name__}); restore the whole file"
        )
    return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a JSON lines file.

    Returns an empty list if there is no file. An incomplete last line of the file is skipped.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # text without a line end is partial
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SchoolError(f"line {path}:{number} is damaged ({error}); restore the whole file") from None
        if not isinstance(row, dict):
            raise SchoolError(f"line {path}:{number} is damaged: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON lines file completely or not at all. The folder of the file is created if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(to_json(row) + "\n" for row in rows))


def drop_partial_line(path: Path) -> None:
    """Remove an incomplete last line from a file: all text after the last newline."""
    text = path.read_bytes() if path.exists() else b""
    if text and not text.endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)


# --- checkpoints


class Stateful(Protocol):
    """An object that a run can save.

    A `Stateful` object can write the files of its model, and can return all other state that training needs.
    """

    def save(self, folder: Path) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def write_checkpoint(target: Path, state: Stateful, metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint: first the model in its own format, then trainer.pt, and manifest.json at the end.

    The file manifest.json has `metadata` and the checksums of all files. All files of a checkpoint are first written to
    a temporary folder and synced to the disk. Then the temporary folder is renamed to `target`. Because of the
    temporary folder, the folder `target` is complete or does not exist, even after an error.
    """
    import torch

    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        state.save(partial)
        with (partial / "trainer.pt").open("wb") as file:
            torch.save(state.state_dict(), file)
        written = sorted(partial.rglob("*"))
        for path in written:
            fsync(path)
        files = {str(path.relative_to(partial)): checksum(path) for path in written if path.is_file()}
        manifest = {**metadata, "files": files}
        atomic_write(partial / "manifest.json", to_json({**manifest, "seal": _seal(manifest)}, 2))
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(target)
    fsync(target.parent)


def _seal(manifest: Mapping[str, Any]) -> str:
    """The checksum of the content of a manifest. If a number in the manifest changes, the checksum changes too."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def list_checkpoints(folder: Path) -> list[Path]:
    """List all complete checkpoints in a folder, the oldest first.

    The name of a complete checkpoint is a number. The names of incomplete checkpoints are not numbers.
    """
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))


def resolve_model(folder: Path | str) -> Path:
    """Find the model folder for a path or a name.

    For a run folder, the model folder is the newest checkpoint. Any other local folder is the model folder itself. If
    no local folder has this name, `ORG/NAME` or `ORG/NAME@REVISION` names a model that `school pull` has fetched.
    Raises SchoolError for the folder of a pipeline (the message names the stages), and for a GGUF file. Also raises
    SchoolError if no local folder and no model in the cache has the given name.
    """
    name, folder = str(folder), Path(folder)
    if not folder.exists() and parse_hub_name(name):
        if (cached := find_cached_model(name)) is None:
            raise SchoolError(
                f"{name} is not a folder, and the cache of Hugging Face has no complete model of this name; give a "
                f"local folder, or fetch a model of the hub with `school pull {name.replace('@', ' --revision ')}`"
            )
        folder = cached
    if folder.suffix == ".gguf" and folder.is_file():
        raise SchoolError(
            f"{folder} is a GGUF file: convert it to a model folder with `school import {folder} --to DIR`, and use DIR"
        )
    newest = list_checkpoints(folder / "checkpoints")
    stages = sorted(path.parent.parent.name for path in folder.glob("*/checkpoints/*") if path.name.isdigit())
    if stages and not newest:
        names = ", ".join(dict.fromkeys(stages))
        raise SchoolError(
            f"{folder} is a run of several stages ({names}): give the folder of one stage, "
            f"such as {folder / stages[-1]}"
        )
    return newest[-1] if newest else folder


def delete_old_checkpoints(folder: Path, keep: int) -> None:
    """Delete all checkpoints of a folder except the newest `keep` checkpoints."""
    for path in list_checkpoints(folder)[:-keep]:
        partial = path.rename(path.with_name(f"{path.name}.partial"))  # only a complete checkpoint has a number
        shutil.rmtree(partial, ignore_errors=True)


def delete_partial_checkpoints(folder: Path) -> None:
    """Delete incomplete checkpoints, which remain if a save or a deletion was interrupted."""
    for partial in folder.glob("*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def verify_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Verify all files of a checkpoint, and return its manifest. If a file is damaged, a SchoolError names the file."""
    saved = read_json(checkpoint / "manifest.json")
    if saved.pop("seal", None) != _seal(saved):
        raise SchoolError(
            f"{checkpoint / 'manifest.json'} is damaged: its content has changed; delete the folder {checkpoint}, and "
            "the run resumes from the checkpoint before it (or from the start)"
        )
    for name, expected in saved["files"].items():
        path = checkpoint / name
        if not path.is_file() or checksum(path) != expected:
            raise SchoolError(
                f"{path} is {'damaged: its checksum has changed' if path.is_file() else 'missing'}; "
                f"delete the folder {checkpoint}, and the run resumes from the checkpoint before it (or from the start)"
            )
    return saved
