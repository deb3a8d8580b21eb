"""The tree of a search, shown: the path to the answer stands out, and text of a model never becomes markup."""

from collections.abc import Callable
from html.parser import HTMLParser
from math import nan
from typing import Any

from rich.console import Console

from schoolhouse.search.render import draw, html_page, label, result_to_json
from schoolhouse.search.solve import SearchResult
from schoolhouse.search.tree import Node, Tree
from schoolhouse.types import Key, Message, Problem

ATTACK = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


def search_result(scripted: Callable[..., Any], text: str = "13-9=4 (4 4 10)") -> SearchResult:
    policy = scripted(lambda *_: "")
    problem = Problem("p", (Message("user", f"Make 24 {text}"),), "")
    prompt = policy.conversation.prompt_rollout(problem, Key(0, "t"))
    root = Node(prompt)
    good = Node(prompt.prefill([1]), text, root, value=60.0, status="expanded")
    bad = Node(prompt.prefill([2]), "13+9=22 (4 10 22)", root, value=0.003, status="dropped")
    answer = Node(prompt.prefill([1, 2]), "[bold]24[/bold]", good, is_answer=True, value=nan, status="answer")
    tree = Tree(root, nodes=[good, bad, answer], tokens=99, stop_reason="answered")
    return SearchResult(answer.state, 99, "answered", tree)


def test_the_terminal_shows_values_and_statuses(scripted: Callable[..., Any]):
    console = Console(width=100)
    with console.capture() as captured:
        console.print(draw(search_result(scripted)))
    text = captured.get()
    assert "13-9=4 (4 4 10)  60" in text
    assert "13+9=22 (4 10 22)  0.003  dropped" in text
    assert "[bold]24[/bold]  answer" in text


def test_the_page_holds_all_thoughts_and_marks_the_chosen_path(scripted: Callable[..., Any]):
    page = html_page(search_result(scripted), "24")
    assert page.count('class="chosen"') == 2
    assert 'class="dropped"' in page
    assert "99 tokens, 3 thoughts; answered" in page
    assert "http" not in page


def test_markup_in_the_text_of_a_model_stays_text(scripted: Callable[..., Any]):
    page, tags = html_page(search_result(scripted, ATTACK), ATTACK), Tags()
    tags.feed(page)
    assert "span" in tags.seen
    assert "script" not in tags.seen


def test_a_long_thought_is_shortened_in_its_line():
    assert len(label(Node(None, "x" * 500))) == 60


def test_a_search_as_plain_data_names_the_parent_of_each_thought(scripted: Callable[..., Any]):
    assert result_to_json(search_result(scripted)) == {
        "tokens": 99,
        "stop_reason": "answered",
        "votes": [],
        "tree": [
            {"text": "13-9=4 (4 4 10)", "value": 60.0, "status": "expanded", "parent": None, "chosen": True},
            {"text": "13+9=22 (4 10 22)", "value": 0.003, "status": "dropped", "parent": None, "chosen": False},
            {"text": "[bold]24[/bold]", "value": None, "status": "answer", "parent": 0, "chosen": True},
        ],
    }
    assert result_to_json(SearchResult(None, 7, "voted", votes=(("24", 3),)))["votes"] == [["24", 3]]
