"""Evaluation of scripted policies whose every answer is known."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.eval.evaluate import Evaluation, Record, evaluate, summarise
from schoolhouse.tasks.base import Task
from schoolhouse.types import Completion, Demonstration, Key, Message, Problem, Rollout, SchoolError, Verdict


class Doubles(Task):
    """2 + 2, 3 + 3, ...: the even ones are one family, the odd ones another."""

    name = "doubles"
    in_process = True

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        families = ("even", "odd")
        problems = [
            Problem(f"d{n}", (Message("user", f"{n}+{n}="),), str(2 * n), families[n % 2], info={"n": n})
            for n in range(40)
        ]
        return problems[:count]

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        if "?" in completion.answer:
            return Verdict(None, "cannot read this")
        return Verdict(float(f"{{{problem.reference}}}" in completion.answer))


CONVERSATION = Conversation(train_tokenizer(["2+2=4 think \\boxed{}"], 300))

Answer = Callable[[Problem, int], tuple[str, str]]
"""(problem, sample) -> thought and answer."""


class ScriptedPolicy:
    """Samples what `answer` gives, each token with probability 1/e."""

    conversation = CONVERSATION
    max_seq_len = 200

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.keys: list[Key] = []

    def extend(
        self,
        rollouts: Sequence[Rollout],
        max_new_tokens: int | Sequence[int],
        *,
        progress: Callable[[int], None] | None = None,
        **_: Any,
    ) -> list[Rollout]:
        assert isinstance(max_new_tokens, int)
        extended = []
        for rollout in rollouts:
            self.keys.append(rollout.key)
            thought, answer = self.answer(rollout.problem, rollout.key.sample)
            demonstration = Demonstration(rollout.problem, thought, answer)
            turn = CONVERSATION.demonstration_rollout(demonstration, rollout.key).last_turn()
            ids, finish = turn[:max_new_tokens], "length" if len(turn) > max_new_tokens else "stop"
            extended.append(rollout.append_sampled(ids, [-1.0] * len(ids), finish, 0))
            if progress:
                progress(1)
        return extended


def boxed(problem: Problem, plus: int = 0) -> str:
    return f"\\boxed{{{int(problem.reference) + plus}}}"


def no_answer(problem: Problem, sample: int) -> tuple[str, str]:
    return "", ""


def run(answer: Answer, problems: int = 20, samples: int = 4, max_new_tokens: int = 99) -> Evaluation:
    return evaluate(ScriptedPolicy(answer), Doubles(), problems, samples, max_new_tokens)


def test_a_perfect_policy_scores_1_and_a_wrong_one_0() -> None:
    best = run(lambda problem, sample: ("", boxed(problem)))
    worst = run(lambda problem, sample: ("", boxed(problem, plus=1)))
    for name in ("pass_at_1", "pass_at_2", "pass_at_4", "maj_at_4", "reward"):
        assert (best.overall[name].value, worst.overall[name].value) == (1.0, 0.0)
    assert best.overall["pass_at_1"].low < 1.0  # twenty problems are no proof


def test_families_are_kept_apart() -> None:
    evaluation = run(lambda problem, sample: ("", boxed(problem, plus=problem.family == "odd")))
    assert evaluation.families["even"]["pass_at_1"].value == 1.0
    assert evaluation.families["odd"]["pass_at_1"].value == 0.0
    assert evaluation.overall["pass_at_1"].value == 0.5


def test_one_correct_sample_of_four() -> None:
    overall = run(lambda problem, sample: ("", boxed(problem, plus=sample))).overall
    assert overall["pass_at_1"].value == pytest.approx(0.25)
    assert overall["pass_at_2"].value == pytest.approx(0.5)
    assert overall["pass_at_4"].value == 1.0
    assert overall["maj_at_4"].value == pytest.approx(0.25)  # four answers, tied


def test_the_majority_counts_normal_forms() -> None:
    forms = ("{}", "{}.0", "9999", "77")
    evaluation = run(
        lambda problem, sample: ("", "\\boxed{" + forms[sample].format(problem.reference) + "}"), problems=1
    )
    assert evaluation.overall["maj_at_4"].value == pytest.approx(0.5)  # one of the two winning answers is graded wrong


def test_a_task_that_needs_no_mark_has_votes() -> None:
    class Plain(Doubles):
        def grade(self, problem: Problem, completion: Completion) -> Verdict:
            return Verdict(float(completion.answer == problem.reference))

    def answer(problem: Problem, sample: int) -> tuple[str, str]:
        return "", problem.reference if sample else "77"

    overall = evaluate(ScriptedPolicy(answer), Plain(), 5, 4, 99).overall
    assert overall["pass_at_1"].value == 0.75
    assert overall["maj_at_4"].value == 1.0
    assert overall["no_answer"].value == 0.0


def test_thoughts_are_measured_apart_for_correct_and_incorrect_answers() -> None:
    overall = run(lambda problem, sample: ("2" * (9 if sample else 3), boxed(problem, plus=bool(sample)))).overall
    assert overall["thought_tokens_correct"].value == 3
    assert overall["thought_tokens_incorrect"].value == 9
    assert overall["thought_tokens"].value == pytest.approx((3 + 27) / 4)


def test_ungraded_answers_are_left_out_and_counted() -> None:
    overall = run(lambda problem, sample: ("", "?" if sample < 2 else boxed(problem))).overall
    assert overall["pass_at_1"].value == 1.0
    assert overall["ungraded"].value == 0.5
    assert math.isnan(overall["pass_at_4"].value)  # no problem has four graded samples


def test_an_ungraded_answer_has_no_vote() -> None:
    overall = run(lambda problem, sample: ("", "\\boxed{?}" if sample < 3 else boxed(problem))).overall
    assert overall["ungraded"].value == 0.75
    assert overall["maj_at_4"].value == 1.0


def test_truncated_answers_are_counted() -> None:
    overall = run(lambda problem, sample: ("2" * (50 if sample else 0), boxed(problem)), max_new_tokens=30).overall
    assert overall["truncated"].value == 0.75
    assert overall["no_answer"].value == 0.75
    assert overall["pass_at_1"].value == 0.25


def test_entropy_is_the_mean_surprisal_of_the_sampled_tokens() -> None:
    assert run(lambda problem, sample: ("", boxed(problem))).overall["entropy"].value == pytest.approx(1.0)


def test_every_answer_has_a_key_of_its_own_and_always_the_same() -> None:
    policy = ScriptedPolicy(lambda problem, sample: ("", boxed(problem)))
    evaluate(policy, Doubles(), 3, 2, seed=5)
    assert policy.keys == [Key(5, "evaluate", 0, i, g) for i in range(3) for g in range(2)]


def test_progress_counts_every_answer() -> None:
    counts: list[int] = []
    evaluate(ScriptedPolicy(no_answer), Doubles(), 3, 2, progress=counts.append)
    assert sum(counts) == 6


def test_without_a_number_of_problems_all_are_evaluated() -> None:
    assert len(evaluate(ScriptedPolicy(no_answer), Doubles(), None, 1).records) == 40


def test_a_task_without_held_out_problems_is_refused() -> None:
    with pytest.raises(SchoolError, match="doubles has no held-out problems"):
        evaluate(ScriptedPolicy(no_answer), Doubles(), 0)


def test_an_evaluation_is_plain_data_and_a_table() -> None:
    evaluation = run(lambda problem, sample: ("", boxed(problem)))
    data = json.loads(json.dumps(evaluation.to_json(records=True), allow_nan=False))
    assert data["overall"]["pass_at_1"] == 1.0
    assert len(data["overall"]["pass_at_1_interval"]) == 2
    assert data["overall"]["thought_tokens_incorrect"] is None
    assert data["families"].keys() == {"even", "odd"}
    assert data["max_new_tokens"] == 99
    assert len(data["records"]) == 20
    assert data["records"][0]["rewards"] == [1.0] * 4
    assert "records" not in evaluation.to_json()
    text = str(evaluation)
    assert all(word in text for word in ("doubles", "20 problems", "even", "odd", "pass@1", "pass@4", "maj@4"))
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text


def test_a_table_with_ungraded_answers_fits_a_wide_terminal() -> None:
    text = str(run(lambda problem, sample: ("2" * 9, "?" if sample else boxed(problem)), samples=8))
    assert "ungraded" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text


def test_two_evaluations_can_be_compared_problem_by_problem() -> None:
    evaluation = run(lambda problem, sample: ("", boxed(problem, plus=problem.family == "odd")), problems=2)
    assert evaluation.by_problem() == {"d0": 1.0, "d1": 0.0}


def test_a_partly_correct_answer_counts_in_the_reward_alone() -> None:
    record = Record("p", "f", (0.5, 1.0), (0, 0), 0.0, 0, 0, 2, 2.0)
    metrics = summarise([record], 2)
    assert metrics["reward"].value == 0.75
    assert metrics["pass_at_1"].value == 0.5


def test_without_a_limit_an_answer_may_take_the_room_of_the_model() -> None:
    policy = ScriptedPolicy(no_answer)
    longest_prompt = max(len(CONVERSATION.prompt_rollout(p, Key(0, "evaluate"))) for p in Doubles().eval_problems(3))
    assert evaluate(policy, Doubles(), 3, 1, None).max_new_tokens == policy.max_seq_len - longest_prompt


def test_an_ungraded_answer_is_not_a_reward_of_zero() -> None:
    record = Record("p", "", (1.0, None), (1, 1), 1.0, 0, 0, 2, 1.0)
    assert summarise([record], 2)["reward"].value == 1.0
