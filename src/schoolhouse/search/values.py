"""Values of thoughts. A search keeps the nodes of a tree that have the best values.

`PromptedValue`: the policy is asked for the value of each thought.
`VoteValue`: the policy is asked which of several thoughts is best.
`RewardModelValue`: the values come from a reward model.
`ExactValue`: the values come from the task's own rules, which always know the correct value (an oracle).
`RandomValue`: the values are random numbers, as a control.
`LookaheadValue`: a thought gets the value of the state that the solution reaches some steps later.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Protocol

from schoolhouse.data.chat import Conversation
from schoolhouse.data.steps import steps
from schoolhouse.policy.interface import Generator
from schoolhouse.randomness import python_random
from schoolhouse.search.thoughts import ThoughtProposer, ThoughtSampler, extend, repeat_prompt
from schoolhouse.search.tree import Costs, Node, Valuation
from schoolhouse.tasks.base import Task
from schoolhouse.types import Rollout


class ValueFn(Protocol):
    """A function that gives values to nodes. The function samples at most `max_tokens` tokens for one node."""

    @property
    def max_tokens(self) -> int: ...

    def __call__(self, nodes: Sequence[Node]) -> list[Valuation]: ...


def search_costs(expand: ThoughtSampler | ThoughtProposer, value: ValueFn) -> Costs:
    return Costs(expand.max_tokens, value.max_tokens, expand.max_children)


@dataclass(frozen=True)
class PromptedValue:
    """Asks the policy `samples` times for the value of each thought. The value is the sum of all replies.

    The policy gets the same question about the same problem only once. A node that is an answer gets the value of the
    thought before the answer.
    """

    policy: Generator
    task: Task
    samples: int = 3
    max_new_tokens: int = 16
    temperature: float = 0.7
    cache: dict[Hashable, float] = field(default_factory=dict)

    @property
    def max_tokens(self) -> int:
        return self.samples * self.max_new_tokens

    def __call__(self, nodes: Sequence[Node]) -> list[Valuation]:
        conversation, task = self.policy.conversation, self.task
        thoughts = [_last_thought(node) for node in nodes]
        questions = [
            task.value_prompt(thought.state.problem, steps(conversation, thought.state, task.delimiter))
            if thought
            else None
            for thought in thoughts
        ]
        keys = [(node.state.key.problem, q and q.messages) for node, q in zip(nodes, questions, strict=True)]
        fresh: dict[Hashable, list[Rollout]] = {}
        for node, question, key in zip(nodes, questions, keys, strict=True):
            if question and key not in self.cache and key not in fresh:
                fresh[key] = repeat_prompt(conversation, question, node.state.key, "value", self.samples)
        prompts = [(key, prompt) for key, key_prompts in fresh.items() for prompt in key_prompts]
        replies = extend(self.policy, [prompt for _, prompt in prompts], self.max_new_tokens, self.temperature)
        tokens: dict[Hashable, int] = {}
        for (key, prompt), reply in zip(prompts, replies, strict=True):
            value = task.parse_value(conversation.parse_completion(reply).answer)
            self.cache[key] = self.cache.get(key, 0.0) + (value or 0.0)
            tokens[key] = tokens.get(key, 0) + len(reply) - len(prompt)
        return [
            Valuation(self.cache[key], tokens.pop(key, 0)) if question else Valuation(nan, 0)
            for question, key in zip(questions, keys, strict=True)
        ]


@dataclass(frozen=True)
class VoteValue:
    """Asks the policy `samples` times which of several thoughts is best.

    The value of a thought is its fraction of the votes. The method is "vote across states" of Yao et al. 2023, section
    3. The policy compares all different thoughts about one problem. If a problem has more than `ballot_size` thoughts,
    its thoughts are split into groups of nearly equal size, and each group gets its own votes. A node that is an answer
    gets the value of the thought before the answer.
    """

    policy: Generator
    task: Task
    samples: int = 5
    max_new_tokens: int = 8
    temperature: float = 0.7
    ballot_size: int = 8

    @property
    def max_tokens(self) -> int:
        return self.samples * self.max_new_tokens

    def __call__(self, nodes: Sequence[Node]) -> list[Valuation]:
        conversation, task = self.policy.conversation, self.task
        thoughts = [_last_thought(node) for node in nodes]
        texts = [steps(conversation, node.state, task.delimiter) if node else [] for node in thoughts]
        elections: dict[Hashable, dict[Hashable, list[int]]] = {}  # problem -> thought -> indices of its nodes
        for at, node in enumerate(nodes):
            if thoughts[at]:
                own_key = not node.is_answer and node.dedup_key is not None
                thought = node.dedup_key if own_key else tuple(texts[at])
                elections.setdefault(node.state.key.problem, {}).setdefault(thought, []).append(at)
        values, tokens = [nan] * len(nodes), [0] * len(nodes)
        prompts: list[tuple[Sequence[list[int]], Rollout]] = []
        for candidates in elections.values():
            for ballot in _split_evenly(list(candidates.values()), self.ballot_size):
                state = nodes[ballot[0][0]].state
                question = task.vote_prompt(state.problem, [texts[indices[0]] for indices in ballot])
                if question:
                    repeated = repeat_prompt(conversation, question, state.key, "vote", self.samples)
                    prompts += [(ballot, prompt) for prompt in repeated]
        replies = extend(self.policy, [prompt for _, prompt in prompts], self.max_new_tokens, self.temperature)
        for (ballot, prompt), reply in zip(prompts, replies, strict=True):
            chosen = task.parse_vote(conversation.parse_completion(reply).answer)
            tokens[ballot[0][0]] += len(reply) - len(prompt)
            for place, indices in enumerate(ballot):
                for at in indices:
                    values[at] = (0.0 if isnan(values[at]) else values[at]) + (place == chosen) / self.samples
        return [Valuation(value, count) for value, count in zip(values, tokens, strict=True)]


@dataclass(frozen=True)
class ExactValue:
    """Gives values by the task's own rules, as an oracle for tests.

    A thought gets the value 1 if the thought and all earlier thoughts have no error, else 0. An answer is graded
    without its thoughts, because a wrong answer can follow correct thoughts. A whole completion gets 1 only if its
    thoughts and its answer are correct.
    """

    conversation: Conversation
    task: Task
    max_tokens: int = 0

    def __call__(self, nodes: Sequence[Node]) -> list[Valuation]:
        return [Valuation(self._value(node), 0) for node in nodes]

    def _value(self, node: Node) -> float:
        rollout, completion = node.state, self.conversation.parse_completion(node.state)
        ended = node.is_answer or completion.complete
        if ended and self.task.grade(rollout.problem, completion).reward != 1.0:
            return 0.0
        if node.is_answer:
            return 1.0
        labels = self.task.step_labels(rollout.problem, steps(self.conversation, rollout, self.task.delimiter))
        return float(min(labels, default=1 if ended else -1) > -1)


@dataclass(frozen=True)
class RandomValue:
    """Gives a random number to each thought, as a control. The same thought always gets the same number."""

    max_tokens: int = 0

    def __call__(self, nodes: Sequence[Node]) -> list[Valuation]:
        keys = [node.state.key._replace(purpose="random value") for node in nodes]
        return [Valuation(python_random(key).random(), 0) for key in keys]


@dataclass(frozen=True)
class RewardModelValue:
    """Gives each node the value that a reward model computes for all steps up to the node.

    The cost of one value is counted as one token.
    """

    reward_model: Callable[[Sequence[Rollout]], list[float]]
    max_tokens: int = 1

    def __call__(self, nodes: Sequence[Node]) -> list[Valuation]:
        return [Valuation(value, 1) for value in self.reward_model([node.state for node in nodes])]


@dataclass(frozen=True)
class LookaheadValue:
    """Lookahead search (Snell et al. 2024, arXiv 2408.03314).

    With lookahead, a thought gets the value of the state that is `steps` steps later.

    `sampler`: extends a thought by the most likely next step, at temperature 0.
    """

    sampler: ThoughtSampler
    value_fn: ValueFn
    steps: int

    @property
    def max_tokens(self) -> int:
        return self.steps * self.sampler.max_tokens + self.value_fn.max_tokens

    def __call__(self, nodes: Sequence[Node]) -> list[Valuation]:
        later, tokens = list(nodes), [0] * len(nodes)
        for _ in range(self.steps):
            unanswered = [at for at, node in enumerate(later) if not node.is_answer]
            for at, expansion in zip(unanswered, self.sampler([later[at] for at in unanswered]), strict=True):
                tokens[at] += expansion.tokens
                for candidate in expansion.candidates:
                    later[at] = Node(candidate.state, candidate.text, later[at], candidate.is_answer)
        valuations = self.value_fn(later)
        return [Valuation(value, before + cost) for before, (value, cost) in zip(tokens, valuations, strict=True)]


def _last_thought(node: Node) -> Node | None:
    """Return the thought whose value is used for a node.

    If the node is an answer, the thought before the answer is returned.

    Returns None if no thought comes before the answer.
    """
    if not node.is_answer:
        return node
    return node.parent if node.parent and node.parent.parent else None


def _split_evenly(thoughts: Sequence[list[int]], max_size: int) -> list[Sequence[list[int]]]:
    """Split thoughts into as few parts as possible, with at most `max_size` thoughts per part.

    All parts have nearly the same number of thoughts.
    """
    num_parts = -(-len(thoughts) // max_size)
    return [thoughts[i::num_parts] for i in range(num_parts)]
