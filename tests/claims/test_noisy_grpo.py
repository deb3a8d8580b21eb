"""GRPO with a noisy sampler: the noise shows in the logprob gap, stops a run, and is the same everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from schoolhouse.claims.harness import noisy_grpo
from schoolhouse.recipes import grpo
from schoolhouse.runs.run import read_metrics
from schoolhouse.types import SchoolError
from tiny_runs import metrics_text, train

TASK = "school:facts"


@pytest.fixture
def keys(sft_model: Callable[[str], Path]) -> dict[str, Any]:
    return {
        "model": str(sft_model(TASK)),
        "task": TASK,
        "steps": 1,
        "prompts_per_step": 8,
        "group_size": 8,
        "sampling.max_new_tokens": 24,
        "rewards.control": "random",  # so that every step is an update
        "precision": "float32",
    }


def test_noise_widens_the_logprob_gap_and_stops_the_run(keys: dict[str, Any], tmp_path: Path):
    with pytest.raises(SchoolError, match=r"`max_logprob_gap` is 0\.1"):
        train(tmp_path / "run", noisy_grpo.Config.of(**keys, sampler_noise=1.0))


def test_a_wider_limit_lets_a_noisy_run_go_on_and_records_the_gap(keys: dict[str, Any], tmp_path: Path):
    run = train(tmp_path / "run", noisy_grpo.Config.of(**keys, sampler_noise=1.0, max_logprob_gap=9.0))
    assert 0.1 < read_metrics(run.folder)[0]["logprob_gap"] < 9.0


def test_without_noise_it_is_grpo(keys: dict[str, Any], tmp_path: Path):
    noiseless = train(tmp_path / "noiseless", noisy_grpo.Config.of(**keys, sampler_noise=0.0))
    plain = train(tmp_path / "plain", grpo.Config.of(**keys))
    assert metrics_text(noiseless) == metrics_text(plain)


def test_the_noise_is_the_same_in_every_call_and_scales_with_its_deviation():
    assert torch.equal(noisy_grpo.logit_noise(1.0, 500), noisy_grpo.logit_noise(1.0, 500))
    assert torch.allclose(noisy_grpo.logit_noise(2.0, 500), 2 * noisy_grpo.logit_noise(1.0, 500))
    assert float(noisy_grpo.logit_noise(1.0, 500).std()) == pytest.approx(1.0, abs=0.1)


def test_negative_noise_is_refused():
    with pytest.raises(SchoolError, match="greater than or equal to 0"):
        noisy_grpo.Config.of(model="m", sampler_noise=-1.0)
