"""`school compare`: the same budget for all, what is unknown is refused, and a page that says what came of it."""

import json
from math import inf
from pathlib import Path

import pytest

from schoolhouse.claims.harness import comparison, runner
from schoolhouse.claims.harness.claim import Step
from schoolhouse.cli.claims import compare
from schoolhouse.runs import pipeline
from schoolhouse.runs.run import read_metrics
from schoolhouse.types import SchoolError

MODEL = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 32,
    "intermediate_size": 32,
    "max_seq_len": 128,
}
BOOK = Step(
    "pretrain", {"task": "school:facts", "model": MODEL, "vocab_size": 300, "steps": 2, "batch_size": 4, "seq_len": 32}
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", (inf, 90)), ("20m", (inf, 1200)), ("1.5h", (inf, 5400)), ("500k", (5e5, inf)), ("2M", (2e6, inf))],
)
def test_budgets(text: str, expected: tuple[float, float]):
    assert comparison.budget(text) == expected


@pytest.mark.parametrize("text", ["", "20", "m", "0m", "-5s", "20 minutes"])
def test_what_is_no_budget_is_refused(text: str):
    with pytest.raises(SchoolError, match="write a time such as 90s"):
        comparison.budget(text)


def test_two_relatives_are_compared_within_a_budget_of_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = runner.do(BOOK, tmp_path / "made")
    words = f"--recipes ours,star --model {model} --task school:facts --budget 1k --seeds 2 --length 4 --problems 3"
    compare([*words.split(), "--samples", "2", "--dir", str(tmp_path / "it")])
    found = json.loads((tmp_path / "it" / "compare.json").read_text())
    assert [row["arm"] for row in found["arms"]] == ["start", "ours", "star"]
    assert [len(row["by_seed"]) for row in found["arms"]] == [2, 2, 2]
    assert found["arms"][0]["gain"] is None
    for run in (tmp_path / "it" / "steps").iterdir():
        tokens = [row["sampled_tokens"] for row in read_metrics(run) if "sampled_tokens" in row]
        assert sum(tokens) >= 1000 > sum(tokens[:-1])
        updates = {row["updates"] for row in read_metrics(run) if "updates" in row}
        assert len(updates) <= 1  # star's would grow beyond all bounds, loop after loop
    assert (tmp_path / "it" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "| star | " in capsys.readouterr().out


def test_a_run_that_ended_by_tokens_is_repeated_to_where_it_ended_and_one_by_a_clock_is_not(tmp_path: Path):
    model = runner.do(BOOK, tmp_path / "made")
    config = {
        "model": str(model),
        "task": "school:facts",
        "steps": 1_000,
        "prompts_per_step": 2,
        "group_size": 2,
        "sampling.max_new_tokens": 4,
    }
    made = runner.do(Step("grpo", config, tokens=40), tmp_path / "made")
    pipeline.repeat_run(made, tmp_path / "again")
    assert read_metrics(tmp_path / "again") == read_metrics(made)
    timed = runner.do(Step("grpo", config, seconds=1e-3), tmp_path / "made")
    with pytest.raises(SchoolError, match="ended by a clock"):
        pipeline.repeat_run(timed, tmp_path / "never")


def test_an_unknown_recipe_or_model_is_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(SchoolError, match="did you mean `rloo`"):
        compare(["--recipes", "rlo", "--model", str(tmp_path)])
    with pytest.raises(SchoolError, match="is not a folder"):
        compare(["--recipes", "rloo", "--model", str(tmp_path / "none")])
