"""Fine-tuning on chats: from a file of any format, with the loss on the last turn or on all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from schoolhouse.cli.main import main
from schoolhouse.recipes import sft
from schoolhouse.runs.run import read_metrics
from schoolhouse.types import SchoolError
from tiny_runs import metrics_text, train

SMALL = {"steps": 2, "batch_size": 4, "optimizer.learning_rate": 1e-2}


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{n} and {n}?"},
                {"role": "assistant", "content": str(2 * n)},
                {"role": "user", "content": "and 1?"},
                {"role": "assistant", "content": str(2 * n + 1)},
            ]
        }
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_chats_is_all_trained(tmp_path: Path, chats: Path, sft_model: Callable[[str], Path]) -> None:
    model = str(sft_model("school:facts"))
    by_data = train(tmp_path / "data", sft.Config.of(model=model, data=str(chats), **SMALL))
    by_task = train(tmp_path / "task", sft.Config.of(model=model, task=f"jsonl:{chats}?holdout=none", **SMALL))
    assert metrics_text(by_data) == metrics_text(by_task)


def test_all_turns_have_more_tokens_with_a_loss(tmp_path: Path, chats: Path, sft_model: Callable[[str], Path]) -> None:
    model = str(sft_model("school:facts"))
    runs = {
        loss_on: train(tmp_path / loss_on, sft.Config.of(model=model, data=str(chats), loss_on=loss_on, **SMALL))
        for loss_on in ("last", "all")
    }
    tokens = {loss_on: read_metrics(run.folder)[0]["trained_tokens"] for loss_on, run in runs.items()}
    assert 1.5 * tokens["last"] < tokens["all"] < 2.5 * tokens["last"]


def test_the_command_takes_a_file(
    tmp_path: Path, chats: Path, sft_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "sft", "--model", str(sft_model("school:facts")), "--data", str(chats), "--loss_on", "all"]
    assert main([*words, "--steps", "1", "--batch_size", "2", "--dir", "run"]) == 0
    assert list(Path("run").glob("checkpoints/*/model.safetensors"))


def test_rows_of_questions_and_answers_alone_are_refused(tmp_path: Path, sft_model: Callable[[str], Path]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "q", "answer": "1"}\n')
    c = sft.Config.of(model=str(sft_model("school:facts")), data=str(path), **SMALL)
    with pytest.raises(SchoolError, match="has no demonstrations: write the solution before `####`"):
        train(tmp_path / "run", c)
