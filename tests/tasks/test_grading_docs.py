"""Every code block of docs/grading.md runs, in order, in one folder."""

import json
import re
import shlex
from pathlib import Path

import pytest

from schoolhouse.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "grading.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_code_block_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("problems.jsonl").write_text('{"question": "What is 6 times 4?", "answer": "#### 24"}\n')
    statuses = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "grade_replies.py", "exec"), {})
            assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
                "1.0",
                "another answer",
                "restates the problem",
                "1.0",
            ]
        elif language == "json":
            keys = json.loads(block.splitlines()[0])
            name = "pairs" if "candidate" in keys else "programs" if "test_list" in keys else "instructions"
            Path(f"{name}.jsonl").write_text(block)
        elif language == "bash":
            for command in block.splitlines():
                statuses[command] = main(shlex.split(command)[1:])
        else:
            assert language == "console"
            command, *expected = block.removeprefix("$ ").splitlines()
            assert main(shlex.split(command)[1:]) == 1
            assert capsys.readouterr().out.splitlines() == expected
    assert [command for command, status in statuses.items() if status] == ["school grade pairs.jsonl --grader hf"]
    assert {language for language, _ in BLOCKS} == {"python", "json", "bash", "console"}
