"""Measure what a model still knows after training on one task. The model only scores given texts, and samples
nothing."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from pydantic import Field

from schoolhouse.config import BaseConfig
from schoolhouse.policy.policy import Policy
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Demonstration, Key, Message, Problem, Rollout

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw", "Hungary": "Budapest", "Ireland": "Dublin",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Belgium": "Brussels",
    "Romania": "Bucharest", "Bulgaria": "Sofia", "Ukraine": "Kyiv", "Russia": "Moscow", "Turkey": "Ankara",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Iran": "Tehran", "Iraq": "Baghdad", "Egypt": "Cairo", "Kenya": "Nairobi", "Cuba": "Havana",
    "Peru": "Lima", "Chile": "Santiago", "Canada": "Ottawa", "Australia": "Canberra", "Argentina": "Buenos Aires",
    "Ghana": "Accra", "Nepal": "Kathmandu", "Lebanon": "Beirut", "Syria": "Damascus", "Venezuela": "Caracas",
}  # fmt: skip

NUM_CHOICES = 4


class Capitals(BaseConfig):
    """The share of countries whose capital has the highest probability among four capitals. Random guesses give .25."""

    countries: int = Field(len(CAPITALS), gt=0)

    def run(self, policy: Policy, seed: int, **judged_models: Policy) -> dict[str, Any]:
        names, records = list(CAPITALS), []
        for at, country in enumerate(names[: self.countries]):
            choices = [CAPITALS[names[(at + 7 * n) % len(names)]] for n in range(NUM_CHOICES)]  # the first is correct
            replies = [_reply(policy, country, capital) for capital in choices]
            logprobs = [float(scores.logprob.sum()) for scores in policy.score(replies)]
            correct = logprobs.index(max(logprobs)) == 0
            records.append({"problem": country, "rewards": [float(correct)]})
        return {"overall": {"pass_at_1": fmean(row["rewards"][0] for row in records)}, "records": records}


def _reply(policy: Policy, country: str, capital: str) -> Rollout:
    question = Message("user", f"What is the capital of {country}?")
    demonstration = Demonstration(
        Problem(country, (question,), capital), None, f"The capital of {country} is {capital}."
    )
    return policy.conversation.demonstration_rollout(demonstration, Key(0, "capitals"))


class TextLoss(BaseConfig):
    """The mean negative log-probability of a token, in nats, in the questions of a task. The questions are scored
    without a chat template."""

    task: str
    problems: int = Field(100, gt=0)

    def run(self, policy: Policy, seed: int, **judged_models: Policy) -> dict[str, Any]:
        tokenizer, rollouts = policy.conversation.tokenizer, list[Rollout]()
        for problem in open_task(self.task, 0).eval_problems(self.problems):
            ids = tuple(tokenizer.encode(problem.messages[-1].content))
            mask = (False, *(True for _ in ids[1:]))  # the first token has no token before it
            rollouts.append(Rollout(problem, Key(0, "text loss"), ids, mask, (0.0,) * len(ids)))
        losses = [-scores.logprob.sum() for scores in policy.score(rollouts)]
        tokens = sum(len(rollout) - 1 for rollout in rollouts)
        return {"overall": {"nats_per_token": float(sum(losses)) / tokens}, "records": []}
