"""An estimate is measured in the first steps of the run, in another process."""

import pytest

from schoolhouse.recipes import grpo, pretrain, star
from schoolhouse.runs.estimate import Estimate, _eval_steps, estimate
from schoolhouse.runs.run import Run
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
