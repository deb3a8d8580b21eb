"""The report of a pipeline: its exact keys, its text, and its figure."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from schoolhouse.eval.report import (
    Curve,
    Stage,
    draw_figure,
    paired_gain,
    report_json,
    stage_table,
    training_curves,
    write_report,
)


def evaluation(accuracy: float, thought: float, records: bool = True) -> dict:
    def metrics(shift: float) -> dict:
        share = accuracy + shift
        return {
            "pass_at_1": share,
            "pass_at_1_interval": [share - 0.05, share + 0.05],
            "pass_at_8": 0.9,
            "pass_at_8_interval": [0.8, 1.0],
            "thought_tokens": thought + 10 * shift,
            "thought_tokens_interval": [thought - 1, thought + 1],
            "entropy": 0.3,
        }

    rows = [{"problem": str(i), "rewards": [1.0, 0.0 if i < 10 * (1 - accuracy) else 1.0, None]} for i in range(10)]
    return {
        "task": "school",
        "problems": 10,
        "samples": 8,
        "temperature": 1.0,
        "overall": metrics(0),
        "families": {"addition": metrics(0.1), "compare": metrics(-0.1)},
        **({"records": rows} if records else {}),
    }


STAGES = [
    Stage("sft", [{"step": 0, "loss": 2.0}], evaluation(0.3, 10), 60.0),
    Stage(
        "grpo",
        [
            {"step": 0, "reward": 0.25},
            {"step": 1, "reward": None},
            {"step": 2, "reward": 0.5, "eval": evaluation(0.5, 20)},
        ],
        evaluation(0.8, 40),
        125.0,
    ),
]


def test_the_json_has_the_agreed_keys_and_no_others() -> None:
    report = report_json(STAGES, 200.0, 2_000_000_000, 7)
    assert report.keys() == {"stages", "seconds", "peak_memory_bytes", "seed"}
    keys = {"pass_at_1", "pass_at_1_interval", "pass_at_8", "thought_tokens"}
    for stage in report["stages"]:
        assert stage.keys() == keys | {"name", "seconds", "families"}
        assert all(family.keys() == keys for family in stage["families"].values())
    assert report["stages"][1]["pass_at_1"] == 0.8
    assert report["stages"][1]["families"]["addition"]["pass_at_1"] == pytest.approx(0.9)


def test_the_gain_is_paired_over_the_problems_graded_in_both() -> None:
    before, after = evaluation(0.3, 10), evaluation(0.8, 10)
    after["records"] = after["records"][1:]
    gain = paired_gain(before, after)
    assert gain is not None
    assert gain.value == pytest.approx(0.5 * 5 / 9)  # five of the nine common problems rose by one of two answers
    assert gain.low > 0
    assert paired_gain(before, evaluation(0.8, 10, records=False)) is None


def test_a_curve_runs_from_the_evaluation_before_its_stage_to_the_one_after_it() -> None:
    (curve,) = training_curves(STAGES)
    assert curve.name == "grpo"
    assert curve.reward == {0: 0.25, 2: 0.5}
    accuracies = [(step, result["overall"]["pass_at_1"]) for step, result in curve.evaluations.items()]
    assert accuracies == [(0, 0.3), (2, 0.5), (3, 0.8)]


def test_a_curve_joins_evaluations_of_one_task_only() -> None:
    before, grpo = STAGES
    metrics = [dict(row) for row in grpo.metrics]
    metrics[2]["eval"] = {**metrics[2]["eval"], "task": "school:chain"}
    (curve,) = training_curves([before, replace(grpo, metrics=metrics)])
    assert [*curve.evaluations] == [2]


def test_the_folder_gets_a_report_as_json_as_markdown_and_a_figure(tmp_path: Path) -> None:
    report = report_json(STAGES, 3700.0, 2_000_000_000, 7)
    figure = write_report(tmp_path, STAGES, report, "school chat here", ["compare"])
    assert json.loads((tmp_path / "report.json").read_text()) == report
    markdown = (tmp_path / "report.md").read_text()
    assert "| grpo | 0.800 [0.750, 0.850] | +" in markdown
    for words in ("seed 7", "1 h 1 min", "2.00 GB", "10 held-out problems", "figure.png", "`school chat here`"):
        assert words in markdown
    assert figure == tmp_path / "figure.png"
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_without_training_on_rewards_there_is_no_figure(tmp_path: Path) -> None:
    assert write_report(tmp_path, STAGES[:1], report_json(STAGES[:1], 1.0, 1, 0), "school chat here") is None
    assert "figure" not in (tmp_path / "report.md").read_text()


def test_a_family_without_numbers_does_not_break_the_figure(tmp_path: Path) -> None:
    result = evaluation(0.5, 10)
    result["families"]["addition"]["thought_tokens"] = None
    result["overall"]["pass_at_1"] = None
    draw_figure(tmp_path / "figure.png", [Curve("grpo", {0: -0.5, 1: 1.5}, {0: result})])
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_table_fits_a_terminal() -> None:
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as captured:
        console.print(stage_table(STAGES))
    assert "…" not in captured.get()
    assert "0.80 [0.75, 0.85]" in captured.get()
