"""`school solve` and `school evaluate --search`, on an untrained model."""

import json
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.cli.main import main
from schoolhouse.recipes import pretrain
from schoolhouse.runs.run import Run

MODEL = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 32,
    "intermediate_size": 32,
    "max_seq_len": 512,
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of a model, and a file of puzzles."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "puzzles.csv").write_text("Rank,Puzzles\n1,1 1 4 6\n2,4 9 10 13\n3,3 3 8 8\n")
    task = f"game24:{folder}/puzzles.csv?holdout=2-3"
    config = pretrain.Config.of(
        task=task, model=pretrain.Model(**MODEL), vocab_size=300, steps=3, batch_size=4, seq_len=32
    )
    with Run.open(folder / "base", config, "pretrain") as run:
        pretrain.pretrain(config, run)
    return folder


def school(here: Path, *args: str) -> int:
    return main([arg.format(here=here) for arg in args])


def test_a_vote_prints_its_counts_and_its_cost(here: Path, capsys: Any):
    args = ("solve", "{here}/base", "1 + 1?", "--search", "vote?samples=3&max_new_tokens=8", "--show")
    assert school(here, *args) == 0
    assert "tokens; 3 answers" in capsys.readouterr().out


def test_a_tree_is_drawn_and_written_as_a_page(here: Path, capsys: Any, tmp_path: Path):
    task, search = (
        "game24:{here}/puzzles.csv?holdout=2-3",
        "tot?thoughts=propose&samples=2&proposal_tokens=16&max_new_tokens=8",
    )
    args = ("solve", "{here}/base", "4 9 10 13", "--task", task, "--search", search, "--show")
    assert school(here, *args, "--page", str(tmp_path / "tree.html")) == 0
    assert "Make 24 from 4 9 10 13, each used once." in capsys.readouterr().out
    assert (tmp_path / "tree.html").read_text().startswith("<!doctype html>")


def test_an_evaluation_with_a_search_reports_its_cost(here: Path, capsys: Any, tmp_path: Path):
    task = "game24:{here}/puzzles.csv?holdout=2-3"
    args = ("evaluate", "{here}/base", "--task", task, "--search", "vote?samples=2&max_new_tokens=8", "--budget", "64")
    assert school(here, *args, "--save", str(tmp_path / "result.json")) == 0
    assert "vote: 16 tokens a problem (at most 16); 2 x 2 answers" in capsys.readouterr().out
    saved = json.loads((tmp_path / "result.json").read_text())
    assert (saved["search"]["kind"], saved["search"]["budget"], saved["samples"]) == ("vote", 64.0, 1)
    assert saved["search_results"] == [{"tokens": 16, "stop_reason": "2 answers"}] * 2


@pytest.mark.parametrize(
    "args, message",
    [
        (("solve", "{here}/base"), "problem"),
        (("solve", "{here}/base", "1 + 1?", "--search", "vot"), "unknown search `vot`"),
        (("solve", "{here}/base", "1 + 1?", "--page", "x.html"), "`vote` has no tree"),
        (
            ("solve", "{here}/base", "1 + 1?", "--search", "tot?thoughts=propose"),
            "has no prompt that asks for next",
        ),
        (("solve", "{here}/base", "1 2 3", "--task", "game24:{here}/puzzles.csv?holdout=2-3"), "has 3 numbers"),
        (("solve", "{here}/base", "1 + 1?", "--search", "best_of_n", "--page", "x.html"), "`best_of_n` has no tree"),
        (
            ("evaluate", "{here}/base", "--search", "vote", "--samples", "8"),
            "--samples cannot be used with --search",
        ),
        (("solve", "{here}/none", "1 + 1?"), "not a folder"),
        (
            ("evaluate", "{here}/base", "--search", "vote", "--budget", "9"),
            "the search budget of 9 tokens is too small",
        ),
    ],
)
def test_an_impossible_search_is_refused(here: Path, capsys: Any, args: tuple[str, ...], message: str):
    assert school(here, *args) == 2
    assert message in capsys.readouterr().err
