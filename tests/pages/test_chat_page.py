"""The page that talks, in a real browser, with a model that was taught to say what is dangerous."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from listening import listening

TASK = "school:chain?steps=2&hands=full=100"
QUESTION = "Start at 7. Add 5. Take 3."


@pytest.fixture(scope="module")
def url(taught: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run = taught(TASK).parents[1]
    votes = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    with listening("serve", str(run), "--votes", str(votes), ready="/health") as server:
        yield server.url


def begin(tab, url: str, length: int, mode: str = "") -> None:
    """The page, with answers of at most so many tokens."""
    tab.page.goto(f"{url}/{mode}")
    tab.page.get_by_label("tokens at most").fill(str(length))


def say(tab, text: str = QUESTION) -> None:
    tab.page.get_by_label("what you say").fill(text)
    tab.page.keyboard.press("Enter")


def test_an_answer_is_streamed_and_the_next_one_shows_its_probabilities(tab, url: str):
    begin(tab, url, 32)
    say(tab)
    tab.page.locator(".assistant").nth(0).wait_for()
    tab.page.locator("#stop").wait_for(state="hidden")
    tab.page.get_by_label("token probabilities").check()
    tab.page.get_by_label("what you say").fill(QUESTION)
    tab.page.get_by_role("button", name="send").click()
    tab.page.locator(".assistant .tok").first.wait_for()
    assert "%" in tab.page.locator(".assistant .tok").first.get_attribute("title")
    assert tab.page.locator(".error").count() == 0
    assert all(asked.startswith((url, "data:")) for asked in tab.asked)


def test_samples_vote(tab, url: str):
    begin(tab, url, 24)
    tab.page.get_by_label("samples").fill("4")
    say(tab)
    tab.page.get_by_text("the most frequent of 4 answers").wait_for()
    tab.page.get_by_text("all answers").click()
    tab.page.locator(".votes details").first.wait_for()


def test_what_has_no_blank_in_it_is_broken_and_not_wider_than_the_page(tab, url: str):
    said = {"content": "x" * 400 + "\n\n$$" + "y" * 400 + "$$", "reasoning_content": "z" * 400}
    found = {"choices": [{"message": said}, {"message": said}]}
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(json=found))
    begin(tab, url, 24)
    tab.page.get_by_label("samples").fill("2")
    say(tab, "w" * 400)
    tab.page.get_by_text("all answers").click()
    tab.page.locator(".votes details summary").first.click()
    tab.page.locator(".votes .katex-display").first.wait_for()


def test_a_search_tells_its_cost(tab, url: str):
    begin(tab, url, 24)
    tab.page.get_by_label("search").select_option("vote?samples=16")
    say(tab)
    tab.page.get_by_text("16 answers").wait_for()


def test_a_blind_duel_feeds_the_leaderboard(tab, url: str):
    begin(tab, url, 24, "#duel")
    say(tab)
    tab.page.get_by_role("button", name="left").click()
    tab.page.get_by_text("left was").wait_for()
    tab.page.locator("#board td.num").nth(1).wait_for()
    say(tab)  # and the next one
    tab.page.get_by_role("button", name="right").click()
    tab.page.get_by_text("left was").nth(1).wait_for()


def test_an_answer_that_comes_late_is_no_part_of_the_next_conversation(tab, url: str):
    late: list = []
    tab.page.route("**/v1/chat/completions", lambda route: late.append(route))
    begin(tab, url, 24)
    with tab.page.expect_request("**/v1/chat/completions"):
        say(tab, "old question")
    tab.page.get_by_role("button", name="start anew").click()
    tab.page.locator("#stop").wait_for(state="hidden")
    with tab.page.expect_request("**/v1/chat/completions") as asked:
        say(tab, "new question")
    assert [turn["content"] for turn in asked.value.post_data_json["messages"]] == ["new question"]
    tab.page.unroute("**/v1/chat/completions")


def test_an_answer_that_failed_is_not_remembered(tab, url: str):
    full = {"error": {"message": "too many wait"}}
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, json=full))
    begin(tab, url, 24)
    say(tab, "first")
    tab.page.get_by_text("too many wait").wait_for()
    tab.console.clear()  # the browser complains of the status, as it should
    tab.page.locator("#stop").wait_for(state="hidden")
    tab.page.unroute("**/v1/chat/completions")
    with tab.page.expect_request("**/v1/chat/completions") as asked:
        say(tab, "second")
    assert [turn["content"] for turn in asked.value.post_data_json["messages"]] == ["second"]
    tab.page.locator("#stop").wait_for(state="hidden")


def test_a_checkpoint_that_went_is_offered_no_more(tab, url: str):
    names = iter([["a@1", "a@2"], ["a@2", "a@3"]])
    here: list = []

    def listed(route) -> None:
        here[:] = next(names, here)
        route.fulfill(json={"data": [{"id": name, "max_model_len": 128} for name in here]})

    tab.page.clock.install()
    tab.page.route("**/v1/models?*", listed)
    tab.page.goto(url)
    tab.page.get_by_label("model").locator("option", has_text="a@1").wait_for(state="attached")
    tab.page.clock.run_for(11_000)
    tab.page.get_by_label("model").locator("option", has_text="a@3").wait_for(state="attached")
    assert tab.page.get_by_label("model").input_value() == "a@2"


def test_text_goes_on(tab, url: str):
    begin(tab, url, 16, "#text")
    say(tab, "7+5=2 2-3=")
    tab.page.locator("article.said span").nth(1).wait_for()
    tab.page.locator("#stop").wait_for(state="hidden")
    assert tab.page.locator("article.said").text_content().startswith("7+5=2 2-3=")


def test_examples_stand_in_front_of_every_text(tab, url: str):
    begin(tab, url, 16, "#text")
    tab.page.get_by_label("examples, in front of every text").fill("1+1=2\n2+2=4\n")
    tab.page.get_by_label("one line only").check()
    with tab.page.expect_request("**/v1/completions") as asked:
        say(tab, "3+3=")
    assert asked.value.post_data_json["prompt"] == "1+1=2\n2+2=4\n3+3="
    assert asked.value.post_data_json["stop"] == ["\n"]
    tab.page.locator("#stop").wait_for(state="hidden")
    assert tab.page.locator(".error").count() == 0


def test_what_a_model_says_never_runs(tab, url: str):
    """The cleaner is asked directly: a tiny model cannot be made to say this."""
    tab.page.goto(url)
    tab.page.get_by_label("what you say").wait_for()
    evil = "$x^2$ <img src=x onerror=alert(1)><script>alert(2)</script> [go](javascript:alert(3)) <svg onload=alert(4)>"
    found = tab.page.evaluate(
        """async (said) => {
            const box = (await import("/web/chat.js")).rendered(said);
            document.getElementById("main").append(box);
            return box.innerHTML;
        }""",
        evil,
    )
    assert "katex" in found
    for word in ("<img", "<script", "javascript:", "<svg onload", "onerror"):
        assert word not in found


def test_the_judge_says_what_it_holds_of_each_step(tab, taught: Callable[[str], Path]):
    model = str(taught(TASK))
    with listening("serve", model, "--judge", model, "--task", "school:chain", ready="/health") as judged:
        begin(tab, judged.url, 48)
        say(tab)
        tab.page.get_by_text("the judge gives it").click()
        tab.page.locator(".judged .tok").first.wait_for()
        tab.page.get_by_role("button", name="start anew").click()  # what it babbled may leave no room for more
        tab.page.get_by_label("samples").fill("3")
        say(tab)
        tab.page.get_by_text("all answers").click()
        tab.page.get_by_text("in all").first.wait_for()
        tab.page.get_by_role("button", name="start anew").click()
        tab.page.get_by_label("samples").fill("1")
        tab.page.get_by_label("search").select_option("best_of_n?samples=16&values=judge")
        say(tab)
        tab.page.get_by_text("16 answers").wait_for()
        assert tab.page.locator(".error").count() == 0


def test_a_key_is_asked_for_once_and_typed(tab, taught: Callable[[str], Path]):
    with listening("serve", str(taught(TASK)), "--key", "open sesame", ready="/health") as locked:
        asked = []
        tab.page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept("open sesame")))
        begin(tab, locked.url, 16)
        say(tab)
        tab.page.locator(".assistant").wait_for()
        tab.page.locator("#stop").wait_for(state="hidden")
        assert len(asked) == 1
        assert tab.page.locator(".error").count() == 0
    tab.console.clear()  # the browser itself notes a 401
