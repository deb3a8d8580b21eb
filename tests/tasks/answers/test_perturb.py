"""Wrong answers of the kind of a reference."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.tasks.answers.perturb import perturb_answer
from schoolhouse.tasks.answers.strict import parse_number


@given(st.integers() | st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda x: round(x, 3)))
def test_a_perturbed_number_is_another_number(value: float) -> None:
    text = f"{value:,}"
    if parse_number(text) is None:  # 1e-05
        return
    assert parse_number(perturb_answer(text)) not in (None, parse_number(text))


@pytest.mark.parametrize(
    ("reference", "wrong"),
    [("72", "73"), ("1,239", "1,238"), ("1/9", "1/8"), (r"\frac{0}{5}", r"\frac{1}{5}"), ("50%", "51%"), ("yes", "no"),
     ("False", "True"), ("NO", "YES"), ("Paris", "Parit"), ("z", "y"), (r"\pi", r"1+\pi"), ("x+2", "x+3")],
)  # fmt: skip
def test_a_wrong_answer_is_of_the_same_kind(reference: str, wrong: str) -> None:
    assert perturb_answer(reference) == wrong


def test_a_coarsely_wrong_number_is_far_off() -> None:
    assert perturb_answer("-12.345", coarse=True) == "-22.345"
    assert perturb_answer("0.97", coarse=True) == "1.97"
    assert perturb_answer("exp(x) + C", coarse=True) == "fxp(x) + C"
