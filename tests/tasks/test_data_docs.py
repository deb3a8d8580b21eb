"""Every code block of docs/data.md runs, in order, in one folder; its table of shapes is what the reader gives."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from public_shapes import markdown
from schoolhouse.cli.main import main
from schoolhouse.data.files import COMPRESSIONS, FORMATS
from schoolhouse.data.shapes import ROLES

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SHORT = "--steps 1 --batch_size 2 --dir run"


def test_every_code_block_of_the_page_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sft_model: Callable[[str], Path],
) -> None:
    model = str(sft_model("school:facts"))
    monkeypatch.chdir(tmp_path)
    for language, title, block in BLOCKS:
        if language == "json":
            Path(title).write_text(block)
        elif language == "bash":
            for command in block.splitlines():
                words = shlex.split(command.replace("MODEL", model))
                words += SHORT.split() if words[1] == "train" else []
                assert (words[0], main(words[1:])) == ("school", 0), (command, capsys.readouterr())
        else:
            assert language == "console"
            command, *expected = block.removeprefix("$ ").splitlines()
            capsys.readouterr()
            main(shlex.split(command)[1:])
            captured = capsys.readouterr()
            assert [line for line in expected if line not in captured.out + captured.err] == []
    assert {language for language, *_ in BLOCKS} == {"json", "bash", "console"}


def test_the_page_has_the_table_of_shapes() -> None:
    table = PAGE.partition("tests/public_shapes.py -->\n")[2].partition("<!-- end of shapes -->")[0]
    assert table == markdown()


def test_the_page_names_every_format_and_role() -> None:
    assert [name for name in (*FORMATS, *COMPRESSIONS) if f"`{name}`" not in PAGE] == []
    assert [role for role in ROLES if f"`{role}`" not in PAGE.partition("## Columns")[2]] == []
