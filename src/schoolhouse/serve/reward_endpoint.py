"""The endpoint POST /api/reward returns the reward of an answer and of each step of the answer.

The option `school serve --reward_model` sets the reward model.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Annotated, Any

from pydantic import Field, model_validator

from schoolhouse.policy.policy import Policy
from schoolhouse.reward_models.prm import STEP_AGGREGATIONS, RewardModel, label_positions
from schoolhouse.runs.manifest import read_config, read_manifest
from schoolhouse.serve.api_schema import MAX_MESSAGES, ChatMessage, InvalidRequest
from schoolhouse.serve.request_fields import RequestModel, field_error
from schoolhouse.serve.settings import ServerConfig
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Demonstration, Key, Problem, SchoolError

RECIPE = "prm"
"""The recipe whose runs make reward models."""


class RewardRequest(RequestModel):
    """A request with a conversation. The reward model grades the last message of the conversation."""

    messages: Annotated[list[ChatMessage], Field(min_length=2, max_length=MAX_MESSAGES, fail_fast=True)]

    @model_validator(mode="after")
    def _check_last_role(self) -> RewardRequest:
        if self.messages[-1].role != "assistant":
            text = "the role of the last message must be `assistant`; put the answer to grade last"
            raise field_error("messages", text)
        return self


def load_reward_model(config: ServerConfig) -> RewardModel | None:
    """Load the server's reward model, with the same settings as in its training.

    If the server's options do not set a value, the value comes from the config of the reward model's run. Raises
    SchoolError for a folder without a model, for a run of another recipe, and for an implicit reward model.
    """
    folder = config.reward_model
    if folder is None:
        return None
    run_config = read_config(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    recipe = read_manifest(folder / "manifest.json").get("recipe") if run_config else RECIPE
    if recipe != RECIPE:
        raise SchoolError(f"{folder} is a run of {recipe}, not of {RECIPE}; set --reward_model to a run of {RECIPE}")
    if run_config.get("labels") == "implicit":
        raise SchoolError(
            f"the model in {folder} is an implicit reward model, which a server cannot use; use `school solve --search`"
        )
    label_places = config.label_places or ("end" if run_config.get("labels") == "outcome" else "steps")
    if config.task or not run_config.get("task"):
        delimiter = (open_task(config.task, config.seed) if config.task else Task()).delimiter
    elif run_config.get("data"):
        delimiter = run_config.get("delimiter", "\n")
    else:
        delimiter = open_task(run_config["task"]).delimiter
    # the default aggregation is the product; it is the best one for values too (docs/claims/mc_labels.md)
    return RewardModel(Policy.load(folder), delimiter, label_places)


def grade_answer(reward_model: RewardModel, messages: Sequence[ChatMessage]) -> dict[str, Any]:
    """Compute the `reward` of the last message, a number from 0 to 1, and the reward of each of its `steps`.

    The answer counts as the last step. Raises InvalidRequest if the conversation is longer than the model's context.
    """
    conversation, max_seq_len = reward_model.policy.conversation, reward_model.policy.max_seq_len
    *context, graded = (sent.message for sent in messages)
    problem = Problem("judged", tuple(context), "")
    rollout = conversation.demonstration_rollout(
        Demonstration(problem, graded.thought, graded.content), Key(0, "judged")
    )
    step_ends = label_positions(conversation, rollout, reward_model.delimiter, reward_model.label_places)
    needed = len(rollout) + len(step_ends)
    if needed > max_seq_len:
        raise InvalidRequest(
            f"the reward model can read {max_seq_len} tokens, but the conversation needs {needed} tokens; shorten it",
            "messages",
            "context_length_exceeded",
        )
    (step_logprobs,) = reward_model.step_logprobs([rollout])
    step_starts = [conversation.thought_span(rollout)[0], *step_ends]
    steps = [
        {"text": conversation.tokenizer.decode(rollout.tokens[start:end]).strip(), "reward": exp(logprob)}
        for start, end, logprob in zip(step_starts, step_ends, step_logprobs, strict=False)
    ]
    if graded.content and steps:
        steps[-1]["text"] = graded.content
    return {"reward": STEP_AGGREGATIONS[reward_model.step_aggregation](step_logprobs), "steps": steps}
