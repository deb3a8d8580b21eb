"""`school compare`: the same budget for all arms; unknown names are refused; the page shows every arm."""

import json
from math import inf
from pathlib import Path

import pytest

import tiny_claim
from schoolhouse.claims.harness import comparison, runner
from schoolhouse.claims.harness.claim import Step
from schoolhouse.cli.claims import compare
from schoolhouse.runs import pipeline
from schoolhouse.runs.run import read_metrics
from schoolhouse.types import SchoolError

PRETRAINED = Step(
    "pretrain",
    {
        "task": "school:facts",
        "model": tiny_claim.MODEL,
        "vocab_size": 300,
        "steps": 2,
        "batch_size": 4,
        "seq_len": 32,
    },
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", (inf, 90)), ("20m", (inf, 1200)), ("1.5h", (inf, 5400)), ("500k", (5e5, inf)), ("2M", (2e6, inf))],
)
def test_budgets(text: str, expected: tuple[float, float]):
    assert comparison.parse_budget(text) == expected


@pytest.mark.parametrize("text", ["", "20", "m", "0m", "-5s", "20 minutes"])
def test_an_invalid_budget_is_refused(text: str):
    with pytest.raises(SchoolError, match="give a time \\(90s"):
        comparison.parse_budget(text)


def test_two_recipes_are_compared_within_a_budget_of_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = runner.run_step(PRETRAINED, tmp_path / "start")
    folder = tmp_path / "it"
    args = f"--recipes default,star --model {model} --task school:facts --budget 1k --seeds 2 --max_new_tokens 4"
    compare([*args.split(), "--problems", "3", "--samples", "2", "--dir", str(folder)])
    record = json.loads((folder / "compare.json").read_text())
    assert [row["arm"] for row in record["arms"]] == ["start", "default", "star"]
    assert [len(row["by_seed"]) for row in record["arms"]] == [2, 2, 2]
    assert record["arms"][0]["gain"] is None
    runs = list((folder / "steps").iterdir())
    assert len(runs) == 4
    for run in runs:
        tokens = [row["sampled_tokens"] for row in read_metrics(run) if "sampled_tokens" in row]
        assert sum(tokens) >= 1000 > sum(tokens[:-1])
        updates = {row["updates"] for row in read_metrics(run) if "updates" in row}
        assert len(updates) <= 1  # those of star would grow without end, loop after loop
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "| star | " in capsys.readouterr().out


def test_a_run_with_a_token_budget_can_be_repeated_and_one_with_a_time_budget_cannot(tmp_path: Path):
    model = runner.run_step(PRETRAINED, tmp_path / "steps")
    config = {
        "model": str(model),
        "task": "school:facts",
        "steps": 1_000,
        "prompts_per_step": 2,
        "group_size": 2,
        "sampling.max_new_tokens": 4,
    }
    by_tokens = runner.run_step(Step("grpo", config, max_tokens=40), tmp_path / "steps")
    pipeline.repeat_run(by_tokens, tmp_path / "again")
    assert read_metrics(tmp_path / "again") == read_metrics(by_tokens)
    by_time = runner.run_step(Step("grpo", config, max_seconds=1e-3), tmp_path / "steps")
    with pytest.raises(SchoolError, match=r"ended after a time budget of 0\.001 s"):
        pipeline.repeat_run(by_time, tmp_path / "never")


def test_an_unknown_recipe_or_model_is_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(SchoolError, match="did you mean `rloo`"):
        compare(["--recipes", "rlo", "--model", str(tmp_path)])
    with pytest.raises(SchoolError, match="is not a folder"):
        compare(["--recipes", "rloo", "--model", str(tmp_path / "none")])
