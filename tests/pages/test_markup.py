"""Markup in any text that reaches a page is shown as text: it is never parsed as HTML, so nothing in it can run.

Every reply of the server is faked, with an attack in each of its strings. The fixture `tab` adds that the console stays
empty: Chromium writes a message of the Content-Security-Policy there as soon as it parses an event handler.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from live_server import running_server

RUN = "document.title='broken'"
ATTACK = (
    f'<img src=x onerror="{RUN}"><svg onload="{RUN}"></svg><script>{RUN}</script><b onclick="{RUN}">bold</b>'
    f'<details open ontoggle="{RUN}">more</details><iframe srcdoc="<script>parent.{RUN}</script>"></iframe>'
    f'<a href="javascript:{RUN}">link</a><style>* {{ display: none }}</style><form action="javascript:{RUN}"></form>'
)
MARKDOWN = [
    ATTACK,
    f"[go](javascript:{RUN})",
    f"<javascript:{RUN}>",
    f"broken [go][1]\n\n[1]: javascript:{RUN}",
    f'[broken](http://localhost/"onclick="{RUN})',
    f'![image](x"onerror="{RUN})',
    f'```"><img src=x onerror={RUN}>\n<img src=x onerror={RUN}>\n```',
    f"# {ATTACK}\n\n- {ATTACK}\n\n> {ATTACK}\n\n|a|b|\n|-|-|\n|{ATTACK}|`{ATTACK}`|",
    f"&lt;img src=x onerror={RUN}&gt;",
    f"$<img src=x onerror={RUN}>$ and $$\\text{{<img src=x onerror={RUN}>}}$$",
    f"$\\href{{javascript:{RUN}}}{{x}}$ $\\htmlData{{onclick={RUN}}}{{x}}$ $\\includegraphics{{x}}$",
    f"\\boxed{{<img src=x onerror={RUN}>}}",
]
FOREIGN = """() => [...document.body.querySelectorAll("*")].filter((element) =>
    element.matches("script, iframe, object, embed, style, form:not(#form), b[onclick], svg:not(.katex svg)")
    || element.matches("img:not([src^='/api/figure/claim'])")
    || [...element.attributes].some(({ name, value }) => name.startsWith("on")
        || (["href", "src", "action", "xlink:href"].includes(name) && /^javascript:/i.test(value)))
).map((element) => element.outerHTML.slice(0, 200))"""


def assert_nothing_was_parsed(tab: Any) -> None:
    tab.page.evaluate("() => new Promise((done) => setTimeout(done, 50))")  # time for a handler to run
    assert tab.page.evaluate(FOREIGN) == []
    assert "broken" not in tab.page.title()
    assert not [url for url in tab.requests if url.endswith("/x")]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of both pages: an empty board, which serves the files of the chat page too."""
    with running_server("board", str(tmp_path_factory.mktemp("empty"))) as board:
        yield board.url


def fake(tab: Any, replies: dict[str, Any], status: int = 200) -> None:
    """Answer requests to these paths: JSON, or text as a stream of events."""

    def answer(reply: Any) -> Any:
        if isinstance(reply, str):
            return lambda route: route.fulfill(body=reply, content_type="text/event-stream")
        return lambda route: route.fulfill(json=reply, status=status)

    for path, reply in replies.items():
        tab.page.route(f"**{path}*", answer(reply))


def events(*choices: dict[str, Any]) -> str:
    return "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices) + "data: [DONE]\n\n"


# --- the pages as such


@pytest.mark.parametrize("page", ["", "web/chat.html"])
def test_a_page_lets_no_string_be_parsed_as_html(tab: Any, url: str, page: str):
    fake(tab, {"/v1/models": {"data": [{"id": "a"}]}})
    tab.page.goto(f"{url}/{page}")
    tab.page.locator("header").wait_for()
    for sink in ("b.innerHTML = '<i>'", "b.insertAdjacentHTML('beforeend', '<i>')", "document.write('<i>')"):
        refused = f"() => {{ const b = document.createElement('b'); try {{ {sink} }} catch (e) {{ return e.name }} }}"
        assert tab.page.evaluate(refused) == "TypeError"
    assert len(tab.console) == 3  # a message of the policy for each
    tab.console.clear()


# --- chat

MESSAGE = {"content": ATTACK, "reasoning_content": ATTACK}
TOKEN = {"token": ATTACK, "logprob": -1.0, "top_logprobs": [{"token": ATTACK, "logprob": -1.0}]}
NODE = {"text": ATTACK, "value": 1.0, "status": ATTACK, "chosen": True}
MODELS = {"data": [{"id": name, "max_model_len": 512, "reward_model": ATTACK} for name in (ATTACK, f"{ATTACK} 2")]}
RATING = {"name": ATTACK, "rating": 1000.0, "low": 900.0, "high": 1100.0, "num_battles": 3}
CHAT = {
    "/v1/models": MODELS,
    "/v1/chat/completions": events({"delta": {"reasoning_content": ATTACK}}, {"delta": {"content": ATTACK}}),
    "/v1/completions": events({"text": ATTACK}),
    "/api/reward": {"reward": 0.5, "steps": [{"text": ATTACK, "reward": 0.1}]},
    "/api/leaderboard": [RATING],
    "/api/votes": {"votes": 1},
}


def open_chat(tab: Any, url: str, mode: str = "chat", **replies: Any) -> None:
    fake(tab, {**CHAT, **{f"/v1/{path}": reply for path, reply in replies.items()}})
    tab.page.goto(f"{url}/web/chat.html#{mode}")
    tab.page.get_by_label("Max tokens").wait_for()


def ask(tab: Any) -> None:
    tab.page.get_by_label("Message").fill(ATTACK)
    tab.page.keyboard.press("Enter")
    tab.page.locator("#stop").wait_for(state="hidden")


def test_a_streamed_answer_its_thinking_and_its_reward(tab: Any, url: str):
    open_chat(tab, url)
    ask(tab)
    tab.page.locator(".reward summary").click()
    for place in (".user .body", ".thinking .mono", ".answer", ".reward .token"):
        assert ATTACK in tab.page.locator(place).first.text_content()
    assert_nothing_was_parsed(tab)


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown_of_an_answer(tab: Any, url: str, text: str):
    open_chat(tab, url, **{"chat/completions": events({"delta": {"content": text}})})
    ask(tab)
    assert "broken" in tab.page.locator(".answer").text_content()  # it is shown
    assert_nothing_was_parsed(tab)


def test_token_probabilities(tab: Any, url: str):
    stream = events({"delta": {"content": ATTACK}, "logprobs": {"content": [TOKEN]}})
    open_chat(tab, url, **{"chat/completions": stream})
    tab.page.get_by_label("Token probabilities").check()
    ask(tab)
    assert tab.page.locator(".assistant .token").first.text_content() == ATTACK
    assert_nothing_was_parsed(tab)


def test_samples_and_their_votes(tab: Any, url: str):
    open_chat(tab, url, **{"chat/completions": {"choices": [{"message": MESSAGE}] * 2}})
    tab.page.get_by_label("Samples").fill("2")
    ask(tab)
    tab.page.get_by_text("All samples").click()
    tab.page.locator(".votes details summary").first.click()
    assert ATTACK in tab.page.locator(".votes details summary").first.text_content()
    assert ATTACK in tab.page.locator(".votes .thinking").first.text_content()
    assert_nothing_was_parsed(tab)


def test_a_search_and_its_tree(tab: Any, url: str):
    search = {"tokens": 5, "stop_reason": ATTACK, "votes": [[ATTACK, 2]], "tree": [{**NODE, "parent": None}]}
    open_chat(tab, url, **{"chat/completions": {"choices": [{"message": MESSAGE}], "search": search}})
    tab.page.get_by_label("Search").select_option("vote?samples=16")
    ask(tab)
    tab.page.get_by_text("Search tree: 1 thoughts").click()
    assert ATTACK in tab.page.locator(".tree").text_content()
    assert_nothing_was_parsed(tab)


def test_a_completion(tab: Any, url: str):
    open_chat(tab, url, "completion")
    ask(tab)
    assert tab.page.locator(".completion").text_content() == ATTACK * 2
    assert_nothing_was_parsed(tab)


def test_names_of_models_and_the_leaderboard(tab: Any, url: str):
    open_chat(tab, url, "arena")
    ask(tab)
    tab.page.get_by_role("button", name="Left").click()
    tab.page.get_by_text("Left:").wait_for()
    assert ATTACK in tab.page.locator(".bar").text_content()
    assert ATTACK in tab.page.locator("#leaderboard").text_content()
    assert ATTACK in tab.page.get_by_label("Model A").text_content()
    assert_nothing_was_parsed(tab)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions"])
def test_an_error_of_the_server(tab: Any, url: str, path: str):
    fake(tab, CHAT)
    fake(tab, {path: {"error": {"message": ATTACK}}}, status=400)
    tab.page.goto(f"{url}/web/chat.html")
    if path != "/v1/models":
        ask(tab)
    tab.page.locator(".error").wait_for()
    assert ATTACK in tab.page.locator(".error").text_content()
    assert_nothing_was_parsed(tab)
    assert all("Failed to load resource" in message for message in tab.console)  # the browser notes the status
    tab.console.clear()


# --- board

ROW = {
    "name": ATTACK,
    "recipe": ATTACK,
    "state": ATTACK,
    "steps_done": 1,
    "steps_total": 2,
    "seconds": 3,
    "result": ATTACK,
}
ROLLOUT = {
    **{"step": 0, "problem": ATTACK, "question": ATTACK, "reward": 0.0, "group_mean": 0.0, "reason": ATTACK},
    **{"thought": ATTACK, "answer": ATTACK, "finish_reason": ATTACK},
}
SAMPLE = {**ROLLOUT, "advantage": 0.5, "tokens": [[ATTACK, ATTACK, -1.0], [ATTACK, "answer", -1.0]]}
CHECK = {"kind": ATTACK, "text": ATTACK, "found": ATTACK, "holds": True}
CLAIM = {
    **{"claim": "claim", "verdict": ATTACK, "sentence": ATTACK, "paper": ATTACK, "seeds": [0], "rule": ATTACK},
    "checks": [CHECK],
}
TREE = {"question": ATTACK, "correct": True, "tokens": 5, "stop_reason": ATTACK}
BOARD = {
    "/api/runs": [ROW],
    "/api/run?": {
        **ROW,
        **{"config": {ATTACK: ATTACK}, "environment": {ATTACK: ATTACK}, "metrics": [ATTACK], "advice": [ATTACK]},
        **{"group_summary": ATTACK, "has_rollouts": True, "tree_steps": [1]},
    },
    "/api/curves": [{"name": ATTACK, "x": [0, 1], "y": {ATTACK: [0.0, 1.0]}}],
    "/api/rollouts": {"indexed": True, "total": 1, "page": 0, "per_page": 50, "rows": [ROLLOUT]},
    "/api/group": {
        **{"indexed": True, "rows": [SAMPLE]},
        "history": [{"step": 0, "mean_reward": 0.5}, {"step": 1, "mean_reward": 0.5}],
    },
    "/api/trees": {"steps": [1], "rows": [{**TREE, "thoughts": 1}]},
    "/api/tree?": {**TREE, "tree": [{**NODE, "parent": None}, {**NODE, "parent": 0}]},
    "/api/claims": [CLAIM],
    "/api/config_diff": [ATTACK],
}
FIGURE = Path(__file__).parents[2] / "docs" / "board" / "tree.png"
VIEWS = {
    "runs": "tbody",
    "run?name=a": ".u-legend",
    "rollouts?name=a": "tbody",
    "group?name=a&step=0&problem=p": ".samples",
    "trees?name=a&step=1": "tbody",
    "tree?name=a&step=1&row=0": ".tree",
    "claims": "tbody",
    "difference?name=a&name=b": "main pre",
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_the_board(tab: Any, url: str, view: str):
    fake(tab, BOARD)
    tab.page.route("**/api/figure/*", lambda route: route.fulfill(path=FIGURE))
    tab.page.goto(f"{url}/#/{view}")
    tab.page.locator(VIEWS[view]).wait_for()
    assert ATTACK in tab.page.locator(VIEWS[view]).text_content()
    assert_nothing_was_parsed(tab)


def test_an_error_of_the_board(tab: Any, url: str):
    fake(tab, {"/api/runs": {"error": {"message": ATTACK}}}, status=400)
    tab.page.goto(url)
    tab.page.get_by_role("heading", name="could not be loaded").wait_for()
    assert tab.page.locator("p.danger").text_content() == ATTACK
    assert_nothing_was_parsed(tab)
    assert all("Failed to load resource" in message for message in tab.console)
    tab.console.clear()
