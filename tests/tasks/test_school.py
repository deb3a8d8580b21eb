"""The school: the same problems for the same seed, no held-out instance in training, correct grades."""

from collections import Counter
from random import Random
from typing import Any, cast

import pytest

from schoolhouse.data.scripts import script_share
from schoolhouse.tasks.answer_match import answer_match
from schoolhouse.tasks.audit import audit_task
from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.school.chain import CHAIN, Chain
from schoolhouse.tasks.school.family import STYLES, is_held_out
from schoolhouse.tasks.school.task import DEFAULT_FAMILIES, EVAL_PROBLEMS_PER_FAMILY, FAMILIES, School
from schoolhouse.types import REVISION_REQUEST, Completion, Problem, SchoolError

NAMES = list(DEFAULT_FAMILIES)


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


def test_training_problems_and_demonstrations_differ() -> None:
    school = School.open("addition")
    assert not {p.id for p in school.train_problems(0, 200)} & {d.problem.id for d in school.demonstrations(0, 200)}


def test_eval_problems_do_not_depend_on_the_seed_or_other_families() -> None:
    problems = School.open("chain", seed=1).eval_problems()
    assert problems == School.open("chain", seed=2).eval_problems()
    assert problems == [p for p in School.open("chain+addition").eval_problems() if p.family == "chain"]


# ---- shares and sizes


@pytest.mark.parametrize("name", NAMES)
def test_eval_problems_are_distinct(name: str) -> None:
    problems = School.open(name).eval_problems()
    assert len({p.id for p in problems}) == len(problems)
    assert len(problems) == EVAL_PROBLEMS_PER_FAMILY or (name in ("facts", "countdown") and len(problems) > 15)


def test_the_count_of_eval_problems_is_shared_by_the_families() -> None:
    problems = School.open("addition+chain+shopping").eval_problems(50)
    assert Counter(p.family for p in problems) == {"addition": 17, "chain": 17, "shopping": 16}
    assert [p.family for p in problems[:6]] == ["addition", "chain", "shopping"] * 2


def test_families_come_in_equal_shares_in_a_shuffled_order() -> None:
    problems = School.open().train_problems(0, 70 * len(NAMES))
    assert set(Counter(p.family for p in problems).values()) == {70}
    rounds = {tuple(p.family for p in problems[i : i + len(NAMES)]) for i in range(0, len(problems), len(NAMES))}
    assert len(rounds) > 50


def test_styles_come_in_the_requested_shares() -> None:
    counts = Counter(d.style for d in School.open().demonstrations(0, 10_000))
    shares = {style: counts[style] / 10_000 for style in STYLES}
    requested = {"no_cot": 0.50, "partial": 0.15, "full": 0.20, "self_check": 0.10, "step_repair": 0.05}
    assert shares == pytest.approx({**dict.fromkeys(STYLES, 0.0), **requested}, abs=0.02)
    assert {d.style for d in School.open(styles="full=3,self_check=1,no_cot=0").demonstrations(0, 500)} == {
        "full",
        "self_check",
    }


# ---- train and exam are disjoint


@pytest.mark.parametrize(
    "options",
    [{}, {"digits": "2", "steps": "2", "top": "3", "length": "3", "decimals": "1", "operand": "5"}, {"digits": "2-3"}],
    ids=["defaults", "smallest", "mixed"],
)
def test_no_held_out_instance_is_ever_trained_on(options: dict[str, Any]) -> None:
    school = School.open(**options)
    held_out = {p.id for p in school.eval_problems()}
    trained = {p.id for step in range(5) for p in school.train_problems(step, 2_000)}
    trained |= {d.problem.id for d in school.demonstrations(0, 10_000)}
    assert len(held_out) > 50
    assert len(trained) > 500
    assert not held_out & trained


def test_held_out_questions_are_never_trained_on() -> None:
    school = School.open()
    held_out = {p.messages for p in school.eval_problems()}
    assert not held_out & {d.problem.messages for d in school.demonstrations(1, 20_000)}


def test_easy_eval_problems_are_not_trained_on_at_higher_difficulty() -> None:
    small = {p.id for p in School.open("addition", digits="2").eval_problems()}
    assert not small & {p.id for p in School.open("addition", digits="2-3").train_problems(0, 20_000)}


# ---- verdicts


@pytest.mark.parametrize("name", NAMES)
def test_references_are_correct_and_others_wrong(name: str) -> None:
    school = School.open(name)
    for problem in school.eval_problems() + school.train_problems(0, 100):
        assert school.grade(problem, boxed(problem.reference)).reward == 1.0
        assert school.grade(problem, boxed(school.wrong_answer(problem))).reward == 0.0
        assert school.grade(problem, Completion(f"\\boxed{{{problem.reference}}}", "")).reward == 0.0


@pytest.mark.parametrize("style", [style for style in STYLES if style != "systematic_error"])
def test_every_style_but_one_has_correct_answers(style: str) -> None:
    school = School.open(styles=f"{style}=1")
    for demo in school.demonstrations(0, 1_000):
        assert demo.answer == f"\\boxed{{{demo.problem.reference}}}"
        assert school.grade(demo.problem, Completion(demo.thought, demo.answer)).reward == 1.0
        assert (demo.thought == "") == (style == "no_cot")


def test_any_correct_expression_counts_in_countdown() -> None:
    school = School.open("countdown")
    problem = Problem("x", (), "3*5+8", "countdown", "school", {"numbers": (3, 5, 8), "target": 23})
    assert school.grade(problem, boxed("8+(5*3)")).reward == 1.0
    assert school.grade(problem, boxed("23")).reward == 0.0


@pytest.mark.parametrize("name", ["", *FAMILIES])
def test_the_school_passes_its_audit(name: str) -> None:
    audit = audit_task(School.open(name), 100)
    assert audit.passed, str(audit)
    assert audit.num_problems == 100 or name == "facts"


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
        ("", {"styles": "no_cot=0,full=0"}, "all weights of styles `no_cot=0,full=0` are 0"),
    ],
)
def test_wrong_options_are_named(families: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SchoolError, match=message):
        School.open(families, **options)


def test_a_difficulty_may_be_a_range() -> None:
    lengths = {len(str(p.id).partition("+")[2]) for p in School.open("addition", digits="2-4").train_problems(0, 200)}
    assert lengths == {2, 3, 4}


def test_a_spec_opens_the_school() -> None:
    assert open_task("school:addition+chain?digits=3", seed=5).train_problems(0, 20) == School.open(
        "addition+chain", 5, digits="3"
    ).train_problems(0, 20)


def test_its_name_lists_the_families() -> None:
    assert School.open().name == "school"
    assert School.open("addition+chain").name == "school:addition+chain"


def test_training_problems_are_never_held_out() -> None:
    assert not [p.id for p in School.open().train_problems(0, 5_000) if is_held_out(p.id.removeprefix("school:"))]


def test_second_attempts_follow_a_first_one_and_a_request_and_are_correct():
    task = School.open("chain", 0, revision_percent="100", styles="full=100")
    first_correct = [d.problem.messages[1].content == d.answer for d in task.demonstrations(0, 200)]
    assert all(d.problem.messages[2].content == REVISION_REQUEST for d in task.demonstrations(0, 20))
    assert 60 < sum(first_correct) < 140  # every other first attempt is correct
    assert all(
        answer_match(Completion(None, d.answer), d.problem.reference).reward == 1.0 for d in task.demonstrations(0, 20)
    )


def test_a_corrupt_solution_is_carried_on_to_its_answer():
    task = School.open("chain", 0, revision_percent="100", styles="full=100")
    wrong = [d for d in task.demonstrations(0, 50) if d.problem.messages[1].content != d.answer]
    assert wrong
    for demo in wrong:
        first = demo.problem.messages[1]
        assert first.thought
        assert first.thought[-1] == first.content[-2]


def test_a_revision_percent_of_zero_is_the_default():
    assert School.open("chain", 0).demonstrations(0, 5) == School.open("chain", 0, revision_percent="0").demonstrations(
        0, 5
    )


def test_thoughts_in_toy_languages():
    latin = School.open("chain", 0, styles="full=100", languages="latin=100").demonstrations(0, 20)
    mixed = School.open("chain", 0, styles="full=100", languages="mixed=100").demonstrations(0, 20)
    assert all(script_share(d.thought or "", "latin") == 1.0 for d in latin)
    assert 0.3 < sum(script_share(d.thought or "", "latin") for d in mixed) / 20 < 0.7


def test_an_unknown_language_gets_a_suggestion():
    with pytest.raises(SchoolError, match="did you mean `latin`"):
        School.open("chain", 0, languages="latn=1")


def test_steps_may_be_lines():
    plain, lines = (School.open("chain", 0, revision_percent="50", **more) for more in ({}, {"lines": "1"}))
    assert (plain.delimiter, lines.delimiter) == (" ", "\n")
    for one, other in zip(plain.demonstrations(0, 30), lines.demonstrations(0, 30), strict=True):
        assert other.thought == (one.thought or "").replace(" ", "\n")
        earlier = [m.thought or "" for m in one.problem.messages]
        assert [m.thought or "" for m in other.problem.messages] == [t.replace(" ", "\n") for t in earlier]
    with pytest.raises(SchoolError, match="`lines` is `2`"):
        School.open("chain", 0, lines="2")


# --- steps, one by one


def test_steps_are_labelled_up_to_the_first_wrong_one() -> None:
    school = School.open("chain", steps="3")
    problem = school.eval_problems(1)[0]
    correct = CHAIN.steps(cast(Chain, problem.info["instance"]), Random(0))
    assert school.step_labels(problem, correct) == [1, 1, 1]
    assert school.step_labels(problem, [correct[0], "1+1=3", correct[2]]) == [1, -1, -1]
    assert school.step_labels(problem, [*correct, "1+1=2"]) == [1, 1, 1, -1]
    assert school.step_labels(problem, ["well", correct[0], "so", "1+1=3", "then"]) == [0, 1, 0, -1, -1]
    assert school.step_labels(problem, []) == []


def test_steps_of_a_family_with_many_solutions_cannot_be_checked() -> None:
    school = School.open("countdown")
    with pytest.raises(SchoolError, match="cannot check single steps"):
        School.open("chain").step_labels(school.make_problem("1 + 1?"), ["1+1=2"])
    with pytest.raises(SchoolError, match="cannot check single steps; set `labels` to soft"):
        school.step_labels(school.eval_problems(1)[0], ["3+5=8"])
