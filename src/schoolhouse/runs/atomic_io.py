"""Files that survive a crash: written whole or not at all, synced, with checksums; checkpoints made of such files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

from schoolhouse.types import SchoolError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: Path, text: str) -> None:
    """Write a text file: after a crash it holds the old text or the new one."""
    aside = path.with_name(f"{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    fsync(aside)
    aside.rename(path)
    fsync(path.parent)


def checksum(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderInUse(SchoolError):
    """Another process holds a folder."""


def lock_folder(file: TextIO, folder: Path) -> None:
    """Hold a folder for this process, by its open lock file. Raises InUse where another holds it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise FolderInUse(
            f"{folder} is in use by process {file.read().strip() or '(unknown)'}; "
            "wait until it ends, or give another folder with --dir"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, says that there is no room (full, over quota, or a file too large).

    Libraries that write from C++ or Rust keep the reason in their message alone.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(os.strerror(code) in str(error) for code in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: numpy numbers as numbers, what is not finite as null, anything else as text."""
    with suppress(ValueError, TypeError):  # most of what is written is plain already, and long
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


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
    """A JSON object from a file. Raises SchoolError where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SchoolError(f"{path} is missing; put it back") from None
    except (ValueError, RecursionError) as error:
        raise SchoolError(f"{path} is damaged ({error}); put the whole file back") from None
    if not isinstance(found, dict):
        raise SchoolError(f"{path} should hold a JSON object, not {type(found).__name__}; put the whole file back")
    return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file; none where there is no file. A torn last line is left out."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # what has no line end is torn
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SchoolError(f"{path}:{number} is damaged ({error})") from None
        if not isinstance(row, dict):
            raise SchoolError(f"{path}:{number} is damaged (a line holds a JSON object, not {type(row).__name__})")
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSON lines file, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(to_json(row) + "\n" for row in rows))


def drop_partial_line(path: Path) -> None:
    """Cut a file after its last line end."""
    text = path.read_bytes() if path.exists() else b""
    if text and not text.endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)


# --- checkpoints


class Stateful(Protocol):
    """What a run can save: a model that writes its own folder, and the state that training needs besides."""

    def save(self, folder: Path) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def write_checkpoint(target: Path, state: Stateful, metadata: Mapping[str, Any]) -> None:
    """The model in its own format, trainer.pt, and last a manifest.json with the checksum of every file and `noted`.

    All is written beside `target`, synced, and renamed: complete or absent. Nothing is left behind by an error.
    """
    import torch

    aside = target.with_name(f"{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        state.save(aside)
        with (aside / "trainer.pt").open("wb") as file:
            torch.save(state.state_dict(), file)
        inside = sorted(aside.rglob("*"))
        for path in inside:
            fsync(path)
        files = {str(path.relative_to(aside)): checksum(path) for path in inside if path.is_file()}
        told = {**metadata, "files": files}
        atomic_write(aside / "manifest.json", to_json({**told, "seal": _seal(told)}, 2))
    except Exception:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    aside.rename(target)
    fsync(target.parent)


def _seal(told: Mapping[str, Any]) -> str:
    """What a manifest says of itself, so that a changed number in it is found as one in a file is."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in a folder, oldest first. Only complete ones ever bear a number."""
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))


def resolve_model(folder: Path | str) -> Path:
    """The model that a folder holds: the newest checkpoint of a run, or the folder itself.

    Raises SchoolError where the folder is a run of several stages, naming them.
    """
    folder = Path(folder)
    newest = list_checkpoints(folder / "checkpoints")
    stages = sorted(path.parent.parent.name for path in folder.glob("*/checkpoints/*") if path.name.isdigit())
    if stages and not newest:
        names = ", ".join(dict.fromkeys(stages))
        raise SchoolError(f"{folder} is a run of several stages ({names}): give one, such as {folder / stages[-1]}")
    return newest[-1] if newest else folder


def delete_old_checkpoints(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `spare`."""
    for path in list_checkpoints(folder)[:-keep]:
        doomed = path.rename(path.with_name(f"{path.name}.partial"))  # a half-removed one must not bear a number
        shutil.rmtree(doomed, ignore_errors=True)


def delete_partial_checkpoints(folder: Path) -> None:
    """Remove what an interrupted write or removal left behind."""
    for leftover in folder.glob("*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def verify_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all there and unharmed. Raises SchoolError naming the file."""
    saved = read_json(checkpoint / "manifest.json")
    if saved.pop("seal", None) != _seal(saved):
        raise SchoolError(
            f"{checkpoint / 'manifest.json'} is damaged: its content has changed; remove the folder {checkpoint} to go "
            "on from the checkpoint before it (or from the start)"
        )
    for name, expected in saved["files"].items():
        path = checkpoint / name
        if not path.is_file() or checksum(path) != expected:
            raise SchoolError(
                f"{path} is {'damaged: its checksum has changed' if path.is_file() else 'missing'}; "
                f"remove the folder {checkpoint} to go on from the checkpoint before it (or from the start)"
            )
    return saved
