"""Who proposes thoughts and who says what they are worth, on the sampler: what trees are grown with.

A thought is a step of the policy's own turn. What a node holds is the rollout up to it: `Sampled` lets the policy go on
to the end of the next step, several times; `Proposed` asks it what may come next and puts each proposal into its mouth
(Yao et al. 2023, arXiv 2305.10601, section 3). Values come from asking the policy about each thought (`Asked`) or which
of several is best (`Elected`), from the task's own rules (`Exact`, an oracle), or from a die (`AtRandom`, a control);
`Judged` asks a reward model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from math import isnan, nan
from typing import Protocol

from schoolhouse.data.chat import Conversation
from schoolhouse.data.steps import steps
from schoolhouse.policy.interface import Generator
from schoolhouse.randomness import python_random
from schoolhouse.search.tree import Answered, Candidate, Costs, Node
from schoolhouse.tasks.base import Task
from schoolhouse.types import Key, Problem, Rollout, SchoolError

_BLANKS = 1
"""How often the policy goes on where all it said of a step were blanks."""


class ValueFn(Protocol):
    """Says what thoughts are worth; `most` tokens at most for one of them."""

    @property
    def max_tokens(self) -> int: ...

    def __call__(self, nodes: Sequence[Node]) -> list[Answered]: ...


@dataclass(frozen=True)
class ThoughtSampler:
    """The policy goes on from each thought, `samples` times, by one step or to the end of its turn.

    length  tokens of one step; one that takes more is lost, and so is one for which the model has no room
    answer  tokens behind the last step: the end of the thought and the answer
    """

    policy: Generator
    task: Task
    samples: int = 5
    step_tokens: int = 32
    answer_tokens: int = 32
    temperature: float = 1.0

    @property
    def max_tokens(self) -> int:
        return self.samples * ((1 + _BLANKS) * self.step_tokens + self.answer_tokens)

    def __call__(self, nodes: Sequence[Node]) -> list[Answered]:
        forks = [[_fork(node.state, g, self.samples) for g in range(self.samples)] for node in nodes]
        begun = [prefix for few in forks for prefix in few if len(prefix) <= self._room]
        roots = [len(node.state) for node in nodes if node.parent is None]
        if roots and min(roots) > self._room:
            raise SchoolError(
                f"the model reads {self.policy.max_seq_len} tokens: behind a prompt of {min(roots)} there is no room for a "
                f"step of {self.step_tokens} and an answer: lower `step`"
            )
        said = iter(self._said(begun))
        return [self._offered([(prefix, next(said)) for prefix in few if len(prefix) <= self._room]) for few in forks]

    @property
    def _room(self) -> int:
        """Tokens that a thought may have if one more step is to follow it, and something of an answer."""
        return self.policy.max_seq_len - self.step_tokens - 1

    def _said(self, begun: Sequence[Rollout]) -> list[Rollout]:
        """One step behind each prefix; where no thought is open any more, the answer too."""
        say = self.policy.conversation
        stop = (self.task.delimiter,)
        said = extend(self.policy, begun, self.step_tokens, self.temperature, stop)
        for _ in range(_BLANKS):  # a template may put blanks in front of a thought
            blank = [
                at for at, one in enumerate(said) if one.finish_reason == "stop" and not self._text(begun[at], one)
            ]
            blank = [at for at in blank if said[at].tokens[-1] not in say.stop_ids and len(said[at]) <= self._room]
            again = [said[at].prefill(()) for at in blank]
            for at, longer in zip(blank, extend(self.policy, again, self.step_tokens, self.temperature, stop), strict=True):
                said[at] = longer
        late = [at for at, one in enumerate(said) if one.tokens[-1] not in say.stop_ids and not say.is_thinking(one)]
        rest = [said[at].prefill(()) for at in late]
        left = [min(self.answer_tokens, self.policy.max_seq_len - len(one)) for one in rest]
        for at, whole in zip(late, extend(self.policy, rest, left, self.temperature), strict=True):
            said[at] = whole
        return said

    def _offered(self, pairs: Sequence[tuple[Rollout, Rollout]]) -> Answered:
        say, offers = self.policy.conversation, []
        for before, after in pairs:
            text, done = self._text(before, after), after.tokens[-1] in say.stop_ids
            if after.finish_reason == "stop" and (text or done):
                offers.append(Candidate(after, text, done, after.tokens[after.turns[0] :]))
        return Answered(offers, sum(len(after) - len(before) for before, after in pairs))

    def _text(self, before: Rollout, after: Rollout) -> str:
        return self.policy.conversation.tokenizer.decode(after.tokens[len(before) :], skip_special_tokens=True).strip()


@dataclass(frozen=True)
class ThoughtProposer:
    """The policy lists what may come next, and each line of its list is put into its mouth.

    Where there is nothing to ask it says the answer itself, the likeliest. Thoughts that lead to the same question are
    one thought. `length` tokens of a list, `answer` tokens of an answer, at most `lines` lines of a list are read;
    `lists` lists are asked for, and a line that stands in them twice counts once.
    """

    policy: Generator
    task: Task
    max_lines: int = 8
    proposal_tokens: int = 256
    answer_tokens: int = 48
    temperature: float = 0.7
    num_proposals: int = 1

    @property
    def max_children(self) -> int:
        return self.max_lines * self.num_proposals

    @property
    def max_tokens(self) -> int:
        return max(self.proposal_tokens * self.num_proposals, self.answer_tokens)

    def __call__(self, nodes: Sequence[Node]) -> list[Answered]:
        say, task = self.policy.conversation, self.task
        told = [steps(say, node.state, task.delimiter) for node in nodes]
        questions = [task.propose_prompt(node.state.problem, few) for node, few in zip(nodes, told, strict=True)]
        asked = [
            prefix
            for node, question in zip(nodes, questions, strict=True)
            if question
            for prefix in _several(say, question, node.state.key, "propose", self.num_proposals)
        ]
        last = [_fork(node.state, 0, 1) for node, question in zip(nodes, questions, strict=True) if question is None]
        lists = iter(zip(asked, self._extended(asked, self.proposal_tokens, self.temperature), strict=True))
        ends = iter(zip(last, self._extended(last, self.answer_tokens, 0.0), strict=True))
        answered = []
        for node, before_it, question in zip(nodes, told, questions, strict=True):
            few = [next(ends)] if question is None else [next(lists) for _ in range(self.num_proposals)]
            offers = (
                [self._answer(*few[0])]
                if question is None
                else self._thoughts(node.state, before_it, [said for _, said in few])
            )
            tokens = sum(len(after) - len(before) for before, after in few)
            answered.append(Answered([offer for offer in offers if offer], tokens))
        return answered

    def _extended(self, prefixes: Sequence[Rollout], length: int, temperature: float) -> list[Rollout]:
        """As far as the model has room."""
        room = [min(length, self.policy.max_seq_len - len(prefix)) for prefix in prefixes]
        if min(room, default=1) < 1:
            raise SchoolError(
                f"a prompt leaves no room for an answer: the model reads {self.policy.max_seq_len} tokens"
            )
        return extend(self.policy, prefixes, room, temperature)

    def _answer(self, before: Rollout, after: Rollout) -> Candidate | None:
        text = self.policy.conversation.tokenizer.decode(after.tokens[len(before) :], skip_special_tokens=True).strip()
        return Candidate(after, text, True, after.tokens[after.turns[0] :]) if after.finish_reason == "stop" else None

    def _thoughts(self, rollout: Rollout, told: Sequence[str], lists: Sequence[Rollout]) -> list[Candidate]:
        say, task = self.policy.conversation, self.task
        offers = []
        lines = [
            line for said in lists for line in task.parse_proposals(say.parse_completion(said).answer)[: self.max_lines]
        ]
        for at, line in enumerate(line for line in dict.fromkeys(lines) if task.delimiter not in line):
            fork = replace(rollout, key=rollout.key._replace(sample=rollout.key.sample * self.max_children + at))
            after = say.prefill_thought(fork, line + task.delimiter)
            question = task.propose_prompt(rollout.problem, [*told, line])
            if question is None:  # the last thought: what is said next is the answer, not one more step
                after = say.close_thought(say.prefill_thought(fork, line))
            if len(after) + self.answer_tokens <= self.policy.max_seq_len:
                offers.append(Candidate(after, line, False, question.messages if question else line))
        return offers


@dataclass(frozen=True)
class PromptedValue:
    """The policy is asked what a thought is worth, `samples` times; what its answers count is summed.

    The same question about the same problem is asked once. An answer is worth what the thought before it is.
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

    def __call__(self, nodes: Sequence[Node]) -> list[Answered]:
        say, task = self.policy.conversation, self.task
        thoughts = [_thought(node) for node in nodes]
        asking = [
            task.value_prompt(thought.state.problem, steps(say, thought.state, task.delimiter)) if thought else None
            for thought in thoughts
        ]
        keys = [(node.state.key.problem, q and q.messages) for node, q in zip(nodes, asking, strict=True)]
        fresh: dict[Hashable, list[Rollout]] = {}
        for node, question, about in zip(nodes, asking, keys, strict=True):
            if question and about not in self.cache and about not in fresh:
                fresh[about] = _several(say, question, node.state.key, "value", self.samples)
        asked = [(about, prefix) for about, prefixes in fresh.items() for prefix in prefixes]
        said = extend(self.policy, [prefix for _, prefix in asked], self.max_new_tokens, self.temperature)
        spent: dict[Hashable, int] = {}
        for (about, before), after in zip(asked, said, strict=True):
            self.cache[about] = self.cache.get(about, 0.0) + (
                task.parse_value(say.parse_completion(after).answer) or 0.0
            )
            spent[about] = spent.get(about, 0) + len(after) - len(before)
        return [
            Answered(self.cache[about], spent.pop(about, 0)) if question else Answered(nan, 0)
            for question, about in zip(asking, keys, strict=True)
        ]


@dataclass(frozen=True)
class VoteValue:
    """The policy is asked which of several thoughts is best, `samples` times: a thought is worth its share of the votes
    (Yao et al. 2023, section 3: vote across states).

    Thoughts about one problem stand against one another, each once; where they are more than `ballot`, in ballots of
    nearly the same size. An answer is worth what the thought before it is.
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

    def __call__(self, nodes: Sequence[Node]) -> list[Answered]:
        say, task = self.policy.conversation, self.task
        thoughts = [_thought(node) for node in nodes]
        told = [steps(say, one.state, task.delimiter) if one else [] for one in thoughts]
        alike: dict[Hashable, dict[Hashable, list[int]]] = {}  # problem -> thought -> its nodes
        for at, node in enumerate(nodes):
            if thoughts[at]:
                same = node.dedup_key if not node.is_answer and node.dedup_key is not None else tuple(told[at])
                alike.setdefault(node.state.key.problem, {}).setdefault(same, []).append(at)
        worth, tokens = [nan] * len(nodes), [0] * len(nodes)
        asked: list[tuple[Sequence[list[int]], Rollout]] = []
        for few in alike.values():
            for ballot in _dealt(list(few.values()), self.ballot_size):
                state = nodes[ballot[0][0]].state
                question = task.vote_prompt(state.problem, [told[same[0]] for same in ballot])
                prefixes = _several(say, question, state.key, "vote", self.samples) if question else []
                asked += [(ballot, prefix) for prefix in prefixes]
        said = extend(self.policy, [prefix for _, prefix in asked], self.max_new_tokens, self.temperature)
        for (ballot, before), after in zip(asked, said, strict=True):
            chosen = task.parse_vote(say.parse_completion(after).answer)
            tokens[ballot[0][0]] += len(after) - len(before)
            for place, same in enumerate(ballot):
                for at in same:
                    worth[at] = (0.0 if isnan(worth[at]) else worth[at]) + (place == chosen) / self.samples
        return [Answered(value, spent) for value, spent in zip(worth, tokens, strict=True)]


@dataclass(frozen=True)
class ExactValue:
    """The task's own rules: 1 for a thought that is not wrong, nor any before it, else 0. An oracle, for tests.

    An answer is graded by itself: behind right thoughts it may still be wrong. A whole reply needs both to be right.
    """

    conversation: Conversation
    task: Task
    max_tokens: int = 0

    def __call__(self, nodes: Sequence[Node]) -> list[Answered]:
        return [Answered(self._worth(node), 0) for node in nodes]

    def _worth(self, node: Node) -> float:
        rollout, reply = node.state, self.conversation.parse_completion(node.state)
        ended = node.is_answer or reply.complete
        if ended and self.task.grade(rollout.problem, reply).reward != 1.0:
            return 0.0
        if node.is_answer:
            return 1.0
        ratings = self.task.step_labels(rollout.problem, steps(self.conversation, rollout, self.task.delimiter))
        return float(min(ratings, default=1 if ended else -1) > -1)


@dataclass(frozen=True)
class RandomValue:
    """A die: what a search is worth when nobody knows what thoughts are worth."""

    max_tokens: int = 0

    def __call__(self, nodes: Sequence[Node]) -> list[Answered]:
        keys = [node.state.key._replace(purpose="random value") for node in nodes]
        return [Answered(python_random(key).random(), 0) for key in keys]


@dataclass(frozen=True)
class RewardModelValue:
    """A reward model: what it says of all steps so far. It is counted as one token each time it is asked."""

    reward_model: Callable[[Sequence[Rollout]], list[float]]
    max_tokens: int = 1

    def __call__(self, nodes: Sequence[Node]) -> list[Answered]:
        return [Answered(worth, 1) for worth in self.reward_model([node.state for node in nodes])]


@dataclass(frozen=True)
class LookaheadValue:
    """What a thought is worth `steps` likeliest steps later: lookahead (Snell et al. 2024, arXiv 2408.03314)."""

    sampler: ThoughtSampler
    value_fn: ValueFn
    steps: int

    @property
    def max_tokens(self) -> int:
        return self.steps * self.sampler.max_tokens + self.value_fn.max_tokens

    def __call__(self, nodes: Sequence[Node]) -> list[Answered]:
        later, tokens = list(nodes), [0] * len(nodes)
        for _ in range(self.steps):
            open_ = [at for at, node in enumerate(later) if not node.is_answer]
            for at, (offers, spent) in zip(open_, self.sampler([later[at] for at in open_]), strict=True):
                tokens[at] += spent
                for offer in offers:
                    later[at] = Node(offer.state, offer.text, later[at], offer.answers)
        worth = self.value_fn(later)
        return [Answered(found, before + cost) for before, (found, cost) in zip(tokens, worth, strict=True)]


def search_costs(expand: ThoughtSampler | ThoughtProposer, value: ValueFn) -> Costs:
    """What a step of a search with these can cost."""
    return Costs(expand.max_tokens, value.max_tokens, expand.max_children)


def _thought(node: Node) -> Node | None:
    """The thought that is judged: that before an answer; None for an answer without any."""
    if not node.is_answer:
        return node
    return node.parent if node.parent and node.parent.parent else None


def _dealt(thoughts: Sequence[list[int]], most: int) -> list[Sequence[list[int]]]:
    """Thoughts in as few ballots as hold at most so many each, nearly as many in each."""
    ballots = -(-len(thoughts) // most)
    return [thoughts[i::ballots] for i in range(ballots)]


def _several(say: Conversation, question: Problem, key: Key, purpose: str, times: int) -> list[Rollout]:
    """The same question, to be answered several times with random numbers of their own."""
    asked = say.prompt_rollout(question, key._replace(purpose=purpose))
    return [replace(asked, key=asked.key._replace(sample=key.sample * times + g)) for g in range(times)]


def _fork(rollout: Rollout, at: int, of: int) -> Rollout:
    """The same rollout, to go on with random numbers of its own."""
    fork = replace(rollout, key=rollout.key._replace(sample=rollout.key.sample * of + at))
    return fork if fork.finish_reason in ("open", "context") else fork.prefill(())


def extend(
    policy: Generator,
    rollouts: Sequence[Rollout],
    max_new_tokens: int | Sequence[int],
    temperature: float,
    stop_strings: Sequence[str] = (),
) -> list[Rollout]:
    """`Policy.extend`, of nothing too."""
    if not rollouts:
        return []
    return policy.extend(rollouts, max_new_tokens, temperature=temperature, stop_strings=stop_strings)
