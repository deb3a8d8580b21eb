"""The exam, sat by examinees whose every answer is known."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.eval.evaluate import Record, evaluate, summarise
from schoolhouse.tasks.base import Task
from schoolhouse.types import Completion, Demonstration, Key, Message, Problem, Rollout, SchoolError, Verdict


class Doubles(Task):
    """2 + 2, 3 + 3, ...: the even ones are one family, the odd ones another."""

    name = "doubles"
    in_process = True

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        families = ("even", "odd")
        every = [
            Problem(f"d{n}", (Message("user", f"{n}+{n}="),), str(2 * n), families[n % 2], info={"n": n})
            for n in range(40)
        ]
        return every[:count]

    def grade(self, problem: Problem, reply: Completion) -> Verdict:
        if "?" in reply.answer:
            return Verdict(None, "cannot read this")
        return Verdict(float(f"{{{problem.reference}}}" in reply.answer))


CONVERSATION = Conversation(train_tokenizer(["2+2=4 think \\boxed{}"], 300))


class Pupil:
    """Says what `answer(problem, sample)` gives: (thought, answer), each token with probability 1/e."""

    conversation = CONVERSATION
    max_seq_len = 200

    def __init__(self, answer: Callable[[Problem, int], tuple[str, str]]) -> None:
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
        length, said = max_new_tokens, []
        for rollout in rollouts:
            self.keys.append(rollout.key)
            thought, answer = self.answer(rollout.problem, rollout.key.sample)
            shown = CONVERSATION.demonstration_rollout(Demonstration(rollout.problem, thought, answer), rollout.key).last_turn()
            cut = len(shown) > length
            said.append(
                rollout.append_sampled(shown[:length], [-1.0] * len(shown[:length]), "length" if cut else "stop", 0)
            )
            if progress:
                progress(1)
        return said


def boxed(problem: Problem, plus: int = 0) -> str:
    return f"\\boxed{{{int(problem.reference) + plus}}}"


def sit(answer: Callable[[Problem, int], tuple[str, str]], problems: int = 20, samples: int = 4, length: int = 99):
    return evaluate(Pupil(answer), Doubles(), problems, samples, length)


def test_who_knows_everything_passes_and_who_knows_nothing_fails() -> None:
    best = sit(lambda problem, sample: ("", boxed(problem)))
    worst = sit(lambda problem, sample: ("", boxed(problem, plus=1)))
    for name in ("pass_at_1", "pass_at_2", "pass_at_4", "maj_at_4", "score"):
        assert (best.overall[name].value, worst.overall[name].value) == (1.0, 0.0)
    assert best.overall["pass_at_1"].low < 1.0  # twenty problems are no proof


def test_families_are_told_apart() -> None:
    found = sit(lambda problem, sample: ("", boxed(problem, plus=problem.family == "odd")))
    assert found.families["even"]["pass_at_1"].value == 1.0
    assert found.families["odd"]["pass_at_1"].value == 0.0
    assert found.overall["pass_at_1"].value == 0.5


def test_one_right_sample_of_four() -> None:
    found = sit(lambda problem, sample: ("", boxed(problem, plus=sample)))
    assert found.overall["pass_at_1"].value == pytest.approx(0.25)
    assert found.overall["pass_at_2"].value == pytest.approx(0.5)
    assert found.overall["pass_at_4"].value == 1.0
    assert found.overall["maj_at_4"].value == pytest.approx(0.25)  # four answers, tied


def test_the_majority_wins_in_a_normal_form() -> None:
    forms = ("{}", "{}.0", "9999", "77")
    found = sit(lambda problem, sample: ("", "\\boxed{" + forms[sample].format(problem.reference) + "}"), problems=1)
    assert found.overall["maj_at_4"].value == pytest.approx(0.5)  # the class of the winner holds a wrong verdict too


def test_thought_is_measured_apart_for_right_and_wrong_answers() -> None:
    found = sit(lambda problem, sample: ("2" * (9 if sample else 3), boxed(problem, plus=bool(sample))))
    assert found.overall["thought_tokens_right"].value == 3
    assert found.overall["thought_tokens_wrong"].value == 9
    assert found.overall["thought_tokens"].value == pytest.approx((3 + 27) / 4)


def test_what_cannot_be_judged_is_left_out_and_counted() -> None:
    found = sit(lambda problem, sample: ("", "?" if sample < 2 else boxed(problem)))
    assert found.overall["pass_at_1"].value == 1.0
    assert found.overall["ungraded"].value == 0.5
    assert math.isnan(found.overall["pass_at_4"].value)  # nobody has four judged samples


def test_what_cannot_be_judged_has_no_vote() -> None:
    found = sit(lambda problem, sample: ("", "\\boxed{?}" if sample < 3 else boxed(problem)))
    assert found.overall["ungraded"].value == 0.75
    assert found.overall["maj_at_4"].value == 1.0


def test_answers_without_an_end_are_counted() -> None:
    found = sit(lambda problem, sample: ("2" * (50 if sample else 0), boxed(problem)), length=30)
    assert found.overall["truncated"].value == 0.75
    assert found.overall["no_answer"].value == 0.75
    assert found.overall["pass_at_1"].value == 0.25


def test_entropy_is_the_mean_surprisal_of_what_was_sampled() -> None:
    assert sit(lambda problem, sample: ("", boxed(problem))).overall["entropy"].value == pytest.approx(1.0)


def test_every_answer_has_a_key_of_its_own_and_always_the_same() -> None:
    pupil = Pupil(lambda problem, sample: ("", boxed(problem)))
    evaluate(pupil, Doubles(), 3, 2, seed=5)
    assert pupil.keys == [Key(5, "evaluate", 0, i, g) for i in range(3) for g in range(2)]


def test_progress_is_told_of_every_answer() -> None:
    told: list[int] = []
    evaluate(Pupil(lambda problem, sample: ("", "")), Doubles(), 3, 2, progress=told.append)
    assert sum(told) == 6


def test_all_problems_are_sat_where_no_number_is_given() -> None:
    assert len(evaluate(Pupil(lambda problem, sample: ("", "")), Doubles(), None, 1).records) == 40


def test_an_empty_exam_is_refused() -> None:
    with pytest.raises(SchoolError, match="doubles has an empty exam"):
        evaluate(Pupil(lambda problem, sample: ("", "")), Doubles(), 0)


def test_an_evaluation_is_plain_data_and_a_table() -> None:
    found = sit(lambda problem, sample: ("", boxed(problem)))
    plain = json.loads(json.dumps(found.to_json(records=True), allow_nan=False))
    assert plain["overall"]["pass_at_1"] == 1.0
    assert len(plain["overall"]["pass_at_1_interval"]) == 2
    assert plain["overall"]["thought_tokens_wrong"] is None
    assert plain["families"].keys() == {"even", "odd"}
    assert len(plain["records"]) == 20
    assert "records" not in found.to_json()
    lines = str(found).splitlines()
    assert all(word in str(found) for word in ("doubles", "20 problems", "even", "odd", "pass@1", "pass@4", "maj@4"))
    assert max(map(len, lines)) <= 120
    assert "…" not in str(found)


def test_two_exams_can_be_compared_problem_by_problem() -> None:
    found = sit(lambda problem, sample: ("", boxed(problem, plus=problem.family == "odd")), problems=2)
    assert found.by_problem() == {"d0": 1.0, "d1": 0.0}


def test_a_partly_right_answer_counts_in_the_score_alone() -> None:
    record = Record("p", "f", (0.5, 1.0), (0, 0), 0.0, 0, 0, 2, 2.0)
    found = summarise([record], 2)
    assert found["score"].value == 0.75
    assert found["pass_at_1"].value == 0.5


def test_without_a_length_an_answer_may_take_what_the_model_can_read() -> None:
    pupil = Pupil(lambda problem, sample: ("", ""))
    longest_prompt = max(len(CONVERSATION.prompt_rollout(p, Key(0, "evaluate"))) for p in Doubles().eval_problems(3))
    assert evaluate(pupil, Doubles(), 3, 1, None).max_new_tokens == pupil.max_seq_len - longest_prompt


def test_what_could_not_be_judged_is_no_zero():
    record = Record("p", "", (1.0, None), (1, 1), 1.0, 0, 0, 2, 1.0)
    assert summarise([record], 2)["score"].value == 1.0
