"""The board's API: runs, metrics, samples token by token; nothing outside its folder is served."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sample_runs import ROLLOUTS, tree_row
from schoolhouse.board.app import build_app, group_summary, metric_names
from schoolhouse.board.rollout_index import update_index
from schoolhouse.runs.manifest import flatten_numbers


@pytest.fixture
def client(run_folder: Callable[..., Path]) -> Iterator[TestClient]:
    """A board of three runs, of which the first is indexed."""
    first = run_folder("one", ROLLOUTS)
    run_folder("deep/two", ROLLOUTS, seed=1)
    run_folder("<script>alert(1)</script>".replace("/", "_"), ROLLOUTS)
    update_index(first)
    with TestClient(build_app(first.parent), base_url="http://127.0.0.1") as client:
        yield client


def get_when_indexed(client: TestClient, path: str, query: dict[str, Any]) -> Any:
    for _ in range(100):
        body = client.get(path, params=query).json()
        if body["indexed"]:
            return body
        time.sleep(0.1)
    raise AssertionError("the index was not finished within ten seconds")


def test_runs_are_listed_with_their_state(client: TestClient):
    rows = {row["name"]: row for row in client.get("/api/runs").json()}
    assert {"one", "deep/two"} < rows.keys()
    assert (rows["one"]["state"], rows["one"]["steps_done"], rows["one"]["steps_total"]) == ("finished", 4, 4)


def test_a_damaged_run_is_listed_as_damaged(client: TestClient, tmp_path: Path):
    (tmp_path / "runs" / "one" / "manifest.json").write_text("{")
    rows = {row["name"]: row for row in client.get("/api/runs").json()}
    assert rows["one"]["state"] == "damaged"
    assert client.get("/api/run", params={"name": "one"}).status_code == 422


def test_a_run_has_config_metrics_and_a_group_summary(client: TestClient):
    run = client.get("/api/run", params={"name": "one"}).json()
    assert run["config"]["seed"] == 0
    assert run["metrics"] == ["reward", "sampled_tokens", "groups", "groups_with_signal"]
    assert run["group_summary"] == "Step 3: 1 of 2 groups have different rewards."


def test_the_group_summary_counts_the_groups_without_a_signal():
    line = {"step": 5, "groups": 9, "groups_with_signal": 4, "all_correct": 3, "all_incorrect": 2, "all_truncated": 1}
    summary = "Step 5: 4 of 9 groups have different rewards; 3 all correct; 2 all incorrect; 1 all truncated."
    assert group_summary([line, {"step": 6, "groups": 0}]) == summary
    assert group_summary([]) == ""


@pytest.mark.parametrize(
    "x_axis, x", [("step", [0, 1, 2, 3]), ("tokens", [10, 20, 30, 40]), ("seconds", [3, 6, 9, 12])]
)
def test_curves_of_several_runs(client: TestClient, x_axis: str, x: list[float]):
    query = {"name": ["one", "deep/two"], "metric": ["reward", "nothing"], "x_axis": x_axis}
    one, two = client.get("/api/curves", params=query).json()
    assert (one["x"], one["y"]["reward"]) == (x, [0.0, 0.25, 0.5, 0.75])
    assert one["y"]["nothing"] == [None] * 4
    assert (one["seed"], two["seed"]) == (0, 1)


def test_rollouts_are_filtered_and_sorted(client: TestClient):
    query = {"name": "one", "correctness": "correct", "sort_by": "completion_tokens"}
    found = client.get("/api/rollouts", params=query).json()
    assert (found["indexed"], found["total"]) == (True, 3)
    assert "logprob" not in found["rows"][0]


def test_a_missing_index_is_made(client: TestClient):
    assert get_when_indexed(client, "/api/rollouts", {"name": "deep/two"})["total"] == 7


def test_a_group_of_a_run_without_an_index_appears_once_it_is_indexed(client: TestClient):
    """A link to samples may be the first page of a run that is opened."""
    query = {"name": "deep/two", "step": 0, "problem": "a"}
    assert [row["reward"] for row in get_when_indexed(client, "/api/group", query)["rows"]] == [0.0, 1.0]
    missing = client.get("/api/group", params={**query, "problem": "z"})
    assert missing.status_code == 404
    assert "no samples of problem `z` in step 0" in missing.text


def test_a_group_is_shown_token_by_token(client: TestClient):
    found = client.get("/api/group", params={"name": "one", "step": 0, "problem": "a"}).json()
    first, second = found["rows"]
    assert [first["advantage"], second["advantage"]] == [-0.5, 0.5]
    assert [token_type for _, token_type, _ in second["tokens"]] == ["prompt", "prompt", "answer", "answer"]
    assert [logprob for _, _, logprob in second["tokens"]] == [None, None, -0.5, -0.5]
    assert [line["step"] for line in found["history"]] == [0, 1]


@pytest.mark.parametrize("name", ["..", "../..", "/etc", "one/../../..", "deep", "one/rollouts", "nowhere", "a\0b"])
def test_nothing_outside_the_folder_is_read(client: TestClient, name: str):
    for path in ("/api/run", "/api/rollouts"):
        assert client.get(path, params={"name": name}).status_code == 404


@pytest.mark.parametrize(
    "path", ["/web/../app.py", "/web/%2e%2e/app.py", "/web/..%2fboard/app.py", "/api/figure/..%2fx.png"]
)
def test_no_file_outside_the_page_folder_is_served(client: TestClient, path: str):
    assert client.get(path).status_code == 404


def test_other_origins_and_host_names_are_refused(client: TestClient):
    assert client.get("/api/runs", headers={"Origin": "http://evil.test"}).status_code == 403
    assert client.get("/api/runs", headers={"Host": "evil.test"}).status_code == 421
    assert client.get("/api/runs", headers={"Origin": "http://127.0.0.1"}).status_code == 200


def test_a_board_can_have_a_key_and_other_names(run_folder: Callable[..., Path]):
    app = build_app(run_folder("one").parent, "0.0.0.0", api_key="sesame", allowed_hosts=("board.example.org",))
    with TestClient(app, base_url="http://board.example.org") as client:
        assert client.get("/").status_code == 200  # the page asks for the key
        assert client.get("/api/runs").status_code == 401
        assert client.get("/api/runs", headers={"Authorization": "Bearer sesame"}).status_code == 200
        assert client.get("/", headers={"Host": "evil.test"}).status_code == 421


def test_no_get_loads_a_model(client: TestClient):
    """An <img> of another site can send a GET without an Origin, but no POST."""
    query = {"name": "one", "step": 0, "problem": "a"}
    assert client.get("/api/rescore", params=query).status_code == 405
    refused = client.post("/api/rescore", params=query, headers={"Origin": "http://evil.test"})
    assert refused.status_code == 403
    assert client.get("/api/runs", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_the_page_loads_files_of_its_own_server_only(client: TestClient):
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe-eval" not in page.headers["content-security-policy"]
    loaded = re.findall(r'<(?!a\b)[^>]*\b(?:src|href)="([^"]*)"', page.text)
    assert "/web/board.js" in loaded
    assert all(url.startswith(("/web/", "data:")) for url in loaded)
    assert set(re.findall(r'\bhref="(https?:[^"]*)"', page.text)) <= {"http://127.0.0.1:8000/"}  # to the chat page


def test_the_difference_of_two_configs(client: TestClient):
    lines = client.get("/api/config_diff", params={"old": "one", "new": "deep/two"}).json()
    assert lines == ["  seed: 0 -> 1"]


def test_claims_and_their_figures(run_folder: Callable[..., Path]):
    board = build_app(run_folder("one").parent, claims=Path(__file__).parents[2] / "docs" / "claims")
    with TestClient(board, base_url="http://127.0.0.1") as client:
        assert "grpo" in {claim["claim"] for claim in client.get("/api/claims").json()}
        assert client.get("/api/figure/grpo.png").headers["content-type"] == "image/png"
        assert client.get("/api/figure/nothing.png").status_code == 404


def test_nested_metrics_have_dotted_names():
    line = {"a": 1, "b": {"c": 2.5, "d": {"e": 3}}, "f": "text", "g": True}
    assert flatten_numbers(line) == {"a": 1, "b.c": 2.5, "b.d.e": 3}
    assert metric_names([{"step": 0, "a": 1}, {"step": 1, "b": 2}]) == ["a", "b"]


def test_search_trees(client: TestClient, run_folder: Callable[..., Path]):
    run_folder("searched", trees=[tree_row("a"), tree_row("b")])
    assert client.get("/api/run", params={"name": "searched"}).json()["tree_steps"] == [2]
    assert client.get("/api/run", params={"name": "one"}).json()["tree_steps"] == []
    query = {"name": "searched", "step": 2}
    found = client.get("/api/trees", params=query).json()
    assert found["steps"] == [2]
    assert [(row["question"], row["thoughts"], "tree" in row) for row in found["rows"]] == [
        ("what is a?", 3, False),
        ("what is b?", 3, False),
    ]
    assert client.get("/api/tree", params={**query, "row": 1}).json() == tree_row("b")
    assert client.get("/api/tree", params={**query, "row": 2}).status_code == 404
    assert client.get("/api/trees", params={**query, "step": 7}).json()["rows"] == []
