"""Formulas are read whole or not at all, and compared by value."""

import pytest

from schoolhouse.tasks.answers.evaluate import equal_formulas, nearly_equal, proportional
from schoolhouse.tasks.answers.formula import Tree, ordered, parse_formula, symbols


def tree(text: str) -> Tree:
    found = parse_formula(text)
    assert found is not None, text
    return found


@pytest.mark.parametrize(
    "text",
    ["C6H12O6", "R2D2", "192.168.0.1", "2021-03-04", "0x1F", "7:30", "1101_2", "the answer", r"\angle ABC", "5 or 6",
     r"5 \text{ if } n", "4 5 6", "x^2^3", "(x", "x)", "", "+", r"\frac{1}", "2!!", "x=1", "1,2"],
)  # fmt: skip
def test_what_is_no_formula_is_not_read(text: str) -> None:
    assert parse_formula(text) is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\sin 2x", r"2\sin x\cos x"),
        (r"\cos 25 t-6", r"\cos(25t)-6"),
        (r"\sin^{-1} x", r"\arcsin x"),
        (r"\log_2 8", "3"),
        (r"\frac43x", r"\frac{4x}{3}"),
        ("x^10", "x^{10}"),
        (r"e^{i\pi}", "-1"),
        (r"\sqrt[3]{-8}", "-2"),
        ("|x|", r"\sqrt{x^2}"),
        (r"45^{\circ}", r"\frac{\pi}{4}"),
        (r"\binom{5}{2}", "10"),
        ("(x+1)^2-x^2-2x-1", "0"),
        ("2\\frac{1}{2}", "2.5"),
        ("xy", "yx"),
    ],
)
def test_equal_formulas(a: str, b: str) -> None:
    assert equal_formulas(tree(a), tree(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("4t", "4"),
        ("2k", "2K"),
        ("AB", "BA"),
        (r"\frac{1}{2004!}", r"\frac{1}{2005!}"),
        (r"\sqrt{10^{120}+1}", "10^{60}"),
        (r"\gamma(x-1)", r"\gamma(x-2)"),
        (r"\frac{dy}{dx}", r"\frac{dx}{dy}"),
        ("10^{-60}", "0"),
        (r"\ln(x^2)", r"2\ln x"),
        ("|x|", "x"),
        ("x'", "x"),
        ("x_1", "x_2"),
        (r"\infty", r"-\infty"),
        ("1/0", "2/0"),
        ("10^{10^{10}}", "10^{10^{11}}"),
        (r"\log 2", r"\ln 2"),
    ],
)
def test_different_formulas(a: str, b: str) -> None:
    assert not equal_formulas(tree(a), tree(b))


def test_the_order_of_terms_and_factors_does_not_matter() -> None:
    assert ordered(tree("2x+3")) == ordered(tree("(3+x \\cdot 2)"))


def test_constants_are_no_variables() -> None:
    assert symbols(tree(r"e^{i\pi}x_{1}+\alpha")) == {"x_1", "\\alpha"}


def test_equations_are_compared_by_a_constant_factor() -> None:
    assert proportional(tree("2x-4y"), tree("x-2y")) == 1
    assert proportional(tree("x-2y"), tree("4y-2x")) == -1
    assert proportional(tree("x^2+1"), tree("x^2+5")) is None
    assert proportional(tree("x"), tree("y")) is None
    assert proportional(tree("5"), tree("5")) is None


def test_an_approximation_is_within_a_percent() -> None:
    assert nearly_equal(tree(r"\sqrt{2}"), tree("1.41"))
    assert not nearly_equal(tree(r"\sqrt{2}"), tree("1.5"))
    assert not nearly_equal(tree("x"), tree("x"))
