"""The board in a real browser: every view opened and clicked through, light and dark, wide and narrow."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from boards import STEPS, grown, keep_model, line, write_run
from listening import listening

EVIL = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
CLAIMS = Path(__file__).parents[2] / "docs" / "claims"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A board of two honest runs, and one in which every text is an attack."""
    folder = tmp_path_factory.mktemp("board")
    one = write_run(folder / "runs" / "one", STEPS, [grown("a")])
    keep_model(one, 2)
    keep_model(one, 4)
    write_run(folder / "runs" / "two", STEPS, seed=1)
    write_run(folder / "runs" / "unseen", STEPS, seed=2)
    bad = line(EVIL, 0, None, question=EVIL, thought=EVIL, answer=EVIL, reason=EVIL, finish=EVIL)
    write_run(folder / "runs" / "<b onclick=x>bad", {0: [bad]}, [grown(EVIL, EVIL)], task=EVIL)
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    with listening("board", str(folder / "runs"), "--claims", str(CLAIMS), environment=cache) as board:
        yield board.url


def test_from_the_list_to_a_sample_token_by_token(tab, url: str):
    tab.page.goto(url)
    tab.page.get_by_role("link", name="one", exact=True).click()
    tab.page.locator(".plot canvas").nth(1).wait_for()
    tab.page.get_by_role("link", name="rollouts").click()
    tab.page.locator("tr.go").nth(6).wait_for()
    tab.page.get_by_label("verdict").select_option("wrong")
    tab.page.get_by_text("3 rollouts").wait_for()
    tab.page.locator("tr.go").first.focus()
    tab.page.keyboard.press("Enter")
    tab.page.locator(".samples article").nth(1).wait_for()
    tab.page.get_by_label("tokens coloured by").select_option("surprise")
    tab.page.locator(".tok[style*=color-mix]").first.wait_for()
    assert tab.page.locator(".samples b").all_text_contents() == ["score 0", "score 0"]
    assert all(asked.startswith((url, "data:")) for asked in tab.asked)


def test_a_link_to_samples_waits_for_the_index(tab, url: str):
    tab.page.goto(f"{url}/#/group?name=unseen&step=0&problem=a")
    tab.page.locator(".samples article").nth(1).wait_for()


def test_tokens_in_the_eyes_of_a_checkpoint(tab, url: str):
    tab.page.goto(f"{url}/#/group?name=one&step=0&problem=a")
    tab.page.get_by_label("tokens coloured by").select_option("entropy")
    tab.page.get_by_label("kept at step").select_option("4")
    tab.page.wait_for_url("**checkpoint=4**")
    tab.page.locator(".tok[title*='entropy']").first.wait_for()
    assert tab.page.get_by_label("kept at step").input_value() == "4"


def test_from_a_point_of_a_curve_to_its_samples(tab, url: str):
    tab.page.goto(f"{url}/#/run?name=one&metric=reward")
    over = tab.page.locator(".u-over")
    over.wait_for()
    box = over.bounding_box()
    tab.page.mouse.move(box["x"] + 2, box["y"] + 40)
    tab.page.mouse.click(box["x"] + 2, box["y"] + 40)
    tab.page.get_by_text("4 rollouts").wait_for()
    assert re.search(r"first=0&last=0", tab.page.url)


def test_a_search_tree_unfolds_along_the_way_taken(tab, url: str):
    tab.page.goto(f"{url}/#/run?name=one")
    tab.page.get_by_role("link", name="search trees").click()
    tab.page.locator("tr.go").first.click()
    tab.page.get_by_text("1,234 tokens, 3 thoughts; answered").wait_for()
    tab.page.locator(".tree .taken").get_by_text("24").wait_for()
    tab.page.locator(".tree summary").first.click()
    tab.page.locator(".tree .taken").get_by_text("24").wait_for(state="hidden")


def test_two_runs_side_by_side_with_a_band_and_their_difference(tab, url: str):
    tab.page.goto(url)
    tab.page.get_by_label("choose one").check()
    tab.page.get_by_label("choose two").check()
    tab.page.get_by_role("button", name="side by side").click()
    tab.page.get_by_label("seeds of one config").select_option("1")
    tab.page.get_by_text("one and 1 more").first.wait_for()
    tab.page.goto(f"{url}/#/difference?name=one&name=two")
    tab.page.get_by_text("seed: 0 there, 1 now").wait_for()


def test_seeds_are_joined_where_they_are_and_not_by_number(tab, url: str):
    tab.page.goto(url)
    between = "import('/web/board.js').then((m) => m.between({ x: [0, 2, 4], y: [0, null, 8] }, [0, 1, 2, 5]))"
    assert tab.page.evaluate(between) == [0, 2, 4, None]


def test_claims_have_their_verdicts_and_figures(tab, url: str):
    tab.page.goto(f"{url}/#/claims")
    tab.page.get_by_role("heading", name="grpo PASS").wait_for()
    figure = tab.page.get_by_alt_text("figure of claim grpo", exact=True)
    figure.scroll_into_view_if_needed()
    tab.page.wait_for_timeout(500)
    assert figure.evaluate("image => image.naturalWidth") > 100


def test_markup_in_a_run_is_text_in_every_view(tab, url: str):
    name = "<b onclick=x>bad"
    for view in ("", f"#/run?name={name}", f"#/rollouts?name={name}"):
        tab.page.goto(f"{url}/{view}")
        tab.page.get_by_text(name).first.wait_for()
    tab.page.locator("tr.go").first.click()
    tab.page.locator(".samples article").wait_for()
    assert tab.page.locator("main img, main script, main b[onclick]").count() == 0
    assert EVIL in tab.page.locator("h1").text_content()
    assert "broken" not in tab.page.title()
    tab.page.goto(f"{url}/#/trees?name={name}&step=2")
    tab.page.locator("tr.go").first.click()
    tab.page.locator(".tree").wait_for()
    assert tab.page.locator("main img, main script, main b[onclick]").count() == 0
    assert EVIL in tab.page.locator(".tree").text_content()
    assert "broken" not in tab.page.title()


def test_a_late_answer_is_not_drawn_over_the_view_that_is_looked_at(tab, url: str):
    held = []
    tab.page.route("**/api/curves?*", lambda route: held.append(route))  # Playwright cannot wrap a bound method
    with tab.page.expect_request("**/api/curves?*"):
        tab.page.goto(f"{url}/#/run?name=one&metric=reward")
    tab.page.goto(f"{url}/#/rollouts?name=one")
    tab.page.locator("tr.go").nth(6).wait_for()
    with tab.page.expect_response("**/api/curves?*") as answered:
        held[0].continue_()
    answered.value.finished()
    tab.page.evaluate("() => new Promise((done) => setTimeout(done, 50))")
    assert tab.page.locator("tr.go").count() == 7
    assert tab.page.locator(".plot").count() == 0


def test_what_is_not_there_is_said(tab, url: str):
    tab.page.goto(f"{url}/#/run?name=nothing")
    tab.page.get_by_text("there is no run `nothing` here").wait_for()
    tab.console.clear()  # the browser itself notes a 404
    assert json.dumps(tab.asked)
