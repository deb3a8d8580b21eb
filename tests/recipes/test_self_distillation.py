"""Self-distillation: the teacher's prompt, whose tokens are scored, and a run that comes closer to its teacher."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import self_distillation
from schoolhouse.runs.run import read_metrics
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Demonstration, Key, Message, Problem, SchoolError
from tiny_runs import metrics_text, train

TASK = "school:facts"


@pytest.fixture(scope="module")
def model(sft_model: Callable[[str], Path]) -> Path:
    return sft_model(TASK)


def config(model: Path, **keys: Any) -> self_distillation.Config:
    defaults: dict[str, Any] = {
        "model": str(model),
        "task": TASK,
        "steps": 2,
        "prompts_per_step": 8,
        "sampling.max_new_tokens": 16,
        "context": "{demonstration} {question}",
        "optimizer.learning_rate": 5e-3,
        "precision": "float32",
        "save_every": 1,
    }
    return self_distillation.Config.of(**{**defaults, **keys})


def test_the_teacher_reads_the_demonstration_in_the_last_user_message():
    messages = (Message("system", "Be brief."), Message("user", "2 {demonstration}?"))
    demonstration = Demonstration(Problem("p", messages, "4"), "two and two", "It is {question} 4.")
    informed = self_distillation.add_demonstration(demonstration, "Q: {question} A: {demonstration}")
    expected = "Q: 2 {demonstration}? A: two and two\nIt is {question} 4."
    assert informed.messages == (messages[0], Message("user", expected))
    assert informed.id == "p"


def test_the_teacher_scores_the_tokens_of_the_student_behind_its_own_prompt(model: Path):
    c, policy = config(model), Policy.load(model, "float32")
    conversation, demonstrations = policy.conversation, open_task(TASK, 0).demonstrations(0, 3)
    prompts = [conversation.prompt_rollout(d.problem, Key(0, "t", 0, i)) for i, d in enumerate(demonstrations)]
    rollouts = policy.extend(prompts, 8)
    rows = self_distillation.teacher_logprobs(c, policy, conversation, rollouts, demonstrations)
    for rollout, demonstration, row in zip(rollouts, demonstrations, rows, strict=True):
        problem = self_distillation.add_demonstration(demonstration, c.context)
        prompt = conversation.prompt_rollout(problem, rollout.key).tokens
        (expected,) = policy.score([rollout.with_prompt(prompt)])
        assert len(row) == len(rollout)
        assert row[rollout.turns[0] :] == pytest.approx(expected.logprob[len(prompt) :].tolist(), abs=1e-5)
        plain = policy.score([rollout])[0].logprob[rollout.turns[0] :].tolist()
        assert row[rollout.turns[0] :] != pytest.approx(plain, abs=1e-3)  # the demonstration changes them


def test_the_student_comes_closer_to_the_teacher(model: Path, tmp_path: Path):
    rows = read_metrics(train(tmp_path / "run", config(model, steps=30)).folder)
    first, last = (fmean(row["reverse_kl"] for row in part) for part in (rows[:3], rows[-3:]))
    assert last < 0.7 * first


def test_the_teacher_can_keep_the_weights_of_the_start(model: Path, tmp_path: Path):
    """Both teachers are equal in the first step, and differ after an update."""
    runs = [train(tmp_path / name, config(model, teacher=name)) for name in ("policy", "start")]
    moving, fixed = ([row["reverse_kl"] for row in read_metrics(run.folder)] for run in runs)
    assert moving[0] == fixed[0]
    assert moving[1] != pytest.approx(fixed[1], abs=1e-3)


def test_an_interrupted_run_resumes_to_the_same_numbers(model: Path, tmp_path: Path, interrupted: Any):
    whole = train(tmp_path / "whole", config(model))
    interrupted(lambda: train(tmp_path / "cut", config(model)))
    assert metrics_text(train(tmp_path / "cut", config(model))) == metrics_text(whole)


def test_a_context_without_a_place_for_the_demonstration_is_refused(model: Path):
    with pytest.raises(SchoolError, match="`context` does not contain {demonstration}; add"):
        config(model, context="{question}")
