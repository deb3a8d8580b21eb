"""Words are counted by the script of their letters; numbers and signs have no language."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.data.scripts import count_scripts, script_share


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seven+five=two", {"latin": 3}),
        ("七+五=二", {"cjk": 3}),
        ("seven+五=two", {"latin": 2, "cjk": 1}),
        ("ab七c", {"latin": 2, "cjk": 1}),
        ("привет мир", {"cyrillic": 2}),
        ("안녕", {"hangul": 1}),
        ("7 + 5 = 12, x_1", {"latin": 1}),
        ("12 + 3", {}),
        ("", {}),
    ],
)
def test_words_by_script(text: str, expected: dict[str, int]):
    assert dict(count_scripts(text)) == expected


def test_the_share_of_a_language():
    assert script_share("seven+五=two", "latin") == pytest.approx(2 / 3)
    assert script_share("7+5=12", "latin") == 1.0  # formulas belong to every language


@given(st.text())
def test_shares_are_shares(text: str):
    assert 0.0 <= script_share(text, "latin") <= 1.0
