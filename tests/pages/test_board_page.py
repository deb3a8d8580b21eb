"""The board in a real browser: every view opened and clicked through, light and dark, wide and narrow."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live_server import RunningServer, running_server
from sample_runs import ROLLOUTS, rollout_row, tree_row, write_checkpoint, write_run

EVIL = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
CLAIMS = Path(__file__).parents[2] / "docs" / "claims"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A board of ordinary runs, and one in which every text is an attack."""
    folder = tmp_path_factory.mktemp("board")
    one = write_run(folder / "runs" / "one", ROLLOUTS, [tree_row("a")])
    write_checkpoint(one, 2)
    write_checkpoint(one, 4)
    write_run(folder / "runs" / "two", ROLLOUTS, seed=1)
    write_run(folder / "runs" / "unindexed", ROLLOUTS, seed=2)
    bad = rollout_row(EVIL, 0, None, question=EVIL, thought=EVIL, answer=EVIL, reason=EVIL, finish_reason=EVIL)
    write_run(folder / "runs" / "<b onclick=x>bad", {0: [bad]}, [tree_row(EVIL, EVIL)], task=EVIL)
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    with running_server("board", str(folder / "runs"), "--claims", str(CLAIMS), environment=cache) as board:
        yield board.url


def test_from_the_list_to_a_sample_token_by_token(tab, url: str):
    tab.page.goto(url)
    tab.page.get_by_role("link", name="one", exact=True).click()
    tab.page.locator(".plot canvas").nth(1).wait_for()
    tab.page.get_by_role("link", name="Rollouts").click()
    tab.page.locator("tr.opens").nth(6).wait_for()
    tab.page.get_by_label("Correctness").select_option("incorrect")
    tab.page.get_by_text("3 rollouts").wait_for()
    tab.page.locator("tr.opens").first.focus()
    tab.page.keyboard.press("Enter")
    tab.page.locator(".samples article").nth(1).wait_for()
    tab.page.get_by_label("Colour tokens by").select_option("surprise")
    tab.page.locator(".token[style*=color-mix]").first.wait_for()
    assert tab.page.locator(".samples b").all_text_contents() == ["Reward 0", "Reward 0"]
    assert all(requested.startswith((url, "data:")) for requested in tab.requests)


def test_a_link_to_samples_waits_for_the_index(tab, url: str):
    tab.page.goto(f"{url}/#/group?name=unindexed&step=0&problem=a")
    tab.page.locator(".samples article").nth(1).wait_for()


def test_tokens_under_a_checkpoint(tab, url: str):
    tab.page.goto(f"{url}/#/group?name=one&step=0&problem=a")
    tab.page.get_by_label("Colour tokens by").select_option("entropy")
    tab.page.get_by_label("Checkpoint at step").select_option("4")
    tab.page.wait_for_url("**checkpoint=4**")
    tab.page.locator(".token[title*='entropy']").first.wait_for()
    assert tab.page.get_by_label("Checkpoint at step").input_value() == "4"


def test_from_a_point_of_a_curve_to_its_samples(tab, url: str):
    tab.page.goto(f"{url}/#/run?name=one&metric=reward")
    over = tab.page.locator(".u-over")
    over.wait_for()
    box = over.bounding_box()
    tab.page.mouse.move(box["x"] + 2, box["y"] + 40)
    tab.page.mouse.click(box["x"] + 2, box["y"] + 40)
    tab.page.get_by_text("4 rollouts").wait_for()
    assert re.search(r"min_step=0&max_step=0", tab.page.url)


def test_a_search_tree_unfolds_along_the_path_taken(tab, url: str):
    tab.page.goto(f"{url}/#/run?name=one")
    tab.page.get_by_role("link", name="Search trees").click()
    tab.page.locator("tr.opens").first.click()
    tab.page.get_by_text("1,234 tokens, 3 thoughts; answered").wait_for()
    tab.page.locator(".tree .chosen").get_by_text("24").wait_for()
    tab.page.locator(".tree summary").first.click()
    tab.page.locator(".tree .chosen").get_by_text("24").wait_for(state="hidden")


def test_two_runs_side_by_side_and_the_difference_of_their_configs(tab, url: str):
    tab.page.goto(url)
    tab.page.get_by_label("Select one").check()
    tab.page.get_by_label("Select two").check()
    tab.page.get_by_role("button", name="Side by side").click()
    tab.page.get_by_label("Seeds of one config").select_option("1")
    tab.page.get_by_text("one and 1 more").first.wait_for()
    tab.page.goto(f"{url}/#/difference?name=one&name=two")
    tab.page.get_by_text("seed: 0 -> 1").wait_for()


def test_seeds_are_joined_where_they_are_and_not_by_number(tab, url: str):
    tab.page.goto(url)
    line = "{ x: [0, 2, 4], y: [0, null, 8] }"
    interpolate = f"import('/web/board.js').then((board) => board.interpolate({line}, [0, 1, 2, 5]))"
    assert tab.page.evaluate(interpolate) == [0, 2, 4, None]


def test_claims_have_verdicts_and_figures(tab, url: str):
    tab.page.goto(f"{url}/#/claims")
    tab.page.get_by_role("heading", name="grpo PASS").wait_for()
    figure = tab.page.get_by_alt_text("Figure of claim grpo", exact=True)
    figure.scroll_into_view_if_needed()
    tab.page.wait_for_timeout(500)
    assert figure.evaluate("image => image.naturalWidth") > 100


def test_the_key_of_a_board_is_typed_once_and_figures_are_shown(
    tab, start_server: Callable[..., RunningServer], tmp_path: Path
):
    (tmp_path / "runs").mkdir()
    key = {"SCHOOLHOUSE_API_KEY": "open sesame"}
    board = start_server("board", str(tmp_path / "runs"), "--claims", str(CLAIMS), environment=key)
    dialogs = []
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.accept("open sesame")))
    tab.page.goto(f"{board.url}/#/claims")
    figure = tab.page.locator("img[src^=data]").first
    figure.wait_for()
    assert figure.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") > 0
    assert dialogs == ["API key of this server:"]
    tab.console.clear()  # the response 401


def test_markup_in_a_run_is_text_in_every_view(tab, url: str):
    name = "<b onclick=x>bad"
    for view in ("", f"#/run?name={name}", f"#/rollouts?name={name}"):
        tab.page.goto(f"{url}/{view}")
        tab.page.get_by_text(name).first.wait_for()
    tab.page.locator("tr.opens").first.click()
    tab.page.locator(".samples article").wait_for()
    assert tab.page.locator("main img, main script, main b[onclick]").count() == 0
    assert EVIL in tab.page.locator("h1").text_content()
    assert "broken" not in tab.page.title()
    tab.page.goto(f"{url}/#/trees?name={name}&step=2")
    tab.page.locator("tr.opens").first.click()
    tab.page.locator(".tree").wait_for()
    assert tab.page.locator("main img, main script, main b[onclick]").count() == 0
    assert EVIL in tab.page.locator(".tree").text_content()
    assert "broken" not in tab.page.title()


def test_a_late_answer_is_not_drawn_over_the_current_view(tab, url: str):
    held = []
    tab.page.route("**/api/curves?*", lambda route: held.append(route))  # Playwright cannot wrap a bound method
    with tab.page.expect_request("**/api/curves?*"):
        tab.page.goto(f"{url}/#/run?name=one&metric=reward")
    tab.page.goto(f"{url}/#/rollouts?name=one")
    tab.page.locator("tr.opens").nth(6).wait_for()
    with tab.page.expect_response("**/api/curves?*") as answered:
        held[0].continue_()
    answered.value.finished()
    tab.page.evaluate("() => new Promise((done) => setTimeout(done, 50))")
    assert tab.page.locator("tr.opens").count() == 7
    assert tab.page.locator(".plot").count() == 0


def test_a_run_that_does_not_exist(tab, url: str):
    tab.page.goto(f"{url}/#/run?name=nothing")
    tab.page.get_by_text("unknown run `nothing`").wait_for()
    assert len(tab.console) == 1  # the browser itself notes the 404
    tab.console.clear()


@pytest.mark.parametrize("view", ["", "#/nothing", "#/constructor", "#/__proto__"])
def test_an_unknown_address_shows_the_runs(tab, url: str, view: str):
    tab.page.goto(f"{url}/{view}")
    tab.page.get_by_role("heading", name="Runs").wait_for()


def test_the_header_tells_which_page_and_which_view(tab, url: str):
    tab.page.goto(f"{url}/#/rollouts?name=one")
    tab.page.locator("tr.opens").first.wait_for()
    assert tab.page.locator("header b").text_content() == "schoolhouse · Board"
    assert tab.page.locator("header [aria-current=page]").all_text_contents() == ["Board"]
    assert tab.page.locator("header [aria-current=true]").all_text_contents() == ["Runs"]
    tab.page.get_by_role("button", name="Chat").click()
    tab.page.get_by_text("school chat MODEL --web").wait_for()


def test_an_empty_folder_says_how_to_begin(tab, start_server: Callable[..., RunningServer], tmp_path: Path):
    empty = start_server("board", str(tmp_path))
    tab.page.goto(empty.url)
    tab.page.get_by_text("No runs in this folder yet").wait_for()


def test_requests_at_the_same_time_ask_once_and_a_wrong_key_is_named(
    tab, start_server: Callable[..., RunningServer], tmp_path: Path
):
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name)
    board = start_server("board", str(tmp_path / "runs"), environment={"SCHOOLHOUSE_API_KEY": "open sesame"})
    dialogs, keys = [], ["sesame", "open sesame"]
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.accept(keys.pop(0))))
    tab.page.goto(f"{board.url}/#/run?name=a&name=b")
    tab.page.locator(".plot").first.wait_for()
    assert dialogs == ["API key of this server:", "This API key is wrong. API key of this server:"]
    tab.console.clear()  # the responses 401
