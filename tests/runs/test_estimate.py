"""An estimate is measured in the first steps of the run, in another process."""

import time
from pathlib import Path

import pytest

from schoolhouse.recipes import grpo, pretrain, star
from schoolhouse.runs import estimate as module
from schoolhouse.runs.estimate import (
    Estimate,
    _eval_steps,
    _line,
    _signal,
    _skips_constant_groups,
    _step_parts,
    estimate,
)
from schoolhouse.runs.run import Run
from schoolhouse.runs.trial import Trial, processor_seconds, run_trial
from schoolhouse.types import SchoolError

TINY = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_seq_len": 64,
}


def test_the_first_steps_are_measured():
    config = pretrain.Config.of(task="school", model=TINY, steps=1000, batch_size=2, seq_len=32, eval_every=1000)
    measured = estimate("pretrain", config)
    assert measured.steps == 1000
    assert 0 < measured.step_seconds < measured.startup_seconds
    assert 1e8 < measured.peak_memory < 4e9
    assert measured.seconds == pytest.approx(measured.startup_seconds + 999 * measured.step_seconds)
    assert "1000 steps" in str(measured)


def test_a_recipe_with_loops_is_measured_by_loops(tmp_path):
    base = pretrain.Config.of(task="school:addition?digits=1", model=TINY, steps=2, batch_size=2, seq_len=32)
    with Run.open(tmp_path, base, "pretrain") as run:
        pretrain.pretrain(base, run)
    config = star.Config.of(
        model=str(tmp_path),
        task="school:addition?digits=1",
        loops=50,
        prompts_per_loop=4,
        updates_per_loop=1,
        **{"sampling.max_new_tokens": 8},
    )
    measured = estimate("star", config)
    assert measured.steps == 51  # loop 0 learns from demonstrations only
    assert measured.seconds == pytest.approx(
        measured.startup_seconds + sum(1.1**later for later in range(50)) * measured.step_seconds
    )
    assert "each at most 1.1 times the one before" in str(measured)


def test_an_error_in_the_first_steps_is_shown():
    config = grpo.Config.of(model="no/such/model")
    with pytest.raises(SchoolError, match=r"(?s)the first steps of the run failed.*no/such/model"):
        estimate("grpo", config)


def test_evaluations_count_by_their_completions():
    config = grpo.Config.of(
        model="m",
        steps=41,
        prompts_per_step=10,
        group_size=4,
        **{"eval.every": 10, "eval.problems": 50, "eval.samples": 8},
    )
    assert _eval_steps(config, config.steps) == 4 * 10.0
    assert _eval_steps(config.model_copy(update={"eval": config.eval.model_copy(update={"every": 0})}), 41) == 0.0
    assert Estimate(11, 2.0, 0.5, 3.0, 0).seconds == 10.0


def lasts(steps: int = 1000) -> pretrain.Config:
    """The config of a run that is far from its end whenever a trial stops it."""
    return pretrain.Config.of(task="school", model=TINY, steps=steps, batch_size=2, seq_len=32, eval_every=1000)


def read_bytes(path: Path) -> bytes:
    """The content of a file of /proc, or nothing if its process has just ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_trial_reports_each_step_and_stops_the_run():
    lines: list[str] = []
    start = time.monotonic()
    trial = run_trial("pretrain", lasts(), 3, 60.0, lines.append, "pretrain")
    assert len(trial.times) >= 3
    assert lines[0].startswith("pretrain, step 1 is done after ")
    assert time.monotonic() - start < 60
    assert 0 < trial.kept_memory <= trial.peak_memory
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"school-estimate-" in read_bytes(path)]


def test_a_trial_ends_after_its_time_with_two_steps():
    trial = run_trial("pretrain", lasts(), 10**6, 0.0, lambda _: None, "pretrain")
    assert 2 <= len(trial.times) < 500


def test_lines_on_stderr_say_what_is_measured(capsys):
    estimate("pretrain", lasts(steps=2))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("estimate: measures up to 2 steps of 2 in a temporary folder")
    assert lines[1].startswith("estimate: `pretrain`, step 1 is done after")


@pytest.fixture
def large(tmp_path, monkeypatch):
    """The config of a run that starts from a model which counts as large."""
    with Run.open(tmp_path, lasts(steps=2), "pretrain") as run:
        pretrain.pretrain(lasts(steps=2), run)
    monkeypatch.setattr(module, "LARGE", 0)
    monkeypatch.setattr(module, "SECOND_SECONDS", 1.0)
    sizes = {"prompts_per_step": 32, "group_size": 4, "steps": 10, "sampling.max_new_tokens": 8, "eval.every": 5}
    return grpo.Config.of(model=str(tmp_path), task="school:addition?digits=1", **sizes)


def test_a_large_model_is_measured_with_small_steps_and_then_whole_steps(large):
    lines: list[str] = []
    measured = estimate("grpo", large, lines.append)
    trials = [line for line in lines if "a trial measures" in line]
    assert "`prompts_per_step` 4 instead of 32 and micro-batches of 1024 tokens" in trials[0]
    assert "`prompts_per_step` 32 and micro-batches of 4096 tokens" in trials[1]
    assert len(trials) == 2
    assert measured.steps == 10
    assert measured.step_seconds > 0
    assert measured.eval_seconds > 0
    assert measured.peak_memory > 1e8
    assert measured.longest_step >= measured.step_seconds  # the untrained model gives almost no training signal
    assert "if every group gives a training signal" in str(Estimate(3, 1.0, 2.0, 0.0, 10**9, longest_step=4.0))


def test_a_step_that_takes_too_long_is_never_measured_whole(large, monkeypatch):
    """The second trial keeps its least size, and the time and the memory of a whole step are computed."""
    monkeypatch.setattr(module, "WHOLE_SECONDS", 0.0)
    lines: list[str] = []
    measured = estimate("grpo", large, lines.append)
    assert "`prompts_per_step` 16 instead of 32 and micro-batches of 2048 tokens" in "\n".join(lines)
    assert measured.step_seconds > 0
    assert measured.peak_memory > 1e8


def test_the_load_of_other_programs_is_told():
    alone, beside = (str(Estimate(3, 1.0, 2.0, 0.0, 10**9, other_load=load)) for load in (0.05, 0.4))
    assert "other programs" not in alone
    assert "other programs used 40% of the processors meanwhile" in beside


def test_the_time_of_the_processors_grows():
    (busy, total), start = processor_seconds(), time.monotonic()
    while time.monotonic() - start < 0.1:
        pass
    later = processor_seconds()
    assert later[0] >= busy + 0.05
    assert later[1] - total >= later[0] - busy - 1e-6


@pytest.mark.parametrize(
    ("values", "size", "expected"),
    [
        ((7.0, 8.0), 6, 10.0),
        ((7.0, 8.0), 2, 6.0),
        ((5.0, 3.0), 40, 3.0),  # noise: a larger step is never quicker
        ((1.0, 8.0), 8, 16.0),  # noise: the constant part is never negative
        ((0.0, 0.0), 8, 0.0),
    ],
)
def test_a_line_through_two_points(values, size, expected):
    assert _line((3, 4), values, size) == pytest.approx(expected)


def test_a_penalty_and_random_rewards_give_every_group_a_gradient():
    assert _skips_constant_groups(grpo.Config.of(model="m"))
    assert not _skips_constant_groups(grpo.Config.of(model="m", **{"loss.kl_coef": 0.1}))
    assert not _skips_constant_groups(grpo.Config.of(model="m", **{"rewards.control": "random"}))


def test_the_time_of_a_part_is_its_mean_without_the_first_step():
    rows = [(9.0, 2.0, 4.0), (16.0, 3.0, 3.0), (22.0, 2.5, 3.2)]
    times = [{"seconds": end, "sampling": sampling, "learning": learning} for end, sampling, learning in rows]
    assert _step_parts(Trial(times, [], 0, 0)) == pytest.approx((2.75, 3.1, 0.65))


def test_the_share_of_groups_with_a_signal_comes_from_all_trials():
    rows = [{"groups": 2, "groups_with_signal": 1}, {"groups": 6, "groups_with_signal": 1}]
    assert _signal([Trial([], [row], 0, 0) for row in rows]) == 0.25
    assert _signal([Trial([], [{"loss": 1.0}], 0, 0)]) == 1.0
