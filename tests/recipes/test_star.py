"""STaR: which rollouts are kept, that the hint is taken out, and where each loop starts from."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import pretrain, sft, star
from schoolhouse.runs.run import read_metrics
from schoolhouse.types import NAN, FinishReason, Group, Key, Message, Problem, Rollout, SchoolError
from tiny_groups import verdict
from tiny_runs import TINY, metrics_text, train

MODEL = {**TINY, "intermediate_size": 32, "max_seq_len": 128}
PROBLEM = Problem("p", (Message("user", "What is 3 + 4?"),), "7")


# --- what is kept


def completion(*tokens: int, finish_reason: FinishReason = "stop") -> Rollout:
    """A rollout of a prompt of two tokens and these."""
    prompt = Rollout(PROBLEM, Key(0, "t", 0, 0, 0), (1, 2), (False, False), (NAN, NAN))
    return prompt.append_sampled(tokens, [-0.1] * len(tokens), finish_reason, 0)


def group(*pairs: tuple[Rollout, float | None]) -> Group:
    """Rollouts with their rewards."""
    return Group(PROBLEM, tuple(rollout for rollout, _ in pairs), tuple(verdict(reward) for _, reward in pairs))


def test_right_answers_are_kept_once_and_up_to_the_cap():
    graded = group(
        (completion(3), 1.0),
        (completion(3), 1.0),
        (completion(4), 0.0),
        (completion(5), 1.0),
        (completion(6), 1.0),
        (completion(7), None),
    )
    assert [rollout.last_turn() for rollout in star.keep([graded], max_per_problem=2)] == [(3,), (5,)]


def test_a_truncated_answer_is_never_kept():
    truncated = group((completion(3, finish_reason="length"), 1.0))
    assert star.keep([truncated], max_per_problem=9) == star.keep([truncated], max_per_problem=9, everything=True) == []


def test_everything_keeps_wrong_answers_too():
    graded = group((completion(3), 0.0), (completion(4), 1.0))
    assert len(star.keep([graded], max_per_problem=9, everything=True)) == 2


# --- hints


def test_a_hint_is_the_answer_behind_the_question():
    assert star.with_hint(PROBLEM).messages == (Message("user", "What is 3 + 4? (7)"),)


def test_tokens_behind_another_prompt_lose_their_log_probabilities():
    assert all(math.isnan(logprob) for logprob in completion(3, 4).with_prompt((9, 9, 9)).logprob)


def test_the_hint_is_taken_out_of_the_prompt_of_a_rollout(folder: Path):
    policy = Policy.load(folder / "base")
    prompt = policy.conversation.prompt_rollout(star.with_hint(PROBLEM), Key(0, "t"))
    plain = star._without_hint(policy, prompt.append_sampled((5, 6), (-0.1, -0.2), "stop", 0))
    assert plain.problem.messages == PROBLEM.messages
    assert plain.tokens == (*policy.conversation.prompt(PROBLEM.messages), 5, 6)
    assert plain.loss_mask[-2:] == (True, True)
    assert not any(plain.loss_mask[:-2])


# --- runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task whose answer is 6 or 7, and a base model that gives one of them."""
    folder = tmp_path_factory.mktemp("models")
    answers = [("seven", 7) if i % 3 else ("six", 6) for i in range(60)]
    rows = [{"question": f"Say {i}.", "answer": f"{word} #### {n}"} for i, (word, n) in enumerate(answers)]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = pretrain.Config.of(task="school:facts", model=MODEL, vocab_size=300, steps=3, batch_size=4, seq_len=32)
    train(folder / "text", c)
    keys = {"task": task_of(folder), "steps": 60, "batch_size": 32, "optimizer.learning_rate": 1e-2}
    train(folder / "base", sft.Config.of(model=str(folder / "text"), **keys))
    return folder


def task_of(folder: Path) -> str:
    return f"jsonl:{folder / 'task.jsonl'}?holdout=none"


def config(folder: Path, **keys: Any) -> star.Config:
    defaults: dict[str, Any] = {
        "model": str(folder / "base"),
        "task": task_of(folder),
        "demos_task": task_of(folder),
        "num_demos": 4,
        "loops": 2,
        "prompts_per_loop": 12,
        "sampling.max_new_tokens": 24,
        "updates_per_loop": 2,
        "batch_size": 8,
        "optimizer.learning_rate": 1e-3,
    }
    return star.Config.of(**{**defaults, **keys})


class Loop(NamedTuple):
    """The arguments of `star.fine_tune` in one loop."""

    weights: dict[str, Any]
    """When the loop begins to learn."""
    has_moments: bool
    """Whether Adam has seen a gradient."""
    rollouts: list[Rollout]


def loops_of(folder: Path, c: star.Config, monkeypatch: pytest.MonkeyPatch) -> list[Loop]:
    loops, fine_tune = list[Loop](), star.fine_tune

    def recorded(c: star.Config, policy: Policy, rollouts: list[Rollout], loop: int) -> Any:
        weights = {name: value.clone() for name, value in policy.decoder.state_dict().items()}
        loops.append(Loop(weights, bool(policy.learner.optimizer.state), list(rollouts)))
        return fine_tune(c, policy, rollouts, loop)

    with monkeypatch.context() as patch:
        patch.setattr(star, "fine_tune", recorded)
        train(folder, c)
    return loops


def test_each_loop_records_what_was_sampled_kept_and_learned(folder: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(folder))
    rows = read_metrics(run.folder)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[0]["trained_rollouts"] == 8  # each demonstration with its hint and without
    for row in rows[1:]:
        assert row["rollouts"] == 12
        assert row["trained_rollouts"] == 8 + row["kept"] + row.get("rationalized", 0)
        assert row.get("failed", 0) == 12 - row["kept"]
    sampled = [
        sum(end - start for line in path.read_text().splitlines() for start, end in json.loads(line)["sampled_spans"])
        for path in sorted((run.folder / "rollouts").iterdir())
    ]
    # tokens of attempts with hints count too
    assert all(row["sampled_tokens"] > tokens for row, tokens in zip(rows[1:], sampled, strict=True))


def test_without_rationalization_no_demonstration_has_a_hint(folder: Path, tmp_path: Path):
    rows = read_metrics(train(tmp_path / "run", config(folder, rationalize=False, loops=1)).folder)
    assert rows[0]["trained_rollouts"] == 4


@pytest.mark.parametrize("restart", [True, False])
def test_each_loop_starts_from_the_base_or_from_the_last_loop(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: bool
):
    loops = loops_of(tmp_path / "run", config(folder, restart_from_base=restart), monkeypatch)
    base = Policy.load(folder / "base").decoder.state_dict()
    assert len(loops) == 3
    for number, loop in enumerate(loops):
        assert not loop.has_moments
        is_base = all(bool((loop.weights[name] == base[name]).all()) for name in base)
        assert is_base is (restart or number == 0)


@pytest.mark.parametrize("keep_hint", [False, True])
def test_a_rationalized_completion_is_learned_without_its_hint_unless_keep_hint_is_true(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_hint: bool
):
    grade = star.grade_rollouts

    def right_with_a_hint(*args: Any) -> list[Group]:
        return [
            Group(g.problem, g.rollouts, (verdict(float(has_hint(g.problem.messages[-1].content))),) * len(g.rollouts))
            for g in grade(*args)
        ]

    def has_hint(text: str) -> bool:
        return "(" in text

    monkeypatch.setattr(star, "grade_rollouts", right_with_a_hint)
    loops = loops_of(tmp_path / "run", config(folder, num_demos=0, keep_hint=keep_hint), monkeypatch)
    rollouts = [rollout for loop in loops for rollout in loop.rollouts]
    tokenizer = Policy.load(folder / "base").conversation.tokenizer
    assert rollouts
    assert {has_hint(rollout.problem.messages[-1].content) for rollout in rollouts} == {keep_hint}
    assert {has_hint(tokenizer.decode(rollout.tokens[: rollout.turns[-1]])) for rollout in rollouts} == {keep_hint}


def test_wrong_answers_can_be_kept_and_updates_grow(folder: Path, tmp_path: Path):
    keys = {"num_demos": 0, "rationalize": False, "keep": "all", "updates_per_loop": 20, "updates_growth": 1.5}
    rows = read_metrics(train(tmp_path / "run", config(folder, **keys)).folder)
    assert [row["updates"] for row in rows if "updates" in row] == [round(20 * 1.5**loop) for loop in (1, 2)]
    assert any(row["kept"] > row["rollouts"] * row["reward"] for row in rows if "kept" in row)


def test_loops_without_anything_to_learn_leave_the_model_as_it_is(folder: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(folder, num_demos=0, rationalize=False, **{"sampling.max_new_tokens": 1}))
    assert all("trained_rollouts" not in row for row in read_metrics(run.folder))
    before, after = (Policy.load(model).decoder.state_dict() for model in (folder / "base", run.folder))
    assert all(bool((before[name] == after[name]).all()) for name in before)


def test_an_interrupted_run_resumes_to_the_same_bits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, fine_tune = train(tmp_path / "whole", config(folder)), star.fine_tune

    def interrupt_in_loop_2(c: Any, policy: Any, rollouts: Any, loop: int) -> Any:
        if loop == 2:
            raise KeyboardInterrupt
        return fine_tune(c, policy, rollouts, loop)

    with monkeypatch.context() as patch:
        patch.setattr(star, "fine_tune", interrupt_in_loop_2)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", config(folder))
    resumed = train(tmp_path / "cut", config(folder))
    assert metrics_text(resumed) == metrics_text(whole)
    one, other = (load_file(run.model / "model.safetensors") for run in (whole, resumed))
    assert all((one[name] == other[name]).all() for name in one)


# --- refusals


def test_demonstrations_that_have_changed_since_the_run_began_are_refused(folder: Path, tmp_path: Path):
    demos = tmp_path / "demos.jsonl"
    demos.write_bytes((folder / "task.jsonl").read_bytes())
    c = config(folder, demos_task=f"jsonl:{demos}?holdout=none", loops=1)
    train(tmp_path / "run", c)
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("finished", "stopped"))
    demos.write_text(demos.read_text().replace("Say 1.", "Say one."))
    with pytest.raises(SchoolError, match=r"demos\.jsonl has changed"):
        train(tmp_path / "run", c)


def test_several_samples_at_temperature_0_are_refused(tmp_path: Path):
    with pytest.raises(SchoolError, match=r"at temperature 0 all samples are identical: set sampling\.temp"):
        train(tmp_path / "run", star.Config.of(model="m", samples_per_prompt=32))
