"""What the board answers: runs, numbers, samples token by token, and nothing from outside its folder."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from sample_runs import STEPS, grown
from schoolhouse.board.app import build_app, names_of
from schoolhouse.board.rollout_index import make
from schoolhouse.runs.manifest import flatten_numbers


@pytest.fixture
def ask(run_folder: Callable[..., Path]) -> Iterator[TestClient]:
    first = run_folder("one", STEPS)
    run_folder("deep/two", STEPS, seed=1)
    run_folder("<script>alert(1)</script>".replace("/", "_"), STEPS)
    make(first)
    with TestClient(build_app(first.parent), base_url="http://127.0.0.1") as client:
        yield client


def test_every_run_is_listed_with_its_state(ask: TestClient):
    rows = {row["name"]: row for row in ask.get("/api/runs").json()}
    assert {"one", "deep/two"} < rows.keys()
    assert (rows["one"]["state"], rows["one"]["done"], rows["one"]["of"]) == ("finished", 4, 4)


def test_a_damaged_run_is_listed_as_one(ask: TestClient, tmp_path: Path):
    (tmp_path / "runs" / "one" / "manifest.json").write_text("{")
    rows = {row["name"]: row for row in ask.get("/api/runs").json()}
    assert rows["one"]["state"] == "damaged"
    assert ask.get("/api/run", params={"name": "one"}).status_code == 422


def test_a_run_tells_its_config_numbers_and_signal(ask: TestClient):
    told = ask.get("/api/run", params={"name": "one"}).json()
    assert told["config"]["seed"] == 0
    assert told["metrics"] == ["reward", "sampled_tokens", "groups", "groups_with_signal"]
    assert told["signal"] == "In step 3 1 of 2 problems had answers of different reward, and taught."


@pytest.mark.parametrize(
    "against, x", [("step", [0, 1, 2, 3]), ("tokens", [10, 20, 30, 40]), ("seconds", [3, 6, 9, 12])]
)
def test_curves_of_several_runs(ask: TestClient, against: str, x: list[float]):
    asked = {"name": ["one", "deep/two"], "metric": ["reward", "nothing"], "against": against}
    one, two = ask.get("/api/curves", params=asked).json()
    assert (one["x"], one["y"]["reward"]) == (x, [0.0, 0.25, 0.5, 0.75])
    assert one["y"]["nothing"] == [None] * 4
    assert (one["seed"], two["seed"]) == (0, 1)


def test_rollouts_are_filtered_and_an_index_is_made_where_there_is_none(ask: TestClient):
    found = ask.get("/api/rollouts", params={"name": "one", "outcome": "right", "order": "length"}).json()
    assert (found["ready"], found["count"]) == (True, 3)
    assert "logprob" not in found["rows"][0]
    for _ in range(100):
        other = ask.get("/api/rollouts", params={"name": "deep/two"}).json()
        if other["ready"]:
            break
        time.sleep(0.1)
    assert other["count"] == 7


def test_samples_are_there_as_soon_as_the_index_is(ask: TestClient):
    """A link to them may be the first that anybody opens of a run."""
    asked = {"name": "deep/two", "step": 0, "problem": "a"}
    for _ in range(100):
        found = ask.get("/api/group", params=asked).json()
        if found["ready"]:
            break
        time.sleep(0.1)
    assert [row["reward"] for row in found["rows"]] == [0.0, 1.0]
    missing = ask.get("/api/group", params={**asked, "problem": "z"})
    assert missing.status_code == 404
    assert "there are no samples of this problem in step 0" in missing.text


def test_samples_are_told_token_by_token(ask: TestClient):
    found = ask.get("/api/group", params={"name": "one", "step": 0, "problem": "a"}).json()
    first, second = found["rows"]
    assert [first["advantage"], second["advantage"]] == [-0.5, 0.5]
    assert [kind for _, kind, _ in second["pieces"]] == ["prompt", "prompt", "answer", "answer"]
    assert [logprob for _, _, logprob in second["pieces"]] == [None, None, -0.5, -0.5]
    assert [one["step"] for one in found["across"]] == [0, 1]


@pytest.mark.parametrize("name", ["..", "../..", "/etc", "one/../../..", "deep", "one/rollouts", "nowhere", "a\0b"])
def test_nothing_outside_the_folder_is_read(ask: TestClient, name: str):
    for path in ("/api/run", "/api/rollouts"):
        assert ask.get(path, params={"name": name}).status_code == 404


@pytest.mark.parametrize(
    "path", ["/web/../app.py", "/web/%2e%2e/app.py", "/web/..%2fboard/app.py", "/api/figure/..%2fx.png"]
)
def test_pages_come_from_their_folder_alone(ask: TestClient, path: str):
    assert ask.get(path).status_code == 404


def test_pages_of_others_and_strangers_names_are_refused(ask: TestClient):
    assert ask.get("/api/runs", headers={"Origin": "http://evil.test"}).status_code == 403
    assert ask.get("/api/runs", headers={"Host": "evil.test"}).status_code == 421
    assert ask.get("/api/runs", headers={"Origin": "http://127.0.0.1"}).status_code == 200


def test_a_page_runs_no_script_that_did_not_come_with_it(ask: TestClient):
    page = ask.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe-eval" not in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_differences_of_two_configs(ask: TestClient):
    lines = ask.get("/api/difference", params={"one": "one", "other": "deep/two"}).json()
    assert lines == ["  seed: 0 there, 1 now"]


def test_claims_with_their_figures(run_folder: Callable[..., Path]):
    board = build_app(run_folder("one").parent, claims=Path(__file__).parents[2] / "docs" / "claims")
    with TestClient(board, base_url="http://127.0.0.1") as client:
        assert "grpo" in {claim["claim"] for claim in client.get("/api/claims").json()}
        assert client.get("/api/figure/grpo.png").headers["content-type"] == "image/png"
        assert client.get("/api/figure/nothing.png").status_code == 404


def test_numbers_inside_are_named_by_dots():
    assert flatten_numbers({"a": 1, "b": {"c": 2.5, "d": {"e": 3}}, "f": "text", "g": True}) == {"a": 1, "b.c": 2.5, "b.d.e": 3}
    assert names_of([{"step": 0, "a": 1}, {"step": 1, "b": 2}]) == ["a", "b"]


def test_search_trees_are_listed_and_told_whole(ask: TestClient, run_folder: Callable[..., Path]):
    run_folder("searched", trees=[grown("a"), grown("b")])
    assert ask.get("/api/run", params={"name": "searched"}).json()["trees"] == [2]
    assert ask.get("/api/run", params={"name": "one"}).json()["trees"] == []
    asked = {"name": "searched", "step": 2}
    found = ask.get("/api/trees", params=asked).json()
    assert found["steps"] == [2]
    assert [(row["question"], row["thoughts"], "tree" in row) for row in found["rows"]] == [
        ("what is a?", 3, False),
        ("what is b?", 3, False),
    ]
    assert ask.get("/api/tree", params={**asked, "row": 1}).json() == grown("b")
    assert ask.get("/api/tree", params={**asked, "row": 2}).status_code == 404
    assert ask.get("/api/trees", params={**asked, "step": 7}).json()["rows"] == []
