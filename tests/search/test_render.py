"""A tree to look at: what led to the answer stands out, and model text never becomes markup."""

from collections.abc import Callable
from html.parser import HTMLParser
from math import nan
from typing import Any

from rich.console import Console

from schoolhouse.search.render import draw, html_page, label, result_to_json
from schoolhouse.search.solve import SearchResult
from schoolhouse.search.tree import Node, Tree
from schoolhouse.types import Key, Message, Problem

EVIL = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


def tree(scripted: Callable[..., Any], text: str = "13-9=4 (4 4 10)") -> SearchResult:
    policy = scripted(lambda *_: "")
    problem = Problem("p", (Message("user", f"Make 24 {text}"),), "")
    begun = policy.conversation.prompt_rollout(problem, Key(0, "t"))
    root = Node(begun)
    good = Node(begun.prefill([1]), text, root, value=60.0, status="expanded")
    bad = Node(begun.prefill([2]), "13+9=22 (4 10 22)", root, value=0.003, status="dropped")
    answer = Node(begun.prefill([1, 2]), "[bold]24[/bold]", good, is_answer=True, value=nan, status="answer")
    grown = Tree(root, nodes=[good, bad, answer], tokens=99, stop_reason="answered")
    return SearchResult(answer.state, 99, "answered", grown)


def test_the_terminal_shows_values_and_fates(scripted: Callable[..., Any]):
    console = Console(width=100)
    with console.capture() as shown:
        console.print(draw(tree(scripted)))
    text = shown.get()
    assert "13-9=4 (4 4 10)  60" in text
    assert "13+9=22 (4 10 22)  0.003  dropped" in text
    assert "[bold]24[/bold]  answer" in text


def test_the_page_holds_all_thoughts_and_marks_the_path(scripted: Callable[..., Any]):
    made = html_page(tree(scripted), "24")
    assert made.count('class="taken"') == 2
    assert 'class="dropped"' in made
    assert "99 tokens, 3 thoughts; answered" in made
    assert "http" not in made


def test_markup_in_a_models_text_is_text(scripted: Callable[..., Any]):
    made, tags = html_page(tree(scripted, EVIL), EVIL), Tags()
    tags.feed(made)
    assert "script" not in tags.seen


def test_a_long_thought_is_cut_in_its_line():
    assert len(label(Node(None, "x" * 500))) == 60


def test_a_search_as_plain_data_tells_who_came_from_whom(scripted: Callable[..., Any]):
    assert result_to_json(tree(scripted)) == {
        "tokens": 99,
        "end": "answered",
        "votes": [],
        "tree": [
            {"text": "13-9=4 (4 4 10)", "value": 60.0, "fate": "expanded", "parent": None, "taken": True},
            {"text": "13+9=22 (4 10 22)", "value": 0.003, "fate": "dropped", "parent": None, "taken": False},
            {"text": "[bold]24[/bold]", "value": None, "fate": "answer", "parent": 0, "taken": True},
        ],
    }
    assert result_to_json(SearchResult(None, 7, "voted", votes=(("24", 3),)))["votes"] == [["24", 3]]
