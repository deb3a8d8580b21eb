r"""References like those of MATH, with changed ones that are wrong, and questions whose formula is no answer.

python tests/math_like.py 10000     grades that many pairs, and prints every false positive
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator

Pair = tuple[str, str]
"""A reference, and a candidate that is wrong."""

PRIMES = (2, 3, 5, 7, 11, 13)


def two(r: random.Random, low: int = 2, high: int = 9) -> tuple[int, int]:
    """Two different numbers."""
    a = r.randint(low, high)
    return a, r.choice([b for b in range(low, high + 1) if b != a])


def integer(r: random.Random) -> Pair:
    a, b = two(r, 10, 9_999)
    return r.choice([(str(a), str(b)), (f"{a}{{,}}{b % 900 + 100}", f"{a}{{,}}{b % 900 + 101}"), (f"-{a}", str(a))])


def decimal(r: random.Random) -> Pair:
    a, b = two(r, 101, 999)
    return f"{a / 100:.2f}", r.choice([f"{b / 100:.2f}", f"{a / 10:.1f}", f"{a / 100:.2f}\\%", str(a)])


def fraction(r: random.Random) -> Pair:
    p, q = r.choice([2, 5]), r.choice([3, 7, 11, 13])
    return f"\\frac{{{p}}}{{{q}}}", r.choice(
        [f"\\frac{{{q}}}{{{p}}}", f"-\\frac{{{p}}}{{{q}}}", f"\\frac{{{3 * p}}}{{{3 * q}}}", f"{p / q:.4f}"]
    )


def radical(r: random.Random) -> Pair:
    p, q = r.sample(PRIMES, 2)
    a, b = two(r)
    return f"{a}\\sqrt{{{p}}}", r.choice(
        [
            f"{b}\\sqrt{{{p}}}",
            f"{a}\\sqrt{{{q}}}",
            f"{a}\\sqrt[3]{{{p}}}",
            f"\\sqrt{{{a * a * p}}}",
            f"{a * p**0.5:.6f}",
            str(a),
        ]
    )


def radical_sum(r: random.Random) -> Pair:
    p, q = r.sample(PRIMES, 2)
    a, b = two(r)
    return f"\\frac{{{a}+\\sqrt{{{p}}}}}{{{q}}}", r.choice(
        [
            f"\\frac{{{a}-\\sqrt{{{p}}}}}{{{q}}}",
            f"\\frac{{{b}+\\sqrt{{{p}}}}}{{{q}}}",
            f"{a}+\\frac{{\\sqrt{{{p}}}}}{{{q}}}",
        ]
    )


def angle(r: random.Random) -> Pair:
    p, q = r.sample(PRIMES, 2)
    return f"\\frac{{{p}\\pi}}{{{q}}}", r.choice(
        [f"\\frac{{{q}\\pi}}{{{p}}}", f"\\frac{{{p}}}{{{q}}}", f"\\frac{{{p}\\pi}}{{{q + 1}}}"]
    )


def polynomial(r: random.Random) -> Pair:
    (a, b), c, x = two(r), r.randint(2, 9), r.choice("xyztnkmsgdhl")
    y = r.choice([v for v in "xyztnkmsgdhl" if v != x])
    return f"{a}{x}^2-{b}{x}+{c}", r.choice(
        [
            f"{b}{x}^2-{b}{x}+{c}",
            f"{a}{x}^2+{b}{x}+{c}",
            f"{a}{x}^3-{b}{x}+{c}",
            f"{a}{x}^2-{b}{x}",
            f"{a}{y}^2-{b}{y}+{c}",
            f"{a}{x.upper()}^2-{b}{x.upper()}+{c}",
            f"{a}{x}^2-{b}+{c}",
            f"{a}{x}^2-{b}{x}+{c}=0",
        ]
    )


def monomial(r: random.Random) -> Pair:
    a, x = r.randint(2, 99), r.choice("abcdghklmnstxyzAPTV")
    return f"{a}{x}", r.choice([str(a), f"{a + 1}{x}", f"{a}{x}^2", f"{a}{x.swapcase()}", x])


def geometry(r: random.Random) -> Pair:
    a, b = two(r)
    return f"{a}\\pi r^2 h", r.choice(
        [f"{a}\\pi r^2", f"{b}\\pi r^2 h", f"{a}\\pi r h^2", f"{a} r^2 h", f"{a}\\pi R^2 h"]
    )


def factors(r: random.Random) -> Pair:
    a, b = two(r)
    return f"(x+{a})(x-{b})", r.choice(
        [f"(x-{a})(x+{b})", f"(x+{a})(x+{b})", f"x^2+{a - b}x-{a * b}", f"(x+{a})(y-{b})"]
    )


def rational(r: random.Random) -> Pair:
    a, b = two(r)
    return f"\\frac{{x+{a}}}{{x-{b}}}", r.choice(
        [
            f"\\frac{{x-{b}}}{{x+{a}}}",
            f"\\frac{{x+{b}}}{{x-{b}}}",
            f"x+\\frac{{{a}}}{{x-{b}}}",
            f"\\frac{{x+{a}}}{{x+{b}}}",
        ]
    )


def complex_number(r: random.Random) -> Pair:
    a, b = two(r)
    return f"{a}-{b}i", r.choice([f"{a}+{b}i", f"{b}-{a}i", f"-{a}-{b}i", str(a - b), f"{a}-{b}"])


def point(r: random.Random) -> Pair:
    a, b = two(r)
    return f"({a},-\\frac{{{b}}}{{11}})", r.choice(
        [
            f"(-\\frac{{{b}}}{{11}},{a})",
            f"({a},\\frac{{{b}}}{{11}})",
            f"[{a},-\\frac{{{b}}}{{11}}]",
            str(a),
            f"{a},-\\frac{{{b}}}{{11}}",
        ]
    )


def interval(r: random.Random) -> Pair:
    a, b = sorted(two(r))
    return f"[{a},{b})", r.choice(
        [f"({a},{b})", f"[{a},{b}]", f"[{a},{b + 1})", f"({a},{b}]", f"{a}<x<{b}", f"[{a},\\infty)"]
    )


def union(r: random.Random) -> Pair:
    a, b = sorted(two(r))
    return f"(-\\infty,-{a}]\\cup[{b},\\infty)", r.choice(
        [
            f"(-\\infty,-{a})\\cup[{b},\\infty)",
            f"(-\\infty,-{a}]\\cup[{b + 1},\\infty)",
            f"(-\\infty,-{a}]",
            f"[-{a},{b}]",
            f"(-\\infty,{a}]\\cup[{b},\\infty)",
        ]
    )


def values(r: random.Random) -> Pair:
    a, b, c = r.sample(range(2, 99), 3)
    return f"{a}, {b}, {c}", r.choice(
        [f"{a}, {b}", f"{a}, {b}, {c + 1}", f"{a}, {b}, {c}, {c}", f"{a}, {b}, -{c}", f"{a}{b}, {c}"]
    )


def named(r: random.Random) -> Pair:
    a, b = two(r)
    return f"x={a}, y={b}", r.choice(
        [f"x={b}, y={a}", f"{b}, {a}", f"x={a}", f"x={a}, z={b}", f"x={a}, y={a}", f"({b},{a})"]
    )


def line(r: random.Random) -> Pair:
    a, b = two(r)
    return f"y={a}x-{b}", r.choice(
        [f"y={b}x-{a}", f"y={a}x+{b}", f"y={a}x", f"x={a}y-{b}", f"{a}x-{b}=0", f"y=-{a}x-{b}"]
    )


def circle(r: random.Random) -> Pair:
    a, b = two(r)
    return f"(x-{a})^2+(y+{b})^2=16", r.choice(
        [
            f"(x+{a})^2+(y+{b})^2=16",
            f"(x-{a})^2+(y+{b})^2=4",
            f"(x-{b})^2+(y+{a})^2=16",
            "16",
            f"(x-{a})^2+(y+{b})^2",
            "5=0",
        ]
    )


def no_solution(r: random.Random) -> Pair:
    a, b = two(r)
    return f"x^2+{a}=0", r.choice([f"x^2+{b}=0", f"{a}=0", f"x^2-{a}=0", f"x^2+{a}=1", f"x^2+{a}"])


def differential(r: random.Random) -> Pair:
    a, b = two(r)
    return f"\\frac{{dy}}{{dx}}={a}x+{b}", r.choice(
        [f"\\frac{{dx}}{{dy}}={a}x+{b}", f"\\frac{{dy}}{{dx}}={b}x+{b}", f"\\frac{{dy}}{{dt}}={a}x+{b}", f"{a}+{b}x"]
    )


def constant_left(r: random.Random) -> Pair:
    name = r.choice(["I", "E", "e", "i", "I_{p}", "\\pi"])
    return f"{name}=\\frac{{V}}{{R}}", r.choice(
        [f"{name}=\\frac{{R}}{{V}}", f"{name}=VR", f"{name}=\\frac{{V}}{{r}}", f"{name}=0"]
    )


def inequality(r: random.Random) -> Pair:
    a, b = two(r)
    return f"x \\le {a}", r.choice([f"x<{a}", f"x \\ge {a}", f"x \\le {b}", f"x={a}", str(a), f"y \\le {a} z"])


def matrix(r: random.Random) -> Pair:
    a, b = two(r)
    return f"\\begin{{pmatrix}} {a} & 1 \\\\ -{b} & 4 \\end{{pmatrix}}", r.choice(
        [
            f"\\begin{{pmatrix}} {a} & 1 \\\\ {b} & 4 \\end{{pmatrix}}",
            f"\\begin{{pmatrix}} {a} & -{b} \\\\ 1 & 4 \\end{{pmatrix}}",
            f"\\begin{{pmatrix}} {a} & 1 \\end{{pmatrix}}",
            f"\\begin{{pmatrix}} {b} & 1 \\\\ -{b} & 4 \\end{{pmatrix}}",
        ]
    )


def quantity(r: random.Random) -> Pair:
    (a, b), (u, v) = two(r, 2, 99), r.sample(["cm", "kg", "miles", "hours", "m^2", "feet", "minutes"], 2)
    return f"{a}\\text{{ {u}}}", r.choice([f"{a}\\text{{ {v}}}", f"{b}\\text{{ {u}}}", str(b), f"{a} {v}", f"{a}\\%"])


def quantities(r: random.Random) -> Pair:
    a, b = two(r)
    return f"{a}\\text{{ feet }}{b}\\text{{ inches}}", r.choice(
        [
            f"{a}\\text{{ feet }}{b + 1}\\text{{ inches}}",
            f"{b}\\text{{ feet }}{a}\\text{{ inches}}",
            f"{a}\\text{{ feet}}",
            str(a),
        ]
    )


def text(r: random.Random) -> Pair:
    return r.choice(
        [
            ("2021-03-04", "2021-04-03"),
            ("7:30", "6:90"),
            ("10-20", "-10"),
            ("192.168.0.1", "192.168.1.0"),
            ("C6H12O6", "C12H6O6"),
            ("H2O", "H3O"),
            ("5 \\text{ if } n \\text{ is odd}", "5 \\text{ if } n \\text{ is even}"),
            ("\\angle ABC", "\\angle ACB"),
            ("1101_2", "1100_2"),
            ("\\text{June 20}", "\\text{June 21}"),
            ("\\text{Tuesday}", "\\text{Thursday}"),
            ("A, B, C", "A, B, D"),
            ("B. Paris", "C. Paris"),
            ("3:4", "4:3"),
            ("0x1F", "0x2F"),
            ("U.S.", "U.K."),
            ("555-1234", "555-1243"),
        ]
    )


def tiny(r: random.Random) -> Pair:
    a, b = two(r, 40, 2_000)
    return r.choice(
        [
            (f"\\frac{{1}}{{{a}!}}", f"\\frac{{1}}{{{b}!}}"),
            (f"10^{{-{a}}}", f"10^{{-{b}}}"),
            (f"(1/6)^{{{a}}}", f"(1/6)^{{{b}}}"),
            (f"e^{{-{a}}}", f"e^{{-{b}}}"),
            (f"2^{{{a}}}+1", f"2^{{{a}}}"),
            (f"\\frac{{1}}{{2^{{{a}}}}}", "0"),
        ]
    )


def function(r: random.Random) -> Pair:
    a, b = two(r)
    return f"{a}\\sin({b}t)+\\ln {b}", r.choice(
        [
            f"{a}\\cos({b}t)+\\ln {b}",
            f"{b}\\sin({b}t)+\\ln {b}",
            f"{a}\\sin({b})+\\ln {b}",
            f"{a}\\sin({b}t)+\\log {b}",
            f"{a}\\sin({b}t)",
        ]
    )


def exponential(r: random.Random) -> Pair:
    a, b = two(r)
    return f"{a}e^{{-{b}t}}", r.choice(
        [f"{a}e^{{{b}t}}", f"{b}e^{{-{b}t}}", f"{a}e^{{-{b}}}", f"{a}e^{{-{a}t}}", f"{a}"]
    )


KINDS: tuple[Callable[[random.Random], Pair], ...] = (
    integer, decimal, fraction, radical, radical_sum, angle, polynomial, monomial, geometry, factors, rational,
    complex_number, point, interval, union, values, named, line, circle, no_solution, differential, constant_left,
    inequality, matrix, quantity, quantities, text, tiny, function, exponential,
)  # fmt: skip


def wrong_pairs(count: int, seed: int = 0) -> Iterator[Pair]:
    """That many pairs, the kinds in turn."""
    r = random.Random(seed)
    for number in range(count):
        yield KINDS[number % len(KINDS)](r)


def copied_questions(count: int, seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """(question, reference, a candidate copied from the question), all of the value of the reference."""
    r = random.Random(seed)
    for _ in range(count):
        (a, b), p = two(r), r.choice(PRIMES)
        formula, reference = r.choice(
            [
                (f"\\sqrt{{{a * a * p}}}", f"{a}\\sqrt{{{p}}}"),
                (f"(x+{a})(x+{b})", f"x^2+{a + b}x+{a * b}"),
                (f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})"),
                (f"x^{a} \\cdot x^{b}", f"x^{{{a + b}}}"),
                (f"{a}x+{b}x", f"{a + b}x"),
                (f"\\frac{{{a * p}}}{{{p * 17}}}", f"\\frac{{{a}}}{{17}}"),
                (f"\\frac{{x^2-{a * a}}}{{x-{a}}}", f"x+{a}"),
                (f"{a}({b}+3i)-{a}", f"{a * b - a}+{3 * a}i"),
                (f"\\frac{{{a}}}{{\\sqrt{{{p}}}}}", f"\\frac{{{a}\\sqrt{{{p}}}}}{{{p}}}"),
                (f"\\log_{{{a}}} {a**3}", "3"),
                (f"{a} \\cdot {b + 10}", str(a * (b + 10))),
                (f"\\frac{{1}}{{x}}+\\frac{{{a}}}{{y}}", f"\\frac{{y+{a}x}}{{xy}}"),
                (f"\\sin^2 {a}x+\\cos^2 {a}x+{b}y", f"{b}y+1"),
                (f"\\frac{{{a}}}{{20}}", f"{a / 20:g}"),
                (f"{a}^{{{b}}}", str(a**b)),
                (f"\\ln {a}+\\ln {b + 10}", f"\\ln {a * (b + 10)}"),
                (f"{a}\\sqrt{{{p}}}+{b}\\sqrt{{{p}}}", f"{a + b}\\sqrt{{{p}}}"),
                (f"\\int_0^{{{a}}} {2 * b} x\\, dx", f"{b * a * a}"),
                (f"e^{{{a}t}} e^{{{b}t}}", f"e^{{{a + b}t}}"),
                (f"{a}(x-{b})+{b}", f"{a}x-{a * b - b}"),
            ]
        )
        question = r.choice(
            [f"Simplify ${formula}$.", f"What is $${formula}$$ equal to?", f"Let $f(x)={formula}$. Find it."]
        )
        candidate = r.choice(
            [formula, f"\\left({formula}\\right)", formula.replace("+", " + "), f"f(x)={formula}", f"${formula}$"]
        )
        if reference != formula:
            yield question, reference, candidate


def main(count: int) -> None:
    """Grade the pairs and print what should not have been accepted."""
    from schoolhouse.tasks.answers.grade import compare_answers

    wrong = [pair for pair in wrong_pairs(count) if compare_answers(pair[1], pair[0]).reward != 0.0]
    copied = [case for case in copied_questions(count) if compare_answers(case[2], case[1], case[0]).reward != 0.0]
    right = [reference for reference, _ in wrong_pairs(count) if compare_answers(reference, reference).reward != 1.0]
    for case in (*wrong, *copied, *right):
        print(case)
    print(f"{count} changed references: {len(wrong)} accepted; copied questions: {len(copied)} accepted; ", end="")
    print(f"references refused by themselves: {len(right)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
