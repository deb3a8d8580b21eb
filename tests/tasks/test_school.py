"""The school: the same problems for the same seed, no exam instance in practice, answers that are judged right."""

from collections import Counter
from random import Random
from typing import Any, cast

import pytest

from schoolhouse.data.scripts import script_share
from schoolhouse.tasks.answer_match import answer_match
from schoolhouse.tasks.audit import audit_task
from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.school.chain import CHAIN, Chain
from schoolhouse.tasks.school.family import STYLES, held_out
from schoolhouse.tasks.school.task import CURRICULUM, EVAL_SIZE, FAMILIES, School
from schoolhouse.types import REVISION_REQUEST, Completion, Problem, SchoolError

NAMES = list(CURRICULUM)


def boxed(answer: str) -> Completion:
    return Completion("", f"\\boxed{{{answer}}}")


# ---- determinism


def test_the_same_seed_and_step_give_the_same_problems() -> None:
    assert School.open(seed=3).train_problems(5, 50) == School.open(seed=3).train_problems(5, 50)
    assert School.open(seed=3).demonstrations(5, 50) == School.open(seed=3).demonstrations(5, 50)
    assert School.open(seed=3).pretraining_text(5, 20) == School.open(seed=3).pretraining_text(5, 20)


def test_fewer_problems_are_the_first_of_more() -> None:
    school = School.open(seed=3)
    assert school.train_problems(5, 50)[:20] == school.train_problems(5, 20)
    assert school.demonstrations(5, 50)[:20] == school.demonstrations(5, 20)


@pytest.mark.parametrize("other", [{"seed": 4, "step": 5}, {"seed": 3, "step": 6}])
def test_another_seed_or_step_gives_other_problems(other: dict[str, int]) -> None:
    first = School.open("addition+chain", seed=3).train_problems(5, 200)
    second = School.open("addition+chain", seed=other["seed"]).train_problems(other["step"], 200)
    assert len({p.id for p in first} & {p.id for p in second}) < 5


def test_practice_and_worked_examples_are_not_the_same_problems() -> None:
    school = School.open("addition")
    assert not {p.id for p in school.train_problems(0, 200)} & {d.problem.id for d in school.demonstrations(0, 200)}


def test_the_exam_is_the_same_for_every_seed_and_every_company() -> None:
    exam = School.open("chain", seed=1).eval_problems()
    assert exam == School.open("chain", seed=2).eval_problems()
    assert exam == [p for p in School.open("chain+addition").eval_problems() if p.family == "chain"]


# ---- shares and sizes


@pytest.mark.parametrize("name", NAMES)
def test_an_exam_holds_distinct_instances(name: str) -> None:
    exam = School.open(name).eval_problems()
    assert len({p.id for p in exam}) == len(exam)
    assert len(exam) == EVAL_SIZE or (name in ("facts", "countdown") and len(exam) > 15)


def test_the_count_of_an_exam_is_shared_by_the_families() -> None:
    exam = School.open("addition+chain+shopping").eval_problems(50)
    assert Counter(p.family for p in exam) == {"addition": 17, "chain": 17, "shopping": 16}
    assert [p.family for p in exam[:6]] == ["addition", "chain", "shopping"] * 2


def test_families_come_in_equal_shares_in_a_shuffled_order() -> None:
    drawn = School.open().train_problems(0, 70 * len(NAMES))
    assert set(Counter(p.family for p in drawn).values()) == {70}
    rounds = {tuple(p.family for p in drawn[i : i + len(NAMES)]) for i in range(0, len(drawn), len(NAMES))}
    assert len(rounds) > 50


def test_hands_come_in_the_shares_asked_for() -> None:
    counts = Counter(d.style for d in School.open().demonstrations(0, 10_000))
    shares = {hand: counts[hand] / 10_000 for hand in STYLES}
    asked = {"no_cot": 0.50, "partial": 0.15, "full": 0.20, "self_check": 0.10, "step_repair": 0.05}
    assert shares == pytest.approx({**dict.fromkeys(STYLES, 0.0), **asked}, abs=0.02)
    assert {d.style for d in School.open(styles="full=3,self_check=1,no_cot=0").demonstrations(0, 500)} == {
        "full",
        "check",
    }


# ---- train and exam are disjoint


@pytest.mark.parametrize(
    "options",
    [{}, {"digits": "2", "steps": "2", "top": "3", "length": "3", "decimals": "1", "operand": "5"}, {"digits": "2-3"}],
    ids=["defaults", "smallest", "mixed"],
)
def test_no_exam_instance_is_ever_practised(options: dict[str, Any]) -> None:
    school = School.open(**options)
    exam = {p.id for p in school.eval_problems()}
    shown = {p.id for step in range(5) for p in school.train_problems(step, 2_000)}
    shown |= {d.problem.id for d in school.demonstrations(0, 10_000)}
    assert len(exam) > 50
    assert len(shown) > 500
    assert not exam & shown


def test_questions_of_the_exam_are_never_asked_in_practice() -> None:
    school = School.open()
    exam = {p.messages for p in school.eval_problems()}
    assert not exam & {d.problem.messages for d in school.demonstrations(1, 20_000)}


def test_the_exam_of_small_dials_is_not_practised_with_large_ones() -> None:
    small = {p.id for p in School.open("addition", digits="2").eval_problems()}
    assert not small & {p.id for p in School.open("addition", digits="2-3").train_problems(0, 20_000)}


# ---- verdicts


@pytest.mark.parametrize("name", NAMES)
def test_references_are_right_and_others_wrong(name: str) -> None:
    school = School.open(name)
    for problem in school.eval_problems() + school.train_problems(0, 100):
        assert school.grade(problem, boxed(problem.reference)).reward == 1.0
        assert school.grade(problem, boxed(school.wrong_answer(problem))).reward == 0.0
        assert school.grade(problem, Completion(f"\\boxed{{{problem.reference}}}", "")).reward == 0.0


@pytest.mark.parametrize("hand", [hand for hand in STYLES if hand != "systematic_error"])
def test_every_hand_but_one_ends_with_the_right_answer(hand: str) -> None:
    school = School.open(styles=f"{hand}=1")
    for shown in school.demonstrations(0, 1_000):
        assert shown.answer == f"\\boxed{{{shown.problem.reference}}}"
        assert school.grade(shown.problem, Completion(shown.thought, shown.answer)).reward == 1.0
        assert (shown.thought == "") == (hand == "no_cot")


def test_any_right_expression_counts_in_countdown() -> None:
    school = School.open("countdown")
    problem = Problem("x", (), "3*5+8", "countdown", "school", {"numbers": (3, 5, 8), "target": 23})
    assert school.grade(problem, boxed("8+(5*3)")).reward == 1.0
    assert school.grade(problem, boxed("23")).reward == 0.0


@pytest.mark.parametrize("name", ["", *FAMILIES])
def test_the_school_is_valid(name: str) -> None:
    audit = audit_task(School.open(name), 100)
    assert audit.passed, str(audit)
    assert audit.judged == 100 or name == "facts"


# ---- options


@pytest.mark.parametrize(
    ("families", "options", "message"),
    [
        ("adition", {}, "unknown family `adition`; did you mean `addition`"),
        ("addition+", {}, "unknown family ``"),
        ("addition", {"digit": "4"}, "unknown option `digit`; did you mean `digits`"),
        ("addition", {"steps": "4"}, "unknown option `steps`"),
        ("addition", {"digits": "40"}, "`digits` .* is `40`; it must be .* within 1 to 12"),
        ("addition", {"digits": "4-2"}, "`digits` .* is `4-2`"),
        ("addition", {"digits": "many"}, "`digits` .* is `many`"),
        ("", {"styles": "no_cut=1"}, "unknown style `no_cut`; did you mean `no_cot`"),
        ("", {"styles": "no_cot=-1"}, "weight of `no_cot` is `-1`"),
        ("", {"styles": "no_cot"}, "weight of `no_cot` is ``"),
        ("", {"styles": "no_cot=nan"}, "weight of `no_cot` is `nan`"),
        ("", {"styles": "no_cot=0,full=0"}, "weigh nothing"),
    ],
)
def test_wrong_options_are_named(families: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SchoolError, match=message):
        School.open(families, **options)


def test_a_dial_may_be_a_range() -> None:
    lengths = {len(str(p.id).partition("+")[2]) for p in School.open("addition", digits="2-4").train_problems(0, 200)}
    assert lengths == {2, 3, 4}


def test_a_spec_opens_the_school() -> None:
    assert open_task("school:addition+chain?digits=3", seed=5).train_problems(0, 20) == School.open(
        "addition+chain", 5, digits="3"
    ).train_problems(0, 20)


def test_its_name_says_what_is_taught() -> None:
    assert School.open().name == "school"
    assert School.open("addition+chain").name == "school:addition+chain"


def test_practice_is_never_held_out() -> None:
    assert not [p.id for p in School.open().train_problems(0, 5_000) if held_out(p.id.removeprefix("school:"))]


def test_second_attempts_show_a_first_one_and_a_request_and_end_right():
    task = School.open("chain", 0, revision_percent="100", styles="full=100")
    answers = [d.problem.messages[1].content == d.answer for d in task.demonstrations(0, 200)]
    assert all(d.problem.messages[2].content == REVISION_REQUEST for d in task.demonstrations(0, 20))
    assert 60 < sum(answers) < 140  # every other first attempt is right
    assert all(
        answer_match(Completion(None, d.answer), d.problem.reference).reward == 1.0 for d in task.demonstrations(0, 20)
    )


def test_a_botched_chain_is_wrong_and_follows_from_its_mistake():
    task = School.open("chain", 0, revision_percent="100", styles="full=100")
    wrong = [d for d in task.demonstrations(0, 50) if d.problem.messages[1].content != d.answer]
    for lesson in wrong:
        first = lesson.problem.messages[1]
        assert first.thought
        assert first.thought[-1] == first.content[-2]


def test_worked_examples_without_second_attempts_are_what_they_were():
    assert School.open("chain", 0).demonstrations(0, 5) == School.open("chain", 0, revision_percent="0").demonstrations(
        0, 5
    )


def test_thoughts_in_toy_languages():
    latin = School.open("chain", 0, styles="full=100", languages="latin=100").demonstrations(0, 20)
    mixed = School.open("chain", 0, styles="full=100", languages="mixed=100").demonstrations(0, 20)
    assert all(script_share(d.thought or "", "latin") == 1.0 for d in latin)
    assert 0.3 < sum(script_share(d.thought or "", "latin") for d in mixed) / 20 < 0.7


def test_an_unknown_tongue_is_refused_with_the_nearest():
    with pytest.raises(SchoolError, match="did you mean `latin`"):
        School.open("chain", 0, languages="latn=1")


def test_steps_may_stand_in_lines():
    plain, lines = (School.open("chain", 0, revision_percent="50", **more) for more in ({}, {"lines": "1"}))
    assert (plain.delimiter, lines.delimiter) == (" ", "\n")
    for one, other in zip(plain.demonstrations(0, 30), lines.demonstrations(0, 30), strict=True):
        assert other.thought == (one.thought or "").replace(" ", "\n")
        earlier = [m.thought or "" for m in one.problem.messages]
        assert [m.thought or "" for m in other.problem.messages] == [t.replace(" ", "\n") for t in earlier]
    with pytest.raises(SchoolError, match="`lines` is `2`"):
        School.open("chain", 0, lines="2")


# --- steps, one by one


def test_steps_are_rated_up_to_the_first_that_is_wrong() -> None:
    school = School.open("chain", steps="3")
    problem = school.eval_problems(1)[0]
    good = CHAIN.steps(cast(Chain, problem.info["instance"]), Random(0))
    assert school.step_labels(problem, good) == [1, 1, 1]
    assert school.step_labels(problem, [good[0], "1+1=3", good[2]]) == [1, -1, -1]
    assert school.step_labels(problem, [*good, "1+1=2"]) == [1, 1, 1, -1]
    assert school.step_labels(problem, ["well", good[0], "so", "1+1=3", "then"]) == [0, 1, 0, -1, -1]
    assert school.step_labels(problem, []) == []


def test_a_family_with_many_right_ways_says_that_its_steps_cannot_be_checked() -> None:
    school = School.open("countdown")
    with pytest.raises(SchoolError, match="cannot check single steps"):
        School.open("chain").step_labels(school.make_problem("1 + 1?"), ["1+1=2"])
    with pytest.raises(SchoolError, match="cannot check single steps: label them by continuations"):
        school.step_labels(school.eval_problems(1)[0], ["3+5=8"])
