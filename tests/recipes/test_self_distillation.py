"""Self-distillation: the teacher's prompt, whose tokens are scored, and a run that comes closer to its teacher."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import self_distillation
from schoolhouse.runs.run import Run, read_metrics
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


@pytest.mark.parametrize(("teacher", "rate"), [("policy", 5e-3), ("average", 1e-3)])
def test_the_student_comes_closer_to_the_teacher(model: Path, tmp_path: Path, teacher: str, rate: float):
    keys = {"steps": 30, "save_every": 30, "optimizer.learning_rate": rate}
    rows = read_metrics(train(tmp_path / "run", config(model, teacher=teacher, **keys)).folder)
    first, last = (fmean(row["reverse_kl"] for row in part) for part in (rows[:15], rows[15:]))
    assert last < 0.75 * first


def test_all_teachers_are_equal_in_the_first_step_and_differ_after_an_update(model: Path, tmp_path: Path):
    runs = [train(tmp_path / name, config(model, teacher=name)) for name in ("policy", "average", "start")]
    first, second = zip(*([row["reverse_kl"] for row in read_metrics(run.folder)] for run in runs), strict=True)
    assert len(set(first)) == 1
    assert len({round(kl, 5) for kl in second}) == 3


@pytest.mark.parametrize("rank", [0, 2])
def test_the_average_with_rate_1_is_the_policy(model: Path, tmp_path: Path, rank: int):
    keys = {"steps": 3, "lora.rank": rank}
    policy = train(tmp_path / "policy", config(model, teacher="policy", **keys))
    average = train(tmp_path / "average", config(model, teacher_update_rate=1.0, **keys))
    assert metrics_text(average) == metrics_text(policy)


@pytest.mark.parametrize(("teacher", "rank", "models"), [("policy", 0, 1), ("average", 0, 2), ("average", 2, 1)])
def test_the_check_of_the_memory_comes_after_the_teacher(
    model: Path, tmp_path: Path, teacher: str, rank: int, models: int, monkeypatch: pytest.MonkeyPatch
):
    """The check compares with the free memory, so the memory of a teacher is counted if it is taken already."""
    loaded, load = [], Policy.load

    def record(*args: Any, **keys: Any) -> Policy:
        loaded.append(args)
        return load(*args, **keys)

    def check(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Policy, "load", record)
    monkeypatch.setattr(self_distillation, "check_peak_memory", check)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", config(model, teacher=teacher, **{"lora.rank": rank}))
    assert len(loaded) == models


def saved_numbers(run: Run, rank: int) -> dict[str, Tensor]:
    """The weights of the policy, and those of the teacher in the checkpoint."""
    file = "adapter_model.safetensors" if rank else "model.safetensors"
    (state,) = [torch.load(path, weights_only=True) for path in Path(run.model).rglob("*.pt")]
    return load_file(Path(run.model) / file) | {f"teacher {name}": t for name, t in state["ref_policy"].items()}


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.fault("killed")
def test_an_interrupted_run_resumes_to_the_same_bits(model: Path, tmp_path: Path, interrupted: Any, rank: int):
    c = config(model, steps=3, **{"lora.rank": rank, "teacher_update_rate": 0.25})
    whole = train(tmp_path / "whole", c)
    interrupted(lambda: train(tmp_path / "cut", c))
    resumed = train(tmp_path / "cut", c)
    assert metrics_text(resumed) == metrics_text(whole)
    ours, theirs = saved_numbers(resumed, rank), saved_numbers(whole, rank)
    assert any(name.startswith("teacher") for name in theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_rate_without_an_average_is_refused(model: Path):
    with pytest.raises(SchoolError, match="`teacher_update_rate` has no effect on `teacher` start; leave"):
        config(model, teacher="start", teacher_update_rate=0.5)


def test_a_context_without_a_place_for_the_demonstration_is_refused(model: Path):
    with pytest.raises(SchoolError, match="`context` does not contain {demonstration}; add"):
        config(model, context="{question}")
