"""The reward of each step of an answer, over HTTP and in searches."""

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
from schoolhouse.runs.manifest import FORMAT
from schoolhouse.serve.api_schema import ChatMessage, InvalidRequest
from schoolhouse.serve.reward_endpoint import grade_answer, load_reward_model
from schoolhouse.serve.server import Server, build_app
from schoolhouse.serve.settings import ServerConfig
from schoolhouse.types import Demonstration, Key, Message, Problem, SchoolError

QUESTION = "Start at 7. Add 5. Take 3."
ANSWERED: list[dict[str, Any]] = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "\\boxed{9}", "reasoning_content": "7+5=2 2-3=9"},
]
TASK = "school:chain?steps=2"


@pytest.fixture(scope="module")
def folder(sft_model: Callable[[str], Path]) -> Path:
    return sft_model("school:chain?steps=2&styles=full=100")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    server = Server(ServerConfig(model=folder, served_model_name="tiny", reward_model=folder, task=TASK))
    with TestClient(build_app(server), base_url="http://127.0.0.1") as client:
        yield client
    server.close()


def as_messages(conversation: list[dict[str, Any]]) -> list[ChatMessage]:
    return [ChatMessage.model_validate(message) for message in conversation]


def test_each_step_and_the_answer_have_the_reward_of_the_model(folder: Path):
    model = RewardModel(Policy.load(folder), " ")
    graded = grade_answer(model, as_messages(ANSWERED))
    demonstration = Demonstration(Problem("p", (Message("user", QUESTION),), ""), "7+5=2 2-3=9", "\\boxed{9}")
    rollout = model.policy.conversation.demonstration_rollout(demonstration, Key(0, "test"))
    (logprobs,) = model.step_logprobs([rollout])
    assert [step["text"] for step in graded["steps"]] == ["7+5=2", "2-3=9", "\\boxed{9}"]
    assert [step["reward"] for step in graded["steps"]] == [exp(logprob) for logprob in logprobs]
    assert graded["reward"] == pytest.approx(prod(step["reward"] for step in graded["steps"]))


def test_a_model_of_whole_solutions_gives_one_reward(folder: Path):
    model = RewardModel(Policy.load(folder), " ", "end")
    (step,) = grade_answer(model, as_messages(ANSWERED))["steps"]
    assert step["text"] == "\\boxed{9}"
    assert 0 < step["reward"] < 1


@pytest.mark.parametrize(
    ("run_config", "label_places", "delimiter", "step_aggregation"),
    [
        ({"labels": "exact", "task": "school:chain"}, "steps", " ", "product"),
        ({"labels": "soft", "task": "school:chain"}, "steps", " ", "product"),
        ({"labels": "outcome", "task": "school:chain"}, "end", " ", "product"),
        ({"task": "school:chain", "data": "prm.jsonl", "delimiter": ";"}, "steps", ";", "product"),
    ],
)
def test_a_reward_model_is_used_as_its_run_says(
    folder: Path,
    tmp_path: Path,
    run_config: dict[str, Any],
    label_places: str,
    delimiter: str,
    step_aggregation: str,
):
    run = tmp_path / "prm"
    shutil.copytree(folder.parents[1], run)
    (run / "config.yaml").write_text("".join(f"{key}: '{value}'\n" for key, value in run_config.items()))
    (run / "manifest.json").write_text(json.dumps({"format": FORMAT, "recipe": "prm"}))
    model = load_reward_model(ServerConfig(model=folder, reward_model=run))
    assert model
    assert (model.label_places, model.delimiter, model.step_aggregation) == (label_places, delimiter, step_aggregation)
    overridden = load_reward_model(ServerConfig(model=folder, reward_model=run, label_places="end", task=TASK))
    assert overridden
    assert (overridden.label_places, overridden.delimiter) == ("end", " ")


def test_a_run_without_a_usable_reward_model_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="is a run of sft, not of prm"):
        load_reward_model(ServerConfig(model=folder, reward_model=folder.parents[1]))
    (tmp_path / "config.yaml").write_text("labels: implicit\n")
    (tmp_path / "manifest.json").write_text(json.dumps({"format": FORMAT, "recipe": "prm"}))
    with pytest.raises(SchoolError, match="implicit reward model"):
        load_reward_model(ServerConfig(model=folder, reward_model=tmp_path))


def test_a_conversation_longer_than_the_context_is_refused(folder: Path):
    long = [ANSWERED[0], {**ANSWERED[1], "reasoning_content": "7+5=2 " * 400}]
    with pytest.raises(InvalidRequest, match="the reward model can read"):
        grade_answer(RewardModel(Policy.load(folder), " "), as_messages(long))


def test_rewards_over_http_and_in_a_search(client: TestClient):
    assert client.get("/v1/models").json()["data"][0]["reward_model"]
    response = client.post("/api/reward", json={"messages": ANSWERED})
    assert len(response.json()["steps"]) == 3
    body = {"model": "tiny", "messages": ANSWERED[:1], "max_tokens": 24}
    search = {"search": "best_of_n?samples=4&values=reward_model"}
    found = client.post("/v1/chat/completions", json={**body, **search}).json()
    assert found["search"]["stop_reason"] == "4 answers"


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/api/reward", {"messages": [*ANSWERED, ANSWERED[0]]}, "the role of the last message must be"),
        ("/api/reward", {"messages": ANSWERED[:1]}, "messages"),
        ("/v1/chat/completions", {"search": "best_of_n?values=/etc"}, "the server's own"),
        ("/v1/chat/completions", {"search": "best_of_n?values=reward_model&label_places=end"}, "the server's own"),
    ],
)
def test_what_cannot_be_graded_is_refused(client: TestClient, path: str, body: dict[str, Any], reason: str):
    if path != "/api/reward":
        body = {"model": "tiny", "messages": ANSWERED[:1], **body}
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert reason in response.json()["error"]["message"]
