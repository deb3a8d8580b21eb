"""`school solve` and `school evaluate --search`, on a model that knows nothing."""

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
    """A folder with a model, and a file of puzzles."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "puzzles.csv").write_text("Rank,Puzzles\n1,1 1 4 6\n2,4 9 10 13\n3,3 3 8 8\n")
    task = f"game24:{folder}/puzzles.csv?holdout=2-3"
    shape = pretrain.Model(**MODEL)
    book = pretrain.Config.of(task=task, model=shape, vocab_size=300, steps=3, batch_size=4, seq_len=32)
    with Run.open(folder / "book", book, "pretrain") as run:
        pretrain.pretrain(book, run)
    return folder


def school(here: Path, *words: str) -> int:
    return main([word.format(here=here) for word in words])


def test_a_vote_prints_its_counts_and_what_it_cost(here: Path, capsys: Any):
    words = ("solve", "{here}/book", "1 + 1?", "--search", "vote?samples=3&length=8", "--show")
    assert school(here, *words) == 0
    assert "tokens; 3 answers" in capsys.readouterr().out


def test_a_tree_is_drawn_and_written_as_a_page(here: Path, capsys: Any, tmp_path: Path):
    task, search = "game24:{here}/puzzles.csv?holdout=2-3", "tot?thoughts=propose&samples=2&listed=16&length=8"
    words = ("solve", "{here}/book", "4 9 10 13", "--task", task, "--search", search, "--show")
    assert school(here, *words, "--page", str(tmp_path / "tree.html")) == 0
    assert "Make 24 from 4 9 10 13, each used once." in capsys.readouterr().out
    assert (tmp_path / "tree.html").read_text().startswith("<!doctype html>")


def test_an_exam_sat_by_a_search_tells_its_cost(here: Path, capsys: Any, tmp_path: Path):
    task = "game24:{here}/puzzles.csv?holdout=2-3"
    words = ("evaluate", "{here}/book", "--task", task, "--search", "vote?samples=2&length=8", "--budget", "64")
    assert school(here, *words, "--save", str(tmp_path / "sat.json")) == 0
    assert "vote: 16 tokens a problem (at most 16); 2 x 2 answers" in capsys.readouterr().out
    saved = json.loads((tmp_path / "sat.json").read_text())
    assert (saved["search"]["kind"], saved["search"]["budget"], saved["samples"]) == ("vote", 64.0, 1)
    assert saved["searches"] == [{"tokens": 16, "end": "2 answers"}] * 2


@pytest.mark.parametrize(
    "words, message",
    [
        (("solve", "{here}/book"), "problem"),
        (("solve", "{here}/book", "1 + 1?", "--search", "vot"), "unknown search `vot`"),
        (("solve", "{here}/book", "1 + 1?", "--page", "x.html"), "`vote` grows no tree"),
        (("solve", "{here}/book", "1 + 1?", "--search", "tot?thoughts=propose"), "does not ask for next thoughts"),
        (("solve", "{here}/book", "1 2 3", "--task", "game24:{here}/puzzles.csv?holdout=2-3"), "names 3 numbers"),
        (("solve", "{here}/book", "1 + 1?", "--search", "best_of_n", "--page", "x.html"), "`best_of_n` grows no tree"),
        (
            ("evaluate", "{here}/book", "--search", "vote", "--samples", "8"),
            "instead of --samples write them behind `?`",
        ),
        (("solve", "{here}/none", "1 + 1?"), "not a folder"),
        (("evaluate", "{here}/book", "--search", "vote", "--budget", "9"), "a budget of 9 tokens does not pay"),
    ],
)
def test_what_cannot_be_searched_is_refused(here: Path, capsys: Any, words: tuple[str, ...], message: str):
    assert school(here, *words) == 2
    assert message in capsys.readouterr().err
