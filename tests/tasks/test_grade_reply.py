"""The public `grade`, and the pairs of a file."""

import gzip
import json
from pathlib import Path

import pytest

import schoolhouse
from schoolhouse.tasks.answers.options import Grading
from schoolhouse.tasks.grade_reply import grade, grade_pairs, read_pairs
from schoolhouse.types import SchoolError


@pytest.mark.parametrize(
    ("reply", "reference", "reward"),
    [
        (r"It is \boxed{\frac12}.", "0.5", 0.0),
        (r"It is \boxed{0.5}.", r"\frac{1}{2}", 1.0),
        ("so\n#### 24", "24", 1.0),
        ("The final answer is: 24", "24", 1.0),
        ("24", "24", 1.0),
        ("I do not know", "24", 0.0),
        (r"<think>\boxed{24}</think>no", "24", 0.0),
        (r"<think>so</think>\boxed{24}", "24", 1.0),
        (r"<think>\boxed{24}", "24", 0.0),
    ],
)
def test_a_reply_is_graded_as_it_was_written(reply: str, reference: str, reward: float) -> None:
    assert grade(reply, reference).reward == reward


def test_it_is_a_public_name() -> None:
    assert schoolhouse.grade("Paris", ["London", "paris"]).reward == 1.0


def test_the_options_decide() -> None:
    assert grade("7 dogs and 3 cats", "3", extract="last_number").reward == 1.0
    assert grade("10", "10 cm", units="strict").reward == 0.0
    assert grade("x^2-1", "(x-1)(x+1)", question="Factor $x^2-1$.").reward == 0.0
    assert grade(r"\boxed{0.5}", r"\frac12", grader="hf").reward == 1.0


@pytest.mark.parametrize("option", [{"extract": "box"}, {"units": "loose"}, {"grader": "our"}])
def test_an_unknown_option_is_refused(option: dict[str, str]) -> None:
    with pytest.raises(SchoolError, match="option `.*` is `.*`; (did you mean|known)"):
        grade("5", "5", **option)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(SchoolError, match="pip install verl"):
        grade("5", "5", grader="verl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "not a JSON object.*`reference` and `candidate`"),
        ("{", "not JSON"),
        ('{"candidate": "5"}', "`reference` is null"),
        ('{"reference": "5"}', "`candidate` is null"),
        ('{"reference": "5", "candidate": "5", "expected": "yes"}', "`expected` is"),
    ],
)
def test_a_mistake_in_a_file_of_pairs_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"reference": "5", "candidate": "5"}\n' + line + "\n")
    with pytest.raises(SchoolError, match=f"pairs.jsonl:2: {message}"):
        read_pairs(path)


def test_pairs_are_read_from_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"reference": ["5", "6"], "candidate": "6"}\n'))
    (pair,) = read_pairs(path)
    assert (pair.reference, pair.candidate, pair.place) == (("5", "6"), "6", f"{path}:1")


def test_pairs_are_graded_in_order_also_by_math_verify(tmp_path: Path) -> None:
    rows = [
        {"reference": r"\int_0^1 f(x) dx", "candidate": r"\int_0^1 f(t) dt", "expected": 0},
        {"reference": r"\sum_{k=0}^{n} F_k", "candidate": r"\sum_{k=0}^{n} F_k"},
        {"reference": ["1", "2"], "candidate": "2", "question": "one or two?", "expected": 1},
        {"reference": r"\sum_{k=0}^{n-1} F_k F_{n}", "candidate": r"\sum_{k=0}^{n-1} F_n F_k"},
        {"reference": r"\mathbb{R}\setminus\{2\}", "candidate": r"\mathbb{R}\setminus\{1\}"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    pairs = read_pairs(path)
    assert [pair.expected for pair in pairs] == [0, None, 1, None, None]
    assert [verdict.reward for verdict in grade_pairs(pairs, Grading(extraction="auto"))][1:] == [1.0, 1.0, 1.0, 0.0]
