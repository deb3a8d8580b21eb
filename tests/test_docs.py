"""Documents are true: their commands are accepted, README's Python runs, the site builds, links lead to files."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.cli.main import COMMANDS, main
from schoolhouse.config import BaseConfig, load

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "lab.md"),
]
PLACEHOLDERS = {"RECIPE", "[CONFIG.yaml]", "[--key", "[--dir", "[RUN]"}


def commands(text: str) -> Iterator[str]:
    """The `school` commands of a page: lines of their own and pieces in backticks; continued lines are joined."""
    for line in text.replace("\\\n", " ").splitlines():
        if re.match(r"(    )?school [a-z]", line):
            yield line.strip()
        yield from re.findall(r"`(school [a-z][^`]*)`", line)


def words_of(command: str) -> list[str] | None:
    """The command's words without its comment; None for a pattern such as `school train RECIPE [CONFIG.yaml]`."""
    words = shlex.split(command, comments=True)[1:]
    shortened = any(word in PLACEHOLDERS or word == "..." or "|" in word for word in words)
    return None if shortened or "--help" in words or not words[1:] else words


FOUND = sorted(
    {
        (str(path.relative_to(ROOT)), shlex.join(words))
        for path in PAGES
        for command in commands(path.read_text())
        if (words := words_of(command))
    }
)


class Accepted(Exception):
    """A command's words were read without an error; nothing of it is done."""


def accept(*args: Any, **named: Any) -> Any:
    raise Accepted


@pytest.fixture
def nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands stop behind the reading of their words."""

    def read(cls: type[BaseConfig], args: list[str], usage: str, positional: tuple[str, ...]) -> Any:
        load(cls, None, args, positional)
        raise Accepted

    import schoolhouse.cli as cli

    for path in sorted(Path(cli.__file__).parent.glob("*.py")):
        module = f"schoolhouse.cli.{path.stem}"
        __import__(module)
        if path.stem != "options" and hasattr(sys.modules[module], "parse_options"):
            monkeypatch.setattr(f"{module}.parse_options", read)
    monkeypatch.setattr("schoolhouse.cli.claims._list", accept)
    monkeypatch.setattr("schoolhouse.runs.run.Run.open", accept)
    monkeypatch.setattr("schoolhouse.runs.estimate.estimate", accept)


@pytest.mark.parametrize(("page", "command"), FOUND, ids=lambda value: value[:70])
def test_every_command_in_the_documents_is_accepted(page: str, command: str, nothing_is_done: None) -> None:
    words = [word for word in shlex.split(command) if word != "--debug"]
    if "YOUR" in command or re.search(r"\b\w+\.yaml\b", command):
        assert words[0] in COMMANDS  # a file that the reader has, and a test has not
        return
    with pytest.raises(Accepted):
        main(words)


def test_a_wrong_command_is_not_accepted(nothing_is_done: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "grpo", "--model", "M", "--temperatur", "1"]) == 2
    assert main(["evaluate", "M", "--tasks", "school"]) == 2


def code_after(text: str, mark: str) -> str:
    """The indented block behind `<!-- run: mark -->`."""
    block = re.search(r"((?:    .*\n|\n)+)", text.partition(f"<!-- run: {mark} -->\n")[2])
    assert block
    return "\n".join(line.removeprefix("    ") for line in block.group(1).splitlines())


def test_the_loop_in_the_readme_runs(sft_model: Callable[[str], Path], tmp_path: Path) -> None:
    code = code_after((ROOT / "README.md").read_text(), "readme loop")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    code = code.replace("MODEL", str(sft_model("school:facts"))).replace("range(20)", "range(2)")
    (tmp_path / "problems.jsonl").write_text((ROOT / "examples" / "problems.jsonl").read_text())
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "trained" / "model.safetensors").is_file()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
    local = [target for target in targets if not target.startswith(("http://", "https://"))]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    build = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "clipped_surrogate" in page
    assert "supervised_update" in page
