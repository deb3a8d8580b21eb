from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.data.stream_marks import MarkSplitter
from schoolhouse.data.thought import ThoughtFormat

CHANNELS = ThoughtFormat(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    between="<|start|>assistant<|channel|>final<|message|>",
    lead="<|channel|>final<|message|>",
    ending="\n",
)
STEPS = ThoughtFormat("Here are my steps:", "[FINAL]", opened_by_prompt=True, after="\n", between="\n")
WORDS = st.text("ab <|[\n", max_size=12)


def split(style: ThoughtFormat, text: str, cuts: list[int]) -> tuple[str, str]:
    """Thought and answer of a complete turn that comes in pieces."""
    splitter = MarkSplitter(style)
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    deltas = [d for a, b in pairwise(bounds) for d in splitter.push(text[a:b])]
    deltas += splitter.push("", ending=True, complete=True)
    thought, answer = ("".join(d.text for d in deltas if d.part == part) for part in ("thought", "answer"))
    return thought, answer


@given(thought=WORDS, answer=WORDS, cuts=st.lists(st.integers(0, 120), max_size=9))
def test_pieces_of_any_size_give_the_same_parts(thought: str, answer: str, cuts: list[int]) -> None:
    for style in (CHANNELS, STEPS):
        assert split(style, style.wrap(thought, answer), cuts) == (thought, answer)


@given(answer=WORDS, cuts=st.lists(st.integers(0, 60), max_size=9))
def test_a_turn_without_a_thought_is_an_answer(answer: str, cuts: list[int]) -> None:
    assert split(CHANNELS, CHANNELS.wrap(None, answer), cuts) == ("", answer)


def test_text_is_given_as_soon_as_it_is_no_mark() -> None:
    splitter = MarkSplitter(CHANNELS)
    assert splitter.push("<|channel|>") == []
    assert splitter.push("analysis<|message|>two")[0].text == "two"
    assert splitter.push(" and <")[0].text == " and "
    assert splitter.push("b")[0].text == "<b"
