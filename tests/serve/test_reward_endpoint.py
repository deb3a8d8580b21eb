"""The second opinion: a reward model's grade of each step of an answer, asked by HTTP and by searches."""

import json
import shutil
from collections.abc import Callable, Iterator
from math import exp, prod
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from schoolhouse.policy.policy import Policy
from schoolhouse.reward_models.prm import RewardModel
from schoolhouse.serve.api_schema import Said, Unfit
from schoolhouse.serve.reward_endpoint import load_judge, opinion
from schoolhouse.serve.server import Served, build_app
from schoolhouse.serve.settings import Serve
from schoolhouse.types import Demonstration, Key, Message, Problem, SchoolError

QUESTION = "Start at 7. Add 5. Take 3."
ANSWERED: list[dict[str, Any]] = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "\\boxed{9}", "reasoning_content": "7+5=2 2-3=9"},
]
TASK = "school:chain?steps=2"


@pytest.fixture(scope="module")
def folder(taught: Callable[[str], Path]) -> Path:
    return taught("school:chain?steps=2&styles=full=100")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    served = Served(Serve(model=folder, name="tiny", judge=folder, task=TASK))
    with TestClient(build_app(served), base_url="http://127.0.0.1") as client:
        yield client
    served.shelf.close()


def test_each_step_and_the_answer_have_the_grade_that_the_judge_gives_them(folder: Path):
    judge = RewardModel(Policy.load(folder), " ")
    told = opinion(judge, [Said.model_validate(one) for one in ANSWERED])
    demonstration = Demonstration(Problem("p", (Message("user", QUESTION),), ""), "7+5=2 2-3=9", "\\boxed{9}")
    (logs,) = judge.step_logprobs([judge.policy.conversation.demonstration_rollout(demonstration, Key(0, "test"))])
    assert [step["text"] for step in told["steps"]] == ["7+5=2", "2-3=9", "\\boxed{9}"]
    assert [step["grade"] for step in told["steps"]] == [exp(log) for log in logs]
    assert told["grade"] == pytest.approx(prod(step["grade"] for step in told["steps"]))


def test_a_judge_of_whole_solutions_gives_one_grade(folder: Path):
    judge = RewardModel(Policy.load(folder), " ", "end")
    (step,) = opinion(judge, [Said.model_validate(one) for one in ANSWERED])["steps"]
    assert step["text"] == "\\boxed{9}"
    assert 0 < step["grade"] < 1


@pytest.mark.parametrize(
    ("settings", "where", "delimiter", "aggregate"),
    [
        ({"labels": "exact", "task": "school:chain"}, "steps", " ", "product"),
        ({"labels": "soft", "task": "school:chain"}, "steps", " ", "product"),
        ({"labels": "outcome", "task": "school:chain"}, "end", " ", "product"),
        ({"task": "school:chain", "data": "prm.jsonl", "delimiter": ";"}, "steps", ";", "product"),
    ],
)
def test_a_judges_run_says_how_it_is_asked(
    folder: Path, tmp_path: Path, settings: dict[str, Any], where: str, delimiter: str, aggregate: str
):
    run = tmp_path / "judge"
    shutil.copytree(folder.parents[1], run)
    (run / "config.yaml").write_text("".join(f"{key}: '{value}'\n" for key, value in settings.items()))
    (run / "manifest.json").write_text(json.dumps({"recipe": "prm"}))
    judge = load_judge(Serve(model=folder, judge=run))
    assert judge
    assert (judge.label_places, judge.delimiter, judge.step_aggregation) == (where, delimiter, aggregate)
    told = load_judge(Serve(model=folder, judge=run, judged="end", task=TASK))
    assert told
    assert (told.label_places, told.delimiter) == ("end", " ")


def test_a_run_that_made_no_judge_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="is a run of sft, not of process_reward"):
        load_judge(Serve(model=folder, judge=folder.parents[1]))
    (tmp_path / "config.yaml").write_text("labels: implicit\n")
    (tmp_path / "manifest.json").write_text(json.dumps({"recipe": "prm"}))
    with pytest.raises(SchoolError, match="implicit judge"):
        load_judge(Serve(model=folder, judge=tmp_path))


def test_what_is_longer_than_the_judge_reads_is_refused(folder: Path):
    long = [ANSWERED[0], {**ANSWERED[1], "reasoning_content": "7+5=2 " * 400}]
    with pytest.raises(Unfit, match="the judge reads"):
        opinion(RewardModel(Policy.load(folder), " "), [Said.model_validate(one) for one in long])


def test_it_is_given_over_http_and_searches_may_ask_for_it(client: TestClient):
    assert client.get("/v1/models").json()["data"][0]["judge"]
    told = client.post("/api/opinion", json={"messages": ANSWERED})
    assert len(told.json()["steps"]) == 3
    asked = {"model": "tiny", "messages": ANSWERED[:1], "max_tokens": 24}
    found = client.post("/v1/chat/completions", json={**asked, "search": "best_of_n?samples=4&values=judge"}).json()
    assert found["search"]["end"] == "4 answers"


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("/api/opinion", {"messages": [*ANSWERED, ANSWERED[0]]}, "nothing to judge"),
        ("/api/opinion", {"messages": ANSWERED[:1]}, "messages"),
        ("/v1/chat/completions", {"search": "best_of_n?values=/etc"}, "the server's own"),
        ("/v1/chat/completions", {"search": "best_of_n?values=judge&where=end"}, "the server's own"),
    ],
)
def test_what_it_cannot_judge_is_refused(client: TestClient, path: str, body: dict[str, Any], why: str):
    if path != "/api/opinion":
        body = {"model": "tiny", "messages": ANSWERED[:1], **body}
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert why in answer.json()["error"]["message"]
