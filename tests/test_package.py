"""The wheel holds what a user needs, and works outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment that finds the unpacked wheel first."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_the_wheel_holds_sources_pages_and_pipelines_and_no_benchmarks(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    files = {name.removeprefix("schoolhouse/") for name in names if name.startswith("schoolhouse/")}
    needed = {"py.typed", "pipelines/quickstart.yaml", "web/board.html", "web/chat.js", "web/vendor/marked.umd.js"}
    assert needed <= files
    sources = {str(path.relative_to(ROOT / "src/schoolhouse")) for path in (ROOT / "src").rglob("*.[ch]")}
    assert sources
    assert sources <= files
    assert [name for name in names if "/bench/" in name or name.startswith("tests")] == []


def test_a_run_outside_the_repository(installed: dict[str, str], tmp_path: Path) -> None:
    shape = "--model.hidden_size 32 --model.num_layers 1 --model.num_heads 1 --model.num_kv_heads 1"
    words = f"train pretrain --task school:facts --vocab_size 300 --steps 2 --batch_size 2 --seq_len 32 {shape}".split()
    done = subprocess.run(
        [sys.executable, "-m", "schoolhouse", *words],
        cwd=tmp_path,
        env=installed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "pretrain" / "checkpoints" / "000002" / "model.safetensors").is_file()


def test_the_benchmarks_say_where_they_are(installed: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schoolhouse", "bench", "sampler", "--against", "transformers"]
    done = subprocess.run(command, cwd=tmp_path, env=installed, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "run `school bench` from a checkout" in done.stderr
