"""The policy gives candidates for the next thought: sampled steps, or steps from a list that the policy writes.

In this file a thought is one step of the policy's turn. A node holds the rollout up to the end of its thought.
`ThoughtSampler` continues the turn several times, each time to the end of the next step. `ThoughtProposer` asks the
policy for a list of possible next steps, and prefills each step of the list (Yao et al. 2023, arXiv 2305.10601,
section 3). The code that gives values to thoughts is in `search/values.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from schoolhouse.data.chat import Conversation
from schoolhouse.data.steps import steps
from schoolhouse.policy.interface import Generator
from schoolhouse.search.tree import Candidate, Expansion, Node
from schoolhouse.tasks.base import Task
from schoolhouse.types import Key, Problem, Rollout, SchoolError

_BLANK_STEPS = 1
"""The number of times that sampling continues if a step contains only white space."""


@dataclass(frozen=True)
class ThoughtSampler:
    """Continues each thought `samples` times, by one step or to the end of the turn.

    `step_tokens`: the maximum number of tokens of one step. A step with more than `step_tokens` tokens is dropped. A
        step that does not fit into the model's context is dropped too.
    `answer_tokens`: the maximum number of tokens after the last step, for the end of the thought and the answer.
    """

    policy: Generator
    task: Task
    samples: int = 5
    step_tokens: int = 32
    answer_tokens: int = 32
    temperature: float = 1.0

    @property
    def max_children(self) -> int:
        return self.samples

    @property
    def max_tokens(self) -> int:
        return self.samples * ((1 + _BLANK_STEPS) * self.step_tokens + self.answer_tokens)

    def __call__(self, nodes: Sequence[Node]) -> list[Expansion]:
        root_lengths = [len(node.state) for node in nodes if node.parent is None]
        if root_lengths and min(root_lengths) > self._max_prefix:
            raise SchoolError(
                f"the model can read {self.policy.max_seq_len} tokens, and the shortest prompt has {min(root_lengths)} "
                f"tokens; there is no room for a step of {self.step_tokens} tokens and an answer: lower `step_tokens`"
            )
        forks = [[_fork(node.state, g, self.samples) for g in range(self.samples)] for node in nodes]
        prefixes = [[fork for fork in node_forks if len(fork) <= self._max_prefix] for node_forks in forks]
        extended = iter(self._extend_by_step([prefix for node_prefixes in prefixes for prefix in node_prefixes]))
        return [self._expansion([(prefix, next(extended)) for prefix in node_prefixes]) for node_prefixes in prefixes]

    @property
    def _max_prefix(self) -> int:
        """The length of the longest prefix that leaves room for one more step and the beginning of an answer."""
        return self.policy.max_seq_len - self.step_tokens - 1

    def _extend_by_step(self, prefixes: Sequence[Rollout]) -> list[Rollout]:
        """Extend each prefix by one step.

        If the whole thinking part has ended, also extend the prefix by the answer.
        """
        conversation = self.policy.conversation
        stop_strings = (self.task.delimiter,)
        extended = extend(self.policy, prefixes, self.step_tokens, self.temperature, stop_strings)
        for _ in range(_BLANK_STEPS):  # a template may put blanks in front of a thought
            blank = [
                at
                for at, rollout in enumerate(extended)
                if rollout.finish_reason == "stop"
                and not self._text(prefixes[at], rollout)
                and rollout.tokens[-1] not in conversation.stop_ids
                and len(rollout) <= self._max_prefix
            ]
            reopened = [extended[at].prefill(()) for at in blank]
            longer = extend(self.policy, reopened, self.step_tokens, self.temperature, stop_strings)
            for at, rollout in zip(blank, longer, strict=True):
                extended[at] = rollout
        unanswered = [
            at
            for at, rollout in enumerate(extended)
            if rollout.tokens[-1] not in conversation.stop_ids and not conversation.is_thinking(rollout)
        ]
        reopened = [extended[at].prefill(()) for at in unanswered]
        room = [min(self.answer_tokens, self.policy.max_seq_len - len(rollout)) for rollout in reopened]
        for at, rollout in zip(unanswered, extend(self.policy, reopened, room, self.temperature), strict=True):
            extended[at] = rollout
        return extended

    def _expansion(self, pairs: Sequence[tuple[Rollout, Rollout]]) -> Expansion:
        candidates = []
        for before, after in pairs:
            text, ended = self._text(before, after), after.tokens[-1] in self.policy.conversation.stop_ids
            if after.finish_reason == "stop" and (text or ended):
                candidates.append(Candidate(after, text, ended, after.tokens[after.turns[0] :]))
        return Expansion(candidates, sum(len(after) - len(before) for before, after in pairs))

    def _text(self, before: Rollout, after: Rollout) -> str:
        return _new_text(self.policy.conversation, before, after)


@dataclass(frozen=True)
class ThoughtProposer:
    """Asks the policy for lists of possible next steps. Each line of a list becomes a prefilled thought.

    If the task gives no prompt for a next step, the policy writes its answer at temperature 0. Two thoughts count as
    one thought if the policy gets the same prompt for the step after them. A line that appears in two lists becomes
    only one candidate.

    `max_lines`: the maximum number of lines that are read from one list.
    `proposal_tokens`: the maximum number of tokens of one list.
    `num_proposals`: the number of lists that are sampled for each thought.
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

    def __call__(self, nodes: Sequence[Node]) -> list[Expansion]:
        conversation, task = self.policy.conversation, self.task
        thoughts = [steps(conversation, node.state, task.delimiter) for node in nodes]
        questions = [task.propose_prompt(node.state.problem, past) for node, past in zip(nodes, thoughts, strict=True)]
        list_prompts = [
            prompt
            for node, question in zip(nodes, questions, strict=True)
            if question
            for prompt in repeat_prompt(conversation, question, node.state.key, "propose", self.num_proposals)
        ]
        last = [_fork(node.state, 0, 1) for node, question in zip(nodes, questions, strict=True) if question is None]
        lists = self._extend_in_room(list_prompts, self.proposal_tokens, self.temperature)
        answers = self._extend_in_room(last, self.answer_tokens, 0.0)
        list_pairs, answer_pairs = zip(list_prompts, lists, strict=True), zip(last, answers, strict=True)
        expansions = []
        for node, past, question in zip(nodes, thoughts, questions, strict=True):
            if question is None:
                pairs = [next(answer_pairs)]
                candidates = self._answer(*pairs[0])
            else:
                pairs = [next(list_pairs) for _ in range(self.num_proposals)]
                candidates = self._thoughts(node.state, past, [proposals for _, proposals in pairs])
            expansions.append(Expansion(candidates, sum(len(after) - len(before) for before, after in pairs)))
        return expansions

    def _extend_in_room(self, prefixes: Sequence[Rollout], max_new_tokens: int, temperature: float) -> list[Rollout]:
        """Extend each prefix by at most as many tokens as fit into the model's context."""
        room = [min(max_new_tokens, self.policy.max_seq_len - len(prefix)) for prefix in prefixes]
        if min(room, default=1) < 1:
            raise SchoolError(
                f"a prompt leaves no room for an answer, because the model can read only {self.policy.max_seq_len} "
                "tokens: use shorter problems, or a model with a larger max_seq_len"
            )
        return extend(self.policy, prefixes, room, temperature)

    def _answer(self, before: Rollout, after: Rollout) -> list[Candidate]:
        if after.finish_reason != "stop":
            return []
        text = _new_text(self.policy.conversation, before, after)
        return [Candidate(after, text, True, after.tokens[after.turns[0] :])]

    def _thoughts(self, rollout: Rollout, past: Sequence[str], lists: Sequence[Rollout]) -> list[Candidate]:
        conversation, task = self.policy.conversation, self.task
        candidates = []
        lines = [
            line
            for proposals in lists
            for line in task.parse_proposals(conversation.parse_completion(proposals).answer)[: self.max_lines]
        ]
        for at, line in enumerate(line for line in dict.fromkeys(lines) if task.delimiter not in line):
            fork = replace(rollout, key=rollout.key._replace(sample=rollout.key.sample * self.max_children + at))
            after = conversation.prefill_thought(fork, line + task.delimiter)
            question = task.propose_prompt(rollout.problem, [*past, line])
            if question is None:  # the last thought: the answer follows, not one more step
                after = conversation.close_thought(conversation.prefill_thought(fork, line))
            if len(after) + self.answer_tokens <= self.policy.max_seq_len:
                candidates.append(Candidate(after, line, False, question.messages if question else line))
        return candidates


def repeat_prompt(conversation: Conversation, question: Problem, key: Key, purpose: str, times: int) -> list[Rollout]:
    """Return several copies of the same prompt. Each copy is later extended with different random numbers."""
    prompt = conversation.prompt_rollout(question, key._replace(purpose=purpose))
    return [replace(prompt, key=prompt.key._replace(sample=key.sample * times + g)) for g in range(times)]


def extend(
    policy: Generator,
    rollouts: Sequence[Rollout],
    max_new_tokens: int | Sequence[int],
    temperature: float,
    stop_strings: Sequence[str] = (),
) -> list[Rollout]:
    """Call `Policy.extend`. The function `extend` in this file also accepts an empty list of rollouts."""
    if not rollouts:
        return []
    return policy.extend(rollouts, max_new_tokens, temperature=temperature, stop_strings=stop_strings)


def _fork(rollout: Rollout, at: int, num_forks: int) -> Rollout:
    """Return a copy of the rollout. The copied rollout is later extended with its own random numbers."""
    fork = replace(rollout, key=rollout.key._replace(sample=rollout.key.sample * num_forks + at))
    return fork if fork.finish_reason in ("open", "context") else fork.prefill(())


def _new_text(conversation: Conversation, before: Rollout, after: Rollout) -> str:
    """Return the text that was sampled after `before`, without white space at its start and its end."""
    return conversation.tokenizer.decode(after.tokens[len(before) :], skip_special_tokens=True).strip()
