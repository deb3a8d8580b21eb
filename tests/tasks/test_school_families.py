"""The lessons: every family's arithmetic, its hands, and a textbook that gives no exam away."""

import re
from collections import Counter
from random import Random
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.tasks.school.addition import columns
from schoolhouse.tasks.school.chain import OPERATIONS, apply, misconception
from schoolhouse.tasks.school.compare import comparison, larger, pair_key
from schoolhouse.tasks.school.countdown import accepts, evaluate, expression, goal_key
from schoolhouse.tasks.school.facts import fact_key
from schoolhouse.tasks.school.family import FILLER_WORDS, Family, held_out, sum_key
from schoolhouse.tasks.school.letters import count_key, invented_word, tally
from schoolhouse.tasks.school.longhand import moves
from schoolhouse.tasks.school.pretraining_text import page, person
from schoolhouse.tasks.school.shopping import purchase_key
from schoolhouse.tasks.school.task import CURRICULUM, FAMILIES
from schoolhouse.tasks.school.vocabulary import NUMBER_WORDS

EVERY = list(FAMILIES.values())
ALL_NAMES = frozenset(CURRICULUM)


def instances(family: Family[Any], size: int, **dials: int) -> list[Any]:
    random = Random(7)
    setting = {name: dial.default for name, dial in family.dials.items()} | dials
    return [family.make(random, setting) for _ in range(size)]


# ---- worked steps


STEP = re.compile(r"(\d+)([-+*/])(\d+)(\+1)?=(\d+)(,.*)?")


def value(step: str, modulo: bool = False) -> tuple[int, int]:
    """What the left side of a step is worth, and what stands on its right side."""
    found = STEP.fullmatch(step)
    assert found, f"not a step: {step}"
    a, b = int(found[1]), int(found[3])
    if found[2] == "/":
        assert a % b == 0
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else None}[found[2]]
    assert result is not None
    result += bool(found[4])
    return result % 10 if modulo else result, int(found[5])


@pytest.mark.parametrize("name", ["addition", "chain", "shopping", "facts", "countdown"])
@pytest.mark.parametrize("hand", ["full", "self_check"])
def test_every_step_of_a_thought_is_right(name: str, hand: Any) -> None:
    family = FAMILIES[name]
    for instance in instances(family, 300):
        thought = family.work(instance, hand, Random(1))
        for step in thought.split():
            if step not in ("check", "again"):
                expected, stated = value(step, modulo=name == "chain")
                assert expected == stated, (step, thought)


@pytest.mark.parametrize("name", ["chain", "shopping", "facts"])
def test_full_steps_end_with_the_answer(name: str) -> None:
    family = FAMILIES[name]
    for instance in instances(family, 200):
        assert family.work(instance, "full", Random(1)).rpartition("=")[2] == family.answer(instance)


def test_a_sum_is_worked_column_by_column() -> None:
    assert " ".join(columns(3847, 2965)) == "7+5=12,2c1 4+6+1=11,1c1 8+9+1=18,8c1 3+2+1=6,6"
    assert columns(99, 1) == ["9+1=10,0c1", "9+0+1=10,10"]


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_what_the_columns_write_down_is_the_sum(a: int, b: int) -> None:
    written = [step.rpartition(",")[2] for step in columns(a, b)]
    assert "".join(reversed([text.partition("c")[0] for text in written])) == str(a + b)


def test_letters_are_tallied() -> None:
    assert " ".join(tally("strawberry", "r")) == "s0 t0 r1 a1 w1 b1 e1 r2 r3 y3"


def test_decimals_are_compared_digit_by_digit() -> None:
    assert comparison(("9.11", "9.9")) == ["9.11 9.90", "9=9", "1<9"]
    assert comparison(("10.5", "9.75")) == ["10.50 9.75", "10>9"]


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_the_larger_decimal_is_the_larger_number(a: int, b: int, places: int, others: int) -> None:
    first, second = f"{a / 10**places:.{places}f}", f"{b / 10**others:.{others}f}"
    if float(first) != float(second):
        assert float(larger((first, second))) == max(float(first), float(second))


# ---- hands


def test_a_mended_thought_goes_wrong_to_its_end_and_is_done_again() -> None:
    chain = FAMILIES["chain"]
    for instance in instances(chain, 50, steps=4):
        before, _, after = chain.work(instance, "self_correct", Random(3)).partition(" check ")
        assert after.split() == chain.steps(instance, Random(0))
        assert len(before.split()) == 4
        assert before.split()[-1].rpartition("=")[2] != chain.answer(instance)
    letters = FAMILIES["letters"]
    (instance,) = instances(letters, 1, length=5)
    assert letters.work(instance, "self_correct", Random(3)) == letters.work(instance, "self_check", Random(3))


def test_the_hand_that_errs_makes_the_same_mistakes_again_and_again():
    chain = FAMILIES["chain"]
    facts = {(value, operation) for value in range(10) for operation in OPERATIONS}
    odds = Counter(misconception(*fact)[1] for fact in facts)
    assert len(odds) == 3
    assert odds[0.0] > len(facts) / 2
    for start, operation in facts:
        believed, often = misconception(start, operation)
        right = apply(start, operation)
        assert believed != right
        said = Counter(chain.solve((start, (operation,)), "systematic_error", Random(i))[1] for i in range(100))
        assert set(said) <= {str(believed), str(right)}
        assert said[str(believed)] / 100 == pytest.approx(often, abs=0.2)


def test_an_error_is_carried_on_to_the_answer():
    chain = FAMILIES["chain"]
    for instance in instances(chain, 100, steps=6):
        thought, answer = chain.solve(instance, "systematic_error", Random(4))
        steps = [step.partition("=") for step in thought.split()]
        assert [left[0] for left, _, _ in steps[1:]] == [right for _, _, right in steps[:-1]]
        assert steps[-1][2] == answer


def test_a_family_without_usual_mistakes_errs_nowhere():
    letters = FAMILIES["letters"]
    for instance in instances(letters, 20):
        assert letters.solve(instance, "systematic_error", Random(0)) == letters.solve(instance, "full", Random(0))


def test_rambling_leads_nowhere_and_takes_now_long_now_short() -> None:
    chain = FAMILIES["chain"]
    said = [
        chain.work(instance, "filler", Random(i)).split() for i, instance in enumerate(instances(chain, 300, steps=4))
    ]
    assert {word for words in said for word in words} == set(FILLER_WORDS)
    assert fmean(map(len, said)) == pytest.approx(10, abs=1.5)
    assert min(map(len, said)) == 1
    assert 30 < max(map(len, said)) <= 60


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
def test_hands_differ_as_their_names_say(family: Family[Any]) -> None:
    for instance in instances(family, 100):
        bare, partial, full, check, repair = (
            family.work(instance, hand, Random(5))
            for hand in ("no_cot", "partial", "full", "self_check", "step_repair")
        )
        assert bare == ""
        assert partial
        assert len(partial) < len(full)
        assert " check " not in full
        assert " no " not in full
        assert check.startswith(full + " check ")
        assert len(check) > len(full) + 8
        wrong, _, right = repair.partition(" no ")
        assert wrong
        assert right


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
def test_a_repair_is_a_wrong_step_and_the_full_way(family: Family[Any]) -> None:
    for instance in instances(family, 100):
        for seed in range(3):
            full = family.work(instance, "full", Random(seed)).split(" ")
            words = family.work(instance, "step_repair", Random(seed)).split(" ")
            at = words.index("no")
            size = len(words) - len(full) - 1  # words of the wrong step
            assert words[: at - size] + words[at + 1 :] == full
            assert words[at - size : at] != words[at + 1 : at + 1 + size]


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
def test_partial_work_is_the_beginning_of_the_full_way(family: Family[Any]) -> None:
    for instance in instances(family, 100):
        partial, full = (family.work(instance, hand, Random(2)) for hand in ("partial", "full"))
        assert full.startswith(partial)
        assert partial != full


# ---- keys and dials


def test_the_order_of_equals_does_not_make_another_instance() -> None:
    assert sum_key(2, 30) == sum_key(30, 2)
    assert fact_key(("*", 3, 8)) == fact_key(("*", 8, 3))
    assert fact_key(("-", 8, 3)) != fact_key(("-", 9, 3))
    assert pair_key(("9.9", "9.11")) == pair_key(("9.11", "9.9"))
    assert goal_key((5, 3, 8), 23) == goal_key((8, 5, 3), 23)


def test_the_same_sum_has_one_key_in_every_family() -> None:
    assert fact_key(("+", 7, 5)) == FAMILIES["addition"].key((5, 7))


def test_one_instance_in_ten_is_held_out() -> None:
    share = sum(held_out(sum_key(a, 0)) for a in range(10_000)) / 10_000
    assert 0.08 < share < 0.12


@pytest.mark.parametrize(
    ("name", "dial", "low", "high"),
    [
        ("addition", "digits", 2, 8),
        ("chain", "steps", 2, 9),
        ("shopping", "top", 3, 20),
        ("letters", "length", 4, 12),
        ("compare", "decimals", 1, 6),
        ("countdown", "count", 3, 5),
    ],
)
def test_dials_make_longer_problems(name: str, dial: str, low: int, high: int) -> None:
    family = FAMILIES[name]
    lengths = [
        sum(len(family.work(instance, "full", Random(0))) for instance in instances(family, 100, **{dial: setting}))
        for setting in (low, high)
    ]
    assert lengths[1] > 1.1 * lengths[0]


def test_the_dial_of_facts_bounds_their_numbers() -> None:
    operands = [max(a, b) for operation, a, b in instances(FAMILIES["facts"], 500, operand=5) if operation != "next"]
    assert max(operands) == 5


def test_no_two_families_share_a_dial() -> None:
    dials = [dial for name in CURRICULUM for dial in FAMILIES[name].dials]
    assert len(dials) == len(set(dials))


def test_defaults_are_within_their_dials() -> None:
    for family in EVERY:
        assert all(dial.least <= dial.default <= dial.most for dial in family.dials.values())


@pytest.mark.parametrize("length", [1, 2, 7, 20])
def test_invented_words_have_the_length_asked_for(length: int) -> None:
    words = {invented_word(Random(seed), length) for seed in range(20)}
    assert {len(word) for word in words} == {length}
    assert len(words) > 5 or length < 3


# ---- countdown's judge


INFO = {"numbers": (3, 5, 8), "target": 23}


@pytest.mark.parametrize("answer", ["3*5+8", "8 + 5 * 3", "(3*5)+8", "((8))+(3*5)", r"3 \times 5 + 8", "3×5+8"])
def test_any_right_expression_counts(answer: str) -> None:
    assert accepts(answer, INFO)


@pytest.mark.parametrize(
    "answer",
    [
        "23",
        "3*5+9",
        "3*5+8+0",
        "8+8+8-1",
        "(3*5+8",
        "3*5+8)",
        "3*5+",
        "3 5*8",
        "",
        "+",
        "3**5",
        "3*5+8=24",
        "8/0",
        "__import__('os')",
        "٣*5+8",
        "(" * 5000,
        "9" * 5000,
    ],
)
def test_anything_else_is_wrong_and_never_an_exception(answer: str) -> None:
    assert not accepts(answer, INFO)


def test_what_an_expression_comes_to_may_stand_behind_it() -> None:
    assert accepts("3*5+8=23", INFO)
    assert accepts("$3*5+8$", INFO)


def test_a_number_counts_as_often_as_it_is_given() -> None:
    assert accepts("8+8", {"numbers": (8, 8, 1), "target": 16})
    assert not accepts("8+8", {"numbers": (8, 1, 2), "target": 16})


def test_division_is_exact() -> None:
    assert accepts("8/(1/3)", {"numbers": (8, 1, 3), "target": 24})


@given(
    st.recursive(
        st.integers(0, 99).map(str),
        lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        max_leaves=12,
    )
)
def test_our_parser_agrees_with_python(text: str) -> None:
    assert evaluate(text)[0] == eval(text)


@given(st.text("0123456789+-*/() ", max_size=30))
def test_the_judge_is_total(text: str) -> None:
    assert accepts(text, INFO) in (True, False)


@given(st.lists(st.integers(1, 9), min_size=3, max_size=5), st.data())
def test_an_expression_is_worth_what_its_walk_from_left_to_right_is(order: list[int], data: st.DataObject) -> None:
    signs = data.draw(st.lists(st.sampled_from("+-*"), min_size=len(order) - 1, max_size=len(order) - 1))
    value = order[0]
    for sign, number in zip(signs, order[1:], strict=True):
        value = {"+": value + number, "-": value - number, "*": value * number}[sign]
    assert evaluate(expression(tuple(order), tuple(signs))) == (value, order)


# ---- the textbook


PAGES = [page(Random(i), ALL_NAMES, seed=0) for i in range(1500)]
TEXT = "\n".join(PAGES)
WORD_VALUE: dict[str, int] = {word: i for i, word in enumerate(NUMBER_WORDS)}


def number(word: str) -> int:
    return int(word) if word.isdigit() else WORD_VALUE[word.lower()]


def test_pages_have_the_length_of_a_page() -> None:
    assert all(55 <= len(text.split()) <= 210 for text in PAGES)


def test_a_page_never_asks() -> None:
    assert "?" not in TEXT


def told(pattern: str) -> list[Any]:
    """The groups of a pattern wherever the pages hold it; a form that is never used would test nothing."""
    found = re.findall(pattern, TEXT)
    assert len(found) > 20, pattern
    return found


def test_no_held_out_sum_is_told() -> None:
    pairs = [(number(a), number(b)) for a, b in told(r"(\w+) and (\w+) make \w+\.")]
    pairs += [(number(a), number(b)) for a, b in told(r"(\w+) plus (\w+) is \w+\.")]
    pairs += [(number(a), number(b)) for b, a in told(r"[Aa]dd (\w+) to (\w+) and you have")]
    pairs += [(int(a), int(b)) for a, b in told(r"(\d+) and (\d+): .*?, so together")]
    pairs += [(int(a), int(b)) for a, b in told(r"(?:Now \w+ has|they paint) (\d+)\+(\d+)")]
    assert not [pair for pair in pairs if held_out(sum_key(*pair))]


def test_no_sum_of_large_numbers_is_a_step() -> None:
    assert not re.search(r"\d\d\+\d\d", TEXT)


def test_pieces_of_long_sums_have_at_most_two_columns() -> None:
    pages = [page(Random(i), frozenset({"longhand"}), 0) for i in range(60)]
    pieces = [line for text in pages if "long sum" in text for line in text.split(". ") if "," in line and "+" in line]
    columns = [len(re.findall(r"\d\+\d(?:\+1)?=\d+,", piece)) for piece in pieces]
    assert {1, 2} == set(columns)


# ---- longhand


def test_longhand_writes_out_what_is_left() -> None:
    assert moves(624, 259) == ["624+259 4+9=13,3", "62+25+1 2+5+1=8,83", "6+2 6+2=8,883"]
    assert moves(5, 9) == ["5+9 5+9=14,14"]


@pytest.mark.parametrize("digits", [1, 3, 9])
def test_longhand_ends_in_the_sum(digits: int) -> None:
    pairs = instances(FAMILIES["longhand"], 50, digits=digits)
    assert [moves(a, b)[-1].rpartition(",")[2] for a, b in pairs] == [str(a + b) for a, b in pairs]


def test_no_held_out_difference_product_or_successor_is_told() -> None:
    facts = [("-", number(a), number(b)) for a, b in told(r"(\w+) (?:minus|take away) (\w+) (?:is|leaves)")]
    facts += [("-", int(a), int(b)) for a, b in told(r"away, and (\d+)-(\d+)=")]
    facts += [("*", number(a), number(b)) for a, b in told(r"(\w+) times (\w+) (?:is|makes) \w+\.")]
    facts += [("next", int(a), 1) for a in told(r"(?:After|number after) (\d+) (?:comes|is)")]
    facts += [("next", int(a), 1) for a in told(r"Before \d+ stands (\d+)")]
    assert not [fact for fact in facts if held_out(fact_key(fact))]


def test_no_held_out_pair_of_decimals_is_told() -> None:
    pairs = told(r"([\d.]+) is (?:larger|smaller|more) than ([\d.]+):")
    assert not [pair for pair in pairs if held_out(pair_key(pair))]


def test_no_held_out_letter_is_counted() -> None:
    assert not [1 for letter, word in told(r"We count (\w) in (\w+):") if held_out(count_key((word, letter)))]


def test_no_held_out_target_is_reached() -> None:
    goals = told(r"(\d), (\d), (\d) make (\d+):")
    assert not [1 for a, b, c, target in goals if held_out(goal_key((int(a), int(b), int(c)), int(target)))]


def test_no_held_out_purchase_is_told() -> None:
    bought = told(r"buys (\d+) \w+ and (\d+) \w+ for .*? at \$(\d+) each .*? costs \d+/\d+=(\d+)\.")
    purchases = [(int(n), int(m), int(p), int(q)) for n, m, q, p in bought]
    sold = told(r"at \$(\d+) and \w+ at \$(\d+)\. (\d+) \w+ cost [^ ]+ and (\d+) ")
    purchases += [(int(n), int(m), int(p), int(q)) for p, q, n, m in sold]
    assert not [one for one in purchases if held_out(purchase_key(one))]
    assert not [one for n, m, p, q in purchases if held_out(purchase_key(one := (m, n, q, p)))]


def test_every_step_in_the_textbook_is_right() -> None:
    text = "\n".join(
        each for each in PAGES if "the hand is" not in each and "clock" not in each and "borrow" not in each
    )
    steps = [each.rstrip(".:,;") for each in text.split() if STEP.fullmatch(each.rstrip(".:,;"))]
    assert len(steps) > 1000
    assert not [step for step in steps if len(set(value(step))) > 1]


def test_pages_go_with_the_families() -> None:
    pages = [page(Random(i), frozenset({"letters"}), seed=0) for i in range(100)]
    assert any("is spelt" in text for text in pages)
    assert not any("times" in text or "carry" in text for text in pages)


def test_people_stay_the_same_for_a_seed() -> None:
    homes: dict[str, set[str]] = {}
    for name, town in told(r"(\w+ \w+) lives in (\w+)\."):
        homes.setdefault(name, set()).add(town)
    assert all(len(towns) == 1 for towns in homes.values())
    assert [person(0, i) for i in range(20)] != [person(1, i) for i in range(20)]


# ---- columns of long sums


def test_columns_follow_one_another_and_are_never_a_whole_sum():
    column, counts = FAMILIES["column"], Counter()
    for asked in instances(column, 500, each=5):
        whole, question = moves(asked.a, asked.b), column.ask(asked, Random(0))
        steps = column.steps(asked, Random(0))
        assert steps == whole[asked.at : asked.end]
        assert 1 <= len(steps) <= min(4, len(whole) - 1)
        assert asked.at == 0 or whole[asked.at - 1] in question
        assert asked.way != "rest" or asked.end == len(whole)
        assert question.endswith(f"({column.answer(asked)})") == (asked.way == "until")
        counts[asked.way, len(steps)] += 1
    assert set(counts) == {("next", 1), *((way, n) for way in ("until", "rest") for n in range(1, 5))}


# ---- nothing that an exam asks for is shown elsewhere


def test_no_try_of_a_countdown_hits_what_an_exam_asks_for():
    countdown = FAMILIES["countdown"]
    for asked in instances(countdown, 2_000, count=3):
        if held_out(countdown.key(asked)):
            continue
        shown = " ".join(countdown.steps(asked, Random(0))).split(" again")
        ends = [int(each.rpartition("=")[2]) for each in shown[:-1]]
        assert not any(held_out(goal_key(asked.numbers, end)) for end in ends)


def test_a_purchase_and_its_other_price_are_held_out_together():
    shopping = FAMILIES["shopping"]
    for n, m, p, q in instances(shopping, 300):
        assert shopping.key((n, m, p, q)) == shopping.key((m, n, q, p))


def test_columns_are_of_no_sum_that_an_exam_asks_for():
    assert not any(held_out(sum_key(asked.a, asked.b)) for asked in instances(FAMILIES["column"], 1_000, each=3))
