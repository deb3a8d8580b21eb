"""The families of the school: their arithmetic, their styles, and text without held-out instances."""

import re
from collections import Counter
from random import Random
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.tasks.school.addition import column_steps
from schoolhouse.tasks.school.chain import OPERATIONS, apply_operation, misconception
from schoolhouse.tasks.school.compare import comparison_steps, larger_number, pair_key
from schoolhouse.tasks.school.countdown import accepts, evaluate_expression, left_to_right_expression, puzzle_key
from schoolhouse.tasks.school.facts import fact_key
from schoolhouse.tasks.school.family import FILLER_WORDS, Family, is_held_out, sum_key
from schoolhouse.tasks.school.letters import count_key, invented_word, tally
from schoolhouse.tasks.school.longhand import longhand_steps
from schoolhouse.tasks.school.pretraining_text import page, person
from schoolhouse.tasks.school.shopping import purchase_key
from schoolhouse.tasks.school.task import DEFAULT_FAMILIES, FAMILIES
from schoolhouse.tasks.school.vocabulary import NUMBER_WORDS

EVERY = list(FAMILIES.values())
ALL_NAMES = frozenset(DEFAULT_FAMILIES)


def instances(family: Family[Any], size: int, **difficulty: int) -> list[Any]:
    random = Random(7)
    values = {name: option.default for name, option in family.difficulty.items()} | difficulty
    return [family.sample(random, values) for _ in range(size)]


# ---- steps


STEP = re.compile(r"(\d+)([-+*/])(\d+)(\+1)?=(\d+)(,.*)?")


def value(step: str, modulo: bool = False) -> tuple[int, int]:
    """The value of the left side of a step, and the result on its right side."""
    match = STEP.fullmatch(step)
    assert match, f"not a step: {step}"
    a, b = int(match[1]), int(match[3])
    if match[2] == "/":
        assert a % b == 0
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else None}[match[2]]
    assert result is not None
    result += bool(match[4])
    return result % 10 if modulo else result, int(match[5])


@pytest.mark.parametrize("name", ["addition", "chain", "shopping", "facts", "countdown"])
@pytest.mark.parametrize("style", ["full", "self_check"])
def test_every_step_of_a_thought_is_correct(name: str, style: Any) -> None:
    family = FAMILIES[name]
    for instance in instances(family, 300):
        thought = family.thought(instance, style, Random(1))
        for step in thought.split():
            if step not in ("check", "again"):
                expected, stated = value(step, modulo=name == "chain")
                assert expected == stated, (step, thought)


@pytest.mark.parametrize("name", ["chain", "shopping", "facts"])
def test_full_steps_end_with_the_answer(name: str) -> None:
    family = FAMILIES[name]
    for instance in instances(family, 200):
        assert family.thought(instance, "full", Random(1)).rpartition("=")[2] == family.answer(instance)


def test_a_sum_is_added_column_by_column() -> None:
    assert " ".join(column_steps(3847, 2965)) == "7+5=12,2c1 4+6+1=11,1c1 8+9+1=18,8c1 3+2+1=6,6"
    assert column_steps(99, 1) == ["9+1=10,0c1", "9+0+1=10,10"]


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_the_digits_of_all_columns_are_the_sum(a: int, b: int) -> None:
    digits = [step.rpartition(",")[2] for step in column_steps(a, b)]
    assert "".join(reversed([text.partition("c")[0] for text in digits])) == str(a + b)


def test_letters_are_tallied() -> None:
    assert " ".join(tally("strawberry", "r")) == "s0 t0 r1 a1 w1 b1 e1 r2 r3 y3"


def test_decimals_are_compared_digit_by_digit() -> None:
    assert comparison_steps(("9.11", "9.9")) == ["9.11 9.90", "9=9", "1<9"]
    assert comparison_steps(("10.5", "9.75")) == ["10.50 9.75", "10>9"]


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_the_larger_decimal_is_the_larger_number(a: int, b: int, places: int, others: int) -> None:
    first, second = f"{a / 10**places:.{places}f}", f"{b / 10**others:.{others}f}"
    if float(first) != float(second):
        assert float(larger_number((first, second))) == max(float(first), float(second))


# ---- styles


def test_self_correction_is_a_wrong_solution_and_then_the_correct_one() -> None:
    chain = FAMILIES["chain"]
    for instance in instances(chain, 50, steps=4):
        before, _, after = chain.thought(instance, "self_correct", Random(3)).partition(" check ")
        assert after.split() == chain.steps(instance, Random(0))
        assert len(before.split()) == 4
        assert before.split()[-1].rpartition("=")[2] != chain.answer(instance)
    letters = FAMILIES["letters"]
    (instance,) = instances(letters, 1, length=5)
    assert letters.thought(instance, "self_correct", Random(3)) == letters.thought(instance, "self_check", Random(3))


def test_systematic_errors_recur():
    chain = FAMILIES["chain"]
    facts = {(value, operation) for value in range(10) for operation in OPERATIONS}
    probabilities = Counter(misconception(*fact)[1] for fact in facts)
    assert len(probabilities) == 3
    assert probabilities[0.0] > len(facts) / 2
    for start, operation in facts:
        wrong, probability = misconception(start, operation)
        correct = apply_operation(start, operation)
        assert wrong != correct
        answers = Counter(chain.solve((start, (operation,)), "systematic_error", Random(i))[1] for i in range(100))
        assert set(answers) <= {str(wrong), str(correct)}
        assert answers[str(wrong)] / 100 == pytest.approx(probability, abs=0.2)


def test_a_systematic_error_is_carried_on_to_the_answer():
    chain = FAMILIES["chain"]
    for instance in instances(chain, 100, steps=6):
        thought, answer = chain.solve(instance, "systematic_error", Random(4))
        steps = [step.partition("=") for step in thought.split()]
        assert [left[0] for left, _, _ in steps[1:]] == [right for _, _, right in steps[:-1]]
        assert steps[-1][2] == answer


def test_a_family_without_systematic_errors_uses_full():
    letters = FAMILIES["letters"]
    for instance in instances(letters, 20):
        assert letters.solve(instance, "systematic_error", Random(0)) == letters.solve(instance, "full", Random(0))


def test_filler_has_no_steps_and_many_lengths() -> None:
    chain = FAMILIES["chain"]
    thoughts = [
        chain.thought(instance, "filler", Random(i)).split()
        for i, instance in enumerate(instances(chain, 300, steps=4))
    ]
    assert {word for words in thoughts for word in words} == set(FILLER_WORDS)
    assert fmean(map(len, thoughts)) == pytest.approx(10, abs=1.5)
    assert min(map(len, thoughts)) == 1
    assert 30 < max(map(len, thoughts)) <= 60


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
def test_styles_differ_as_their_names_say(family: Family[Any]) -> None:
    for instance in instances(family, 100):
        no_cot, partial, full, self_check, step_repair = (
            family.thought(instance, style, Random(5))
            for style in ("no_cot", "partial", "full", "self_check", "step_repair")
        )
        assert no_cot == ""
        assert partial
        assert len(partial) < len(full)
        assert " check " not in full
        assert " no " not in full
        assert self_check.startswith(full + " check ")
        assert len(self_check) > len(full) + 8
        before, _, after = step_repair.partition(" no ")
        assert before
        assert after


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
def test_step_repair_is_the_full_solution_with_one_wrong_step(family: Family[Any]) -> None:
    for instance in instances(family, 100):
        for seed in range(3):
            full = family.thought(instance, "full", Random(seed)).split(" ")
            words = family.thought(instance, "step_repair", Random(seed)).split(" ")
            at = words.index("no")
            size = len(words) - len(full) - 1  # words of the wrong step
            assert words[: at - size] + words[at + 1 :] == full
            assert words[at - size : at] != words[at + 1 : at + 1 + size]


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
def test_partial_is_the_beginning_of_full(family: Family[Any]) -> None:
    for instance in instances(family, 100):
        partial, full = (family.thought(instance, style, Random(2)) for style in ("partial", "full"))
        assert full.startswith(partial)
        assert partial != full


# ---- keys and difficulty


def test_a_key_ignores_the_order_of_operands() -> None:
    assert sum_key(2, 30) == sum_key(30, 2)
    assert fact_key(("*", 3, 8)) == fact_key(("*", 8, 3))
    assert fact_key(("-", 8, 3)) != fact_key(("-", 9, 3))
    assert pair_key(("9.9", "9.11")) == pair_key(("9.11", "9.9"))
    assert puzzle_key((5, 3, 8), 23) == puzzle_key((8, 5, 3), 23)


def test_the_same_sum_has_one_key_in_every_family() -> None:
    assert fact_key(("+", 7, 5)) == FAMILIES["addition"].key((5, 7))


def test_one_instance_in_ten_is_held_out() -> None:
    share = sum(is_held_out(sum_key(a, 0)) for a in range(10_000)) / 10_000
    assert 0.08 < share < 0.12


@pytest.mark.parametrize(
    ("name", "option", "low", "high"),
    [
        ("addition", "digits", 2, 8),
        ("chain", "steps", 2, 9),
        ("shopping", "top", 3, 20),
        ("letters", "length", 4, 12),
        ("compare", "decimals", 1, 6),
        ("countdown", "count", 3, 5),
    ],
)
def test_difficulty_makes_longer_thoughts(name: str, option: str, low: int, high: int) -> None:
    family = FAMILIES[name]
    lengths = [
        sum(len(family.thought(instance, "full", Random(0))) for instance in instances(family, 100, **{option: value}))
        for value in (low, high)
    ]
    assert lengths[1] > 1.1 * lengths[0]


def test_the_difficulty_of_facts_bounds_their_numbers() -> None:
    operands = [max(a, b) for operation, a, b in instances(FAMILIES["facts"], 500, operand=5) if operation != "next"]
    assert max(operands) == 5


def test_no_two_families_share_a_difficulty_option() -> None:
    options = [option for name in DEFAULT_FAMILIES for option in FAMILIES[name].difficulty]
    assert len(options) == len(set(options))


def test_default_difficulties_are_within_their_limits() -> None:
    for family in EVERY:
        assert all(option.minimum <= option.default <= option.maximum for option in family.difficulty.values())


@pytest.mark.parametrize("length", [1, 2, 7, 20])
def test_invented_words_have_the_requested_length(length: int) -> None:
    words = {invented_word(Random(seed), length) for seed in range(20)}
    assert {len(word) for word in words} == {length}
    assert len(words) > 5 or length < 3


# ---- grading of countdown


INFO = {"numbers": (3, 5, 8), "target": 23}


@pytest.mark.parametrize("answer", ["3*5+8", "8 + 5 * 3", "(3*5)+8", "((8))+(3*5)", r"3 \times 5 + 8", "3×5+8"])
def test_any_correct_expression_counts(answer: str) -> None:
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


def test_an_expression_may_be_followed_by_its_value() -> None:
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
def test_the_parser_agrees_with_python(text: str) -> None:
    assert evaluate_expression(text)[0] == eval(text)


@given(st.text("0123456789+-*/() ", max_size=30))
def test_any_text_is_graded(text: str) -> None:
    assert accepts(text, INFO) in (True, False)


@given(st.lists(st.integers(1, 9), min_size=3, max_size=5), st.data())
def test_an_expression_has_the_value_of_its_steps_from_left_to_right(order: list[int], data: st.DataObject) -> None:
    signs = data.draw(st.lists(st.sampled_from("+-*"), min_size=len(order) - 1, max_size=len(order) - 1))
    value = order[0]
    for sign, number in zip(signs, order[1:], strict=True):
        value = {"+": value + number, "-": value - number, "*": value * number}[sign]
    assert evaluate_expression(left_to_right_expression(tuple(order), tuple(signs))) == (value, order)


# ---- pretraining text


PAGES = [page(Random(i), ALL_NAMES, seed=0) for i in range(1500)]
TEXT = "\n".join(PAGES)
WORD_VALUE: dict[str, int] = {word: i for i, word in enumerate(NUMBER_WORDS)}


def number(word: str) -> int:
    return int(word) if word.isdigit() else WORD_VALUE[word.lower()]


def test_pages_have_a_bounded_length() -> None:
    assert all(55 <= len(text.split()) <= 210 for text in PAGES)


def test_a_page_has_no_questions() -> None:
    assert "?" not in TEXT


def matches(pattern: str) -> list[Any]:
    """The groups of all matches of a pattern in the pages. A pattern without matches would test nothing."""
    groups = re.findall(pattern, TEXT)
    assert len(groups) > 20, pattern
    return groups


def test_pages_have_no_held_out_sum() -> None:
    pairs = [(number(a), number(b)) for a, b in matches(r"(\w+) and (\w+) make \w+\.")]
    pairs += [(number(a), number(b)) for a, b in matches(r"(\w+) plus (\w+) is \w+\.")]
    pairs += [(number(a), number(b)) for b, a in matches(r"[Aa]dd (\w+) to (\w+) and you have")]
    pairs += [(int(a), int(b)) for a, b in matches(r"(\d+) and (\d+): .*?, so together")]
    pairs += [(int(a), int(b)) for a, b in matches(r"(?:Now \w+ has|they paint) (\d+)\+(\d+)")]
    assert not [pair for pair in pairs if is_held_out(sum_key(*pair))]


def test_pages_have_no_step_with_a_sum_of_large_numbers() -> None:
    assert not re.search(r"\d\d\+\d\d", TEXT)


def test_pieces_of_long_sums_have_at_most_two_columns() -> None:
    pages = [page(Random(i), frozenset({"longhand"}), 0) for i in range(60)]
    pieces = [line for text in pages if "long sum" in text for line in text.split(". ") if "," in line and "+" in line]
    columns = [len(re.findall(r"\d\+\d(?:\+1)?=\d+,", piece)) for piece in pieces]
    assert {1, 2} == set(columns)


# ---- longhand


def test_longhand_steps_list_the_numbers_left() -> None:
    assert longhand_steps(624, 259) == ["624+259 4+9=13,3", "62+25+1 2+5+1=8,83", "6+2 6+2=8,883"]
    assert longhand_steps(5, 9) == ["5+9 5+9=14,14"]


@pytest.mark.parametrize("digits", [1, 3, 9])
def test_longhand_ends_in_the_sum(digits: int) -> None:
    pairs = instances(FAMILIES["longhand"], 50, digits=digits)
    assert [longhand_steps(a, b)[-1].rpartition(",")[2] for a, b in pairs] == [str(a + b) for a, b in pairs]


def test_pages_have_no_held_out_difference_product_or_successor() -> None:
    facts = [("-", number(a), number(b)) for a, b in matches(r"(\w+) (?:minus|take away) (\w+) (?:is|leaves)")]
    facts += [("-", int(a), int(b)) for a, b in matches(r"away, and (\d+)-(\d+)=")]
    facts += [("*", number(a), number(b)) for a, b in matches(r"(\w+) times (\w+) (?:is|makes) \w+\.")]
    facts += [("next", int(a), 1) for a in matches(r"(?:After|number after) (\d+) (?:comes|is)")]
    facts += [("next", int(a), 1) for a in matches(r"Before \d+ stands (\d+)")]
    assert not [fact for fact in facts if is_held_out(fact_key(fact))]


def test_pages_have_no_held_out_pair_of_decimals() -> None:
    pairs = matches(r"([\d.]+) is (?:larger|smaller|more) than ([\d.]+):")
    assert not [pair for pair in pairs if is_held_out(pair_key(pair))]


def test_pages_have_no_held_out_count_of_letters() -> None:
    assert not [1 for letter, word in matches(r"We count (\w) in (\w+):") if is_held_out(count_key((word, letter)))]


def test_pages_have_no_held_out_countdown() -> None:
    puzzles = matches(r"(\d), (\d), (\d) make (\d+):")
    assert not [1 for a, b, c, target in puzzles if is_held_out(puzzle_key((int(a), int(b), int(c)), int(target)))]


def test_pages_have_no_held_out_purchase() -> None:
    bills = matches(r"buys (\d+) \w+ and (\d+) \w+ for .*? at \$(\d+) each .*? costs \d+/\d+=(\d+)\.")
    purchases = [(int(n), int(m), int(p), int(q)) for n, m, q, p in bills]
    offers = matches(r"at \$(\d+) and \w+ at \$(\d+)\. (\d+) \w+ cost [^ ]+ and (\d+) ")
    purchases += [(int(n), int(m), int(p), int(q)) for p, q, n, m in offers]
    assert not [purchase for purchase in purchases if is_held_out(purchase_key(purchase))]
    assert not [1 for n, m, p, q in purchases if is_held_out(purchase_key((m, n, q, p)))]


def test_every_step_in_the_pages_is_correct() -> None:
    text = "\n".join(
        page for page in PAGES if "the hand is" not in page and "clock" not in page and "borrow" not in page
    )
    words = [word.rstrip(".:,;") for word in text.split()]
    steps = [word for word in words if STEP.fullmatch(word)]
    assert len(steps) > 1000
    assert not [step for step in steps if len(set(value(step))) > 1]


def test_pages_fit_the_families() -> None:
    pages = [page(Random(i), frozenset({"letters"}), seed=0) for i in range(100)]
    assert any("is spelt" in text for text in pages)
    assert not any("times" in text or "carry" in text for text in pages)


def test_people_stay_the_same_for_a_seed() -> None:
    homes: dict[str, set[str]] = {}
    for name, town in matches(r"(\w+ \w+) lives in (\w+)\."):
        homes.setdefault(name, set()).add(town)
    assert all(len(towns) == 1 for towns in homes.values())
    assert [person(0, i) for i in range(20)] != [person(1, i) for i in range(20)]


# ---- columns of long sums


def test_columns_follow_one_another_and_are_never_a_whole_sum():
    column, counts = FAMILIES["column"], Counter()
    for columns in instances(column, 500, each=5):
        all_steps, question = longhand_steps(columns.a, columns.b), column.question(columns, Random(0))
        steps = column.steps(columns, Random(0))
        assert steps == all_steps[columns.at : columns.end]
        assert 1 <= len(steps) <= min(4, len(all_steps) - 1)
        assert columns.at == 0 or all_steps[columns.at - 1] in question
        assert columns.kind != "rest" or columns.end == len(all_steps)
        assert question.endswith(f"({column.answer(columns)})") == (columns.kind == "until")
        counts[columns.kind, len(steps)] += 1
    assert set(counts) == {("next", 1), *((kind, n) for kind in ("until", "rest") for n in range(1, 5))}


# ---- no held-out answer appears in training


def test_no_try_of_a_countdown_hits_a_held_out_target():
    countdown, num_tries = FAMILIES["countdown"], 0
    for puzzle in instances(countdown, 2_000, count=3):
        if is_held_out(countdown.key(puzzle)):
            continue
        tries = " ".join(countdown.steps(puzzle, Random(0))).split(" again")
        results = [int(steps.rpartition("=")[2]) for steps in tries[:-1]]
        assert not any(is_held_out(puzzle_key(puzzle.numbers, result)) for result in results)
        num_tries += len(results)
    assert num_tries > 1_000


def test_a_purchase_and_its_other_price_are_held_out_together():
    shopping = FAMILIES["shopping"]
    for n, m, p, q in instances(shopping, 300):
        assert shopping.key((n, m, p, q)) == shopping.key((m, n, q, p))


def test_columns_are_of_no_held_out_sum():
    columns = instances(FAMILIES["column"], 1_000, each=3)
    assert not any(is_held_out(sum_key(one.a, one.b)) for one in columns)
