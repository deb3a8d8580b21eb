"""The chat page in a real browser, with a tiny model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live_server import RunningServer, running_server
from schoolhouse.search.solve import parse

TASK = "school:chain?steps=2&styles=full=100"
QUESTION = "Start at 7. Add 5. Take 3."


@pytest.fixture(scope="module")
def url(sft_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run = sft_model(TASK).parents[1]
    votes = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    with running_server("serve", str(run), "--votes", str(votes), ready_path="/health") as server:
        yield server.url


def open_chat(tab, url: str, max_tokens: int, mode: str = "") -> None:
    """The page, with answers of at most this many tokens."""
    tab.page.goto(f"{url}/{mode}")
    tab.page.get_by_label("Max tokens").fill(str(max_tokens))


def ask(tab, text: str = QUESTION) -> None:
    tab.page.get_by_label("Message").fill(text)
    tab.page.keyboard.press("Enter")


def test_an_answer_is_streamed_and_the_next_one_shows_its_probabilities(tab, url: str):
    open_chat(tab, url, 32)
    ask(tab)
    tab.page.locator(".assistant").nth(0).wait_for()
    tab.page.locator("#stop").wait_for(state="hidden")
    tab.page.get_by_label("Token probabilities").check()
    tab.page.get_by_label("Message").fill(QUESTION)
    tab.page.get_by_role("button", name="Send").click()
    tab.page.locator(".assistant .token").first.wait_for()
    assert "%" in tab.page.locator(".assistant .token").first.get_attribute("title")
    assert tab.page.locator(".error").count() == 0
    assert all(requested.startswith((url, "data:")) for requested in tab.requests)


def test_samples_vote(tab, url: str):
    open_chat(tab, url, 24)
    tab.page.get_by_label("Samples").fill("4")
    ask(tab)
    tab.page.get_by_text("Majority vote of 4 samples").wait_for()
    tab.page.get_by_text("All samples").click()
    tab.page.locator(".votes details").first.wait_for()


def test_long_words_break_and_do_not_widen_the_page(tab, url: str):
    message = {"content": "x" * 400 + "\n\n$$" + "y" * 400 + "$$", "reasoning_content": "z" * 400}
    reply = {"choices": [{"message": message}, {"message": message}]}
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(json=reply))
    open_chat(tab, url, 24)
    tab.page.get_by_label("Samples").fill("2")
    ask(tab, "w" * 400)
    tab.page.get_by_text("All samples").click()
    tab.page.locator(".votes details summary").first.click()
    tab.page.locator(".votes .katex-display").first.wait_for()


def test_a_search_shows_its_cost(tab, url: str):
    open_chat(tab, url, 24)
    tab.page.get_by_label("Search").select_option("vote?samples=16")
    ask(tab)
    tab.page.get_by_text("16 answers").wait_for()


def test_a_search_hides_the_settings_that_it_does_not_use(tab, url: str):
    open_chat(tab, url, 24)
    settings = [tab.page.get_by_label(label) for label in ("Thinking budget", "Samples", "Token probabilities")]
    for search, shown in (("vote?samples=16", False), ("", True)):
        tab.page.get_by_label("Search").select_option(search)
        assert [setting.is_visible() for setting in settings] == [shown] * 3


def test_the_server_knows_every_search_that_the_page_offers(tab, url: str):
    reply = {"data": [{"id": "a", "max_model_len": 128, "reward_model": "a reward model"}]}
    tab.page.route("**/v1/models?*", lambda route: route.fulfill(json=reply))
    tab.page.goto(url)
    names = tab.page.get_by_label("Search").locator("option").evaluate_all("(options) => options.map((o) => o.value)")
    assert [parse(name).kind for name in names if name] == [name.partition("?")[0] for name in names if name]
    assert len(names) == 6


def test_a_vote_in_the_arena_reaches_the_leaderboard(tab, url: str):
    open_chat(tab, url, 24, "#arena")
    ask(tab)
    tab.page.get_by_role("button", name="Left").click()
    tab.page.get_by_text("Left:").wait_for()
    tab.page.locator("#leaderboard td.num").nth(1).wait_for()
    ask(tab)  # and the next one
    tab.page.get_by_role("button", name="Right").click()
    tab.page.get_by_text("Left:").nth(1).wait_for()


def test_a_late_answer_is_no_part_of_the_next_conversation(tab, url: str):
    late: list = []
    tab.page.route("**/v1/chat/completions", lambda route: late.append(route))
    open_chat(tab, url, 24)
    with tab.page.expect_request("**/v1/chat/completions"):
        ask(tab, "old question")
    tab.page.get_by_role("button", name="New chat").click()
    tab.page.locator("#stop").wait_for(state="hidden")
    with tab.page.expect_request("**/v1/chat/completions") as sent:
        ask(tab, "new question")
    assert [turn["content"] for turn in sent.value.post_data_json["messages"]] == ["new question"]
    tab.page.unroute("**/v1/chat/completions")


def test_a_failed_answer_is_no_part_of_the_conversation(tab, url: str):
    full = {"error": {"message": "queue full"}}
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, json=full))
    open_chat(tab, url, 24)
    ask(tab, "first")
    tab.page.get_by_text("queue full").wait_for()
    tab.console.clear()  # the browser itself notes the 429
    tab.page.locator("#stop").wait_for(state="hidden")
    tab.page.unroute("**/v1/chat/completions")
    with tab.page.expect_request("**/v1/chat/completions") as sent:
        ask(tab, "second")
    assert [turn["content"] for turn in sent.value.post_data_json["messages"]] == ["second"]
    tab.page.locator("#stop").wait_for(state="hidden")


def test_a_deleted_checkpoint_leaves_the_list(tab, url: str):
    names = iter([["a@1", "a@2"], ["a@2", "a@3"]])
    here: list = []

    def listed(route) -> None:
        here[:] = next(names, here)
        route.fulfill(json={"data": [{"id": name, "max_model_len": 128} for name in here]})

    tab.page.clock.install()
    tab.page.route("**/v1/models?*", listed)
    tab.page.goto(url)
    tab.page.get_by_label("Model").locator("option", has_text="a@1").wait_for(state="attached")
    tab.page.clock.run_for(11_000)
    tab.page.get_by_label("Model").locator("option", has_text="a@3").wait_for(state="attached")
    assert tab.page.get_by_label("Model").input_value() == "a@2"


def test_a_completion_continues_the_text(tab, url: str):
    open_chat(tab, url, 16, "#completion")
    ask(tab, "7+5=2 2-3=")
    tab.page.locator("article.completion span").nth(1).wait_for()
    tab.page.locator("#stop").wait_for(state="hidden")
    assert tab.page.locator("article.completion").text_content().startswith("7+5=2 2-3=")


def test_few_shot_examples_precede_every_prompt(tab, url: str):
    open_chat(tab, url, 16, "#completion")
    tab.page.get_by_label("Few-shot examples, before every prompt").fill("1+1=2\n2+2=4\n")
    tab.page.get_by_label("Stop at the end of a line").check()
    with tab.page.expect_request("**/v1/completions") as sent:
        ask(tab, "3+3=")
    assert sent.value.post_data_json["prompt"] == "1+1=2\n2+2=4\n3+3="
    assert sent.value.post_data_json["stop"] == ["\n"]
    tab.page.locator("#stop").wait_for(state="hidden")
    assert tab.page.locator(".error").count() == 0


def test_what_a_model_writes_never_runs(tab, url: str):
    """The renderer is called directly: a tiny model cannot be made to write this. More in test_markup.py."""
    tab.page.goto(url)
    tab.page.get_by_label("Message").wait_for()
    attack = (
        "$x^2$ <img src=x onerror=alert(1)><script>alert(2)</script> [go](javascript:alert(3)) <svg onload=alert(4)>"
    )
    dialogs = []
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    html = tab.page.evaluate(
        """async (text) => {
            const box = (await import("/web/markdown.js")).renderMarkdown(text);
            document.body.append(box);
            await new Promise((done) => setTimeout(done, 100));
            return box.innerHTML;
        }""",
        attack,
    )
    assert "katex" in html
    for tag in ("<img", "<script", "<svg", "<a "):
        assert tag not in html
    assert "<img src=x onerror=alert(1)><script>alert(2)</script>" in tab.page.locator(".answer").text_content()
    assert not dialogs


def render(tab, url: str, text: str):
    """The element that `text` becomes, and its text."""
    tab.page.goto(url)
    tab.page.get_by_label("Message").wait_for()
    tab.page.evaluate(
        """async (text) => {
            const { renderMarkdown } = await import("/web/markdown.js");
            document.body.append(renderMarkdown(text));
        }""",
        text,
    )
    return tab.page.locator(".answer")


@pytest.mark.parametrize(
    ("text", "selector", "content"),
    [
        ("# Title", "h3", "Title"),
        ("*a* **b** ~~c~~", "strong", "b"),
        ("one\ntwo", "br", ""),
        ("1. a\n2. b", "ol li >> nth=1", "b"),
        ("- [x] done", "ul li", "☑ done"),
        ("|a|b|\n|-|-:|\n|1|2|", "td.num", "2"),
        ("> quoted", "blockquote p", "quoted"),
        ("```py\nif a < b: $x$\n```", "pre code", "if a < b: $x$"),
        ("`$a$ &lt;`", "code", "$a$ &lt;"),
        ("5 &lt; 6 &#38; x <y and y> z", "p", "5 < 6 & x <y and y> z"),
        ("[name](https://localhost/page)", "a[href='https://localhost/page']", "name"),
        ("![name](https://localhost/image.png)", "a[href='https://localhost/image.png']", "name"),
        ("text \ue0005\ue001 of $x$", "p >> .katex-html", "x"),
    ],
)
def test_markdown(tab, url: str, text: str, selector: str, content: str):
    assert render(tab, url, text).locator(selector).text_content() == content


@pytest.mark.parametrize("text", ["> " * 200 + "end", "- " * 3000 + "end", "*" * 3000 + "end", "[" * 3000 + "end"])
def test_deeply_nested_markdown_is_shown_as_it_was_written(tab, url: str, text: str):
    box = render(tab, url, text)
    assert "end" in box.text_content()
    assert box.locator(":scope" + " > *" * 20).count() == 0


def test_the_header_tells_which_page_and_which_mode(tab, url: str):
    tab.page.goto(f"{url}/#arena")
    tab.page.get_by_label("Model B").wait_for()
    assert tab.page.locator("header b").text_content() == "schoolhouse · Chat"
    assert tab.page.locator("header [aria-current=page]").all_text_contents() == ["Chat"]
    assert tab.page.locator("header [aria-current=true]").all_text_contents() == ["Arena"]
    tab.page.get_by_role("button", name="Board").click()
    tab.page.get_by_text("school board").wait_for()


def test_an_unknown_address_shows_the_chat(tab, url: str):
    tab.page.goto(f"{url}/#constructor")
    tab.page.get_by_label("Thinking budget: unlimited").wait_for()


def test_an_answer_has_a_reward_for_each_step(
    tab, start_server: Callable[..., RunningServer], sft_model: Callable[[str], Path]
):
    model = str(sft_model(TASK))
    options = ("--reward_model", model, "--task", "school:chain")
    server = start_server("serve", model, *options, ready_path="/health")
    open_chat(tab, server.url, 48)
    ask(tab)
    tab.page.get_by_text("Reward: ").click()
    tab.page.locator(".reward .token").first.wait_for()
    tab.page.get_by_role("button", name="New chat").click()  # a long answer may leave no room in the context
    tab.page.get_by_label("Samples").fill("3")
    ask(tab)
    tab.page.get_by_text("All samples").click()
    tab.page.get_by_text("total reward").first.wait_for()
    tab.page.get_by_role("button", name="New chat").click()
    tab.page.get_by_label("Samples").fill("1")
    tab.page.get_by_label("Search").select_option("best_of_n?samples=16&values=reward_model")
    ask(tab)
    tab.page.get_by_text("16 answers").wait_for()
    assert tab.page.locator(".error").count() == 0


def test_the_api_key_is_typed_once(tab, start_server: Callable[..., RunningServer], sft_model: Callable[[str], Path]):
    locked = start_server("serve", str(sft_model(TASK)), "--api_key", "open sesame", ready_path="/health")
    dialogs = []
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.accept("open sesame")))
    open_chat(tab, locked.url, 16)
    ask(tab)
    tab.page.locator(".assistant").wait_for()
    tab.page.locator("#stop").wait_for(state="hidden")
    assert dialogs == ["API key of this server:"]
    assert tab.page.locator(".error").count() == 0
    tab.console.clear()  # the browser itself notes a 401


def test_a_missing_api_key_is_an_error_on_the_page(
    tab, start_server: Callable[..., RunningServer], sft_model: Callable[[str], Path]
):
    locked = start_server("serve", str(sft_model(TASK)), "--api_key", "open sesame", ready_path="/health")
    tab.page.on("dialog", lambda dialog: dialog.dismiss())
    tab.page.goto(locked.url)
    tab.page.get_by_text("the API key is missing or wrong").wait_for()
    tab.console.clear()  # the browser itself notes a 401
