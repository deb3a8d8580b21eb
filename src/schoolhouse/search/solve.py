"""Search at inference time: one interface for all searches.

The cost of a search is the number of sampled tokens. The tokens that are sampled to compute values of thoughts count
too.

The class `Search` holds the options of a search. The function `parse` reads the options of a search from a text such as
"tot?beam_width=1". The function `solve` searches for answers to many problems at the same time. `SearchGenerator` has
the interface of a policy, so that a search can be evaluated like a policy.

You can write your own search strategy as a generator function in your own file. A strategy function takes the tree of
one problem and yields requests. The helper `grow` (search/tree.py) yields the two usual requests: the first request
asks for the children of some nodes, and the second request asks for the values of these children. An example is
best-first search:

    from schoolhouse.search.tree import Strategy, Tree, grow, rank

    def best_first(tree: Tree, max_expansions: int = 20) -> Strategy:
        frontier = [tree.root]
        for _ in range(max_expansions):
            if tree.answers or not frontier:
                return
            frontier.sort(key=rank)
            frontier += yield from grow(tree, [frontier.pop(0)])

`--search "my_search.py?thoughts=propose&max_expansions=30"` runs the best-first search of the example. All parameters
of a strategy function after the first parameter (the tree) are options of the strategy. All other options in a search
text are fields of `Search`. The fields of `Search` set where thoughts and values come from, and how the answer is
selected. If a request could exceed the token budget, the search ends before this request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isnan
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError

from schoolhouse.config import BaseConfig, parse_query, requirement, suggest
from schoolhouse.data.chat import Conversation
from schoolhouse.policy.interface import Generator
from schoolhouse.policy.policy import Policy
from schoolhouse.reward_models.implicit import ImplicitRewardModel
from schoolhouse.reward_models.prm import LabelPlaces, RewardModel, StepAggregation, check_same_tokenizer
from schoolhouse.search.budget_forcing import budget_force, max_forced_tokens, revise
from schoolhouse.search.thoughts import ThoughtProposer, ThoughtSampler
from schoolhouse.search.tree import Node, Strategy, Tree, Valuation, breadth_first, depth_first, explore
from schoolhouse.search.user_strategy import (
    is_strategy_file,
    load_strategy,
    option_names,
    run_user_strategy,
    strategy_options,
)
from schoolhouse.search.values import (
    ExactValue,
    LookaheadValue,
    PromptedValue,
    RandomValue,
    RewardModelValue,
    ValueFn,
    VoteValue,
    search_costs,
)
from schoolhouse.search.vote import weighted_vote
from schoolhouse.tasks.base import Task
from schoolhouse.types import Rollout, SchoolError

NamedKind = Literal[
    "sample", "vote", "weighted_vote", "best_of_n", "budget_force", "revise", "tot", "dfs", "beam", "dvts"
]
Kind = NamedKind | Literal["python"]

TREE_KINDS: frozenset[Kind] = frozenset({"tot", "dfs", "beam", "dvts", "python"})
"""Searches that build a tree."""


class Search(BaseConfig):
    """The options of a search. The field `kind` of `Search` sets which kind of search is used.

    `sample`: the search samples one answer.
    `vote`: the search selects the most frequent of several answers (self-consistency, Wang et al. 2022, arXiv
        2203.11171).
    `weighted_vote`: among several samples, the search selects the answer with the largest total value.
    `best_of_n`: the search selects the sample with the best value.
    `budget_force`: the search samples one answer after a thought of `min_think` to `max_think` tokens.
    `revise`: the search makes `samples` attempts, where each attempt sees all earlier attempts, and selects the most
        frequent answer.
    `tot`: breadth-first search of Tree of Thoughts.
    `dfs`: depth-first search of Tree of Thoughts.
    `beam`: the search samples several candidates for each step, and continues the best candidates.
    `dvts`: the search is a beam search in several separate subtrees.
    `python`: the search is the user's own strategy, in the Python file that the field `file` names.
    """

    kind: Kind = "sample"
    file: str = ""
    """For `python`: the file and the name of the strategy, as PATH.py[:NAME]."""
    options: Mapping[str, Any] = {}
    """For `python`: the options of the strategy function."""
    beam_width: int = Field(5, gt=0)
    """The number of thoughts that are kept on each level."""
    depth: int = Field(16, gt=0)
    """The number of levels of the tree, including the level of the answer. A chain of thoughts with more steps never
    gets an answer."""
    samples: int = Field(5, gt=0)
    """The number of answers for a vote, of samples for each step, or of lines that are read from each list of
    proposals."""
    thoughts: Literal["sample", "propose"] = "sample"
    """The source of the next thoughts: steps that the policy samples, or a list of steps that the policy is asked
    for."""
    values: str = "prompt"
    """The source of the values of thoughts. `prompt`: the policy is asked about each thought. `vote`: the policy is
    asked which thought is best. `exact`: the task's rules (an oracle). `random`: random numbers (a control). Any other
    value is the folder of a reward model."""
    label_places: LabelPlaces = "steps"
    """Where the reward model expects its label tokens: after each step, or at the end of a solution."""
    reference_model: str = ""
    """Folder of the model that an implicit reward model was trained from (labels: implicit)."""
    step_aggregation: StepAggregation = "product"
    """How step rewards are combined to one value. Use `product` or `min` for labels of correct steps, and `last` for
    values of states."""
    value_samples: int = Field(3, gt=0)
    """How many times the policy is asked for a value."""
    lookahead: int = Field(0, ge=0)
    """The number of steps to look ahead: a thought gets the value of the state that many steps later. These steps are
    the most likely steps of the policy."""
    threshold: float = 0.0
    """For `dfs`: thoughts whose value is not above this threshold are pruned."""
    selection: Literal["best", "vote"] = "best"
    """How one of several answers is chosen: the answer with the best value, or with the largest total value."""
    step_tokens: int = Field(32, gt=0)
    """The maximum number of tokens of one sampled step."""
    proposal_tokens: int = Field(256, gt=0)
    """The maximum number of tokens of one list of proposals."""
    num_proposals: int = Field(1, gt=0)
    """The number of lists of proposals for each thought. A thought that is in several lists counts once."""
    max_new_tokens: int = Field(128, gt=0)
    """The maximum number of tokens of a complete answer, or, in a tree, of the answer after the last step."""
    min_think: int = Field(0, ge=0)
    max_think: int = Field(64, gt=0)
    """For `budget_force`: the maximum number of tokens of a thought."""
    wait_text: str = "Wait"
    """For `budget_force`: the word that makes a thought continue."""
    temperature: float = Field(0.7, ge=0)
    budget: float = Field(inf, gt=0)
    """The maximum number of tokens that are sampled for one problem, including the tokens for values. A search never
    exceeds this limit."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The Python files that define the search. A run does not continue if the files of its search have changed."""
        return (load_strategy(self.file)[0],) if self.kind == "python" else ()


_FIXED = ("kind", "file", "options", "budget")


def parse(spec: str, budget: float = inf, *, allow_files: bool = True) -> Search:
    """Read a search from a text of the form `KIND[?OPTION=VALUE&...]`.

    Examples are "tot", "vote?samples=32" and "my_search.py?depth=4&samples=8". Raises SchoolError for a value that is
    out of range, and for an unknown name. For an unknown name, the error message suggests the most similar known name.

    `allow_files`: whether the search can be a Python file. If the text comes from an untrusted source, set
        `allow_files` to false: a Python file is then rejected and never opened.
    """
    kind, _, query = spec.partition("?")
    given = parse_query(f"search `{spec}`", query)
    config: dict[str, Any] = {"kind": kind}
    names = [name for name in Search.model_fields if name not in _FIXED]
    own: dict[str, Any] = {}
    if is_strategy_file(kind):
        if not allow_files:
            raise SchoolError(f"search `{spec}`: Python files are not allowed here; choose one of {_names(NamedKind)}")
        own = strategy_options(kind, given)
        names = [*option_names(kind), *names]
        config = {"kind": "python", "file": kind, "options": own}
    elif kind not in get_args(NamedKind):
        raise SchoolError(f"unknown search `{kind}`{suggest(kind, get_args(NamedKind))}")
    given = {name: value for name, value in given.items() if name not in own}
    for name in given:
        if name not in names:
            raise SchoolError(f"search `{spec}` has an unknown option `{name}`{suggest(name, names)}")
    try:
        return Search.model_validate({"budget": budget, **config, **given})
    except ValidationError as error:
        first = error.errors()[0]
        name, value = first["loc"][0], first["input"]
        raise SchoolError(f"search `{spec}`: the option `{name}` is `{value}`: {requirement(first['msg'])}") from None


@dataclass(frozen=True)
class SearchResult:
    """The result of a search for one problem.

    `rollout`: the rollout with the selected answer; None if the search found no answer.
    `tokens`: the total number of sampled tokens, including the tokens that were sampled to compute values of thoughts.
    `stop_reason`: the reason why the search ended, in words.
    `tree`: the tree of thoughts; None if the search did not build a tree.
    `votes`: each distinct answer with its count, the most frequent answer first.
    """

    rollout: Rollout | None
    tokens: int
    stop_reason: str
    tree: Tree | None = None
    votes: tuple[tuple[str, int], ...] = ()


def solve(
    policy: Generator, task: Task, prompts: Sequence[Rollout], search: Search, value_fn: ValueFn | None = None
) -> list[SearchResult]:
    """Search for an answer to each problem. The searches of all problems run at the same time.

    `Conversation.prompt_rollout` makes the prompt of a problem. Raises SchoolError if the task lacks a function that
    the search needs, or if the token budget is too small for one answer.

    `value_fn`: a function that gives the values of thoughts, instead of `search.values`.
    """
    match search.kind:
        case "budget_force":
            return _force_budget(policy, prompts, search)
        case "revise":
            return _revise(policy, prompts, search)
        case "sample" | "vote" | "weighted_vote" | "best_of_n":
            return _sample_and_select(policy, task, prompts, search, value_fn)
    value = _with_lookahead(policy, task, search, value_fn or _value_fn(policy, task, search))
    expand = _thought_source(policy, task, search)
    if search.kind == "dvts" and expand.max_children < search.beam_width:
        raise SchoolError(
            f"the search `dvts` begins with {expand.max_children} thoughts, but `beam_width` asks for "
            f"{search.beam_width} separate subtrees: set `samples` to the value of `beam_width` or more"
        )
    trees = [Tree(Node(prompt), search.budget, search_costs(expand, value)) for prompt in prompts]
    explore(trees, [_strategy(tree, search) for tree in trees], expand, value)
    return [_select_answer(policy, tree, search.selection) for tree in trees]


@dataclass
class SearchGenerator:
    """A search with the interface of a policy. The completion of a prompt is the answer that the search finds.

    The field `results` holds the search results of the last call.
    """

    policy: Generator
    task: Task
    search: Search
    results: list[SearchResult] = field(default_factory=list)
    conversation: Conversation = field(init=False)

    def __post_init__(self) -> None:
        self.conversation = self.policy.conversation

    @property
    def max_seq_len(self) -> int:
        return self.policy.max_seq_len

    def extend(
        self,
        rollouts: Sequence[Rollout],
        max_new_tokens: int | Sequence[int],
        *,
        progress: Callable[[int], None] | None = None,
        **_: Any,
    ) -> list[Rollout]:
        """Search for an answer to each prompt. If the search finds no answer, the completion is empty.

        The options of the search set the sampling parameters, and the arguments of `extend` are ignored.
        """
        self.results = solve(self.policy, self.task, rollouts, self.search)
        if progress:
            progress(len(rollouts))
        pairs = zip(rollouts, self.results, strict=True)
        return [result.rollout or prompt.append_sampled((), (), "length", 0) for prompt, result in pairs]

    def to_json(self) -> dict[str, Any]:
        """Return the options of the search.

        The result also has, for each problem, the number of sampled tokens and the reason why the search ended.
        """
        results = [{"tokens": result.tokens, "stop_reason": result.stop_reason} for result in self.results]
        budget = None if self.search.budget == inf else self.search.budget
        return {"search": {**self.search.model_dump(mode="json"), "budget": budget}, "search_results": results}

    def summary(self) -> str:
        """Summarise the last search in words: the number of tokens, and how often each reason ended a search."""
        tokens = [result.tokens for result in self.results]
        reasons = Counter(result.stop_reason for result in self.results)
        counts = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        name = self.search.file or self.search.kind
        return f"{name}: {fmean(tokens):,.0f} tokens a problem (at most {max(tokens):,}); {counts}"


# --- the parts of a tree search


def _thought_source(policy: Generator, task: Task, search: Search) -> ThoughtSampler | ThoughtProposer:
    answer_tokens, temperature = search.max_new_tokens, search.temperature
    if search.thoughts == "propose":
        sizes = (search.samples, search.proposal_tokens, answer_tokens)
        return ThoughtProposer(policy, task, *sizes, temperature, search.num_proposals)
    return ThoughtSampler(policy, task, search.samples, search.step_tokens, answer_tokens, temperature)


def _with_lookahead(policy: Generator, task: Task, search: Search, value_fn: ValueFn) -> ValueFn:
    if not search.lookahead:
        return value_fn
    sampler = ThoughtSampler(policy, task, 1, search.step_tokens, search.max_new_tokens, 0.0)
    return LookaheadValue(sampler, value_fn, search.lookahead)


def _value_fn(policy: Generator, task: Task, search: Search) -> ValueFn:
    match search.values:
        case "prompt":
            return PromptedValue(policy, task, search.value_samples, temperature=search.temperature)
        case "vote":
            return VoteValue(policy, task, search.value_samples, temperature=search.temperature)
        case "exact":
            return ExactValue(policy.conversation, task)
        case "random":
            return RandomValue()
    model = Policy.load(search.values)
    check_same_tokenizer(policy.conversation, model.conversation, "the policy", f"the reward model {search.values}")
    if search.reference_model:
        set_by_user = "step_aggregation" in search.model_fields_set
        aggregation = {"step_aggregation": search.step_aggregation} if set_by_user else {}
        reference = Policy.load(search.reference_model)
        return RewardModelValue(ImplicitRewardModel(model, reference, task.delimiter, **aggregation))
    return RewardModelValue(RewardModel(model, task.delimiter, search.label_places, search.step_aggregation))


def _strategy(tree: Tree, search: Search) -> Strategy:
    match search.kind:
        case "python":
            return run_user_strategy(search.file, tree, search.options)
        case "dfs":
            return depth_first(tree, search.threshold, search.depth)
    return breadth_first(tree, search.beam_width, search.depth, independent_subtrees=search.kind == "dvts")


def _select_answer(policy: Generator, tree: Tree, selection: str) -> SearchResult:
    answers = tree.answers
    if not answers:
        return SearchResult(None, tree.tokens, tree.stop_reason, tree)
    rollouts = [node.state for node in answers]
    winner, votes = weighted_vote(policy.conversation, rollouts, [node.value for node in answers])
    best = rollouts[0] if selection == "best" else rollouts[winner]
    return SearchResult(best, tree.tokens, tree.stop_reason, tree, votes)


# --- searches without a tree


def _check_budget(search: Search, max_tokens: int) -> None:
    if max_tokens > search.budget:
        raise SchoolError(
            f"the search `{search.kind}` can need {max_tokens} tokens, but the budget is {search.budget:g} tokens: "
            "raise the budget, or lower `max_new_tokens` and the other lengths of the search"
        )


def _force_budget(policy: Generator, prompts: Sequence[Rollout], search: Search) -> list[SearchResult]:
    _check_budget(search, max_forced_tokens(policy.conversation, search.max_think, search.max_new_tokens))
    bounds = (search.min_think, search.max_think, search.max_new_tokens)
    forced = budget_force(policy, prompts, *bounds, wait_text=search.wait_text, temperature=search.temperature)
    return [SearchResult(result.rollout, result.tokens, "one answer") for result in forced]


def _revise(policy: Generator, prompts: Sequence[Rollout], search: Search) -> list[SearchResult]:
    _check_budget(search, search.samples * search.max_new_tokens)
    results = []
    chains = revise(policy, prompts, search.samples, search.max_new_tokens, search.temperature)
    for prompt, chain in zip(prompts, chains, strict=True):
        winner, votes = weighted_vote(policy.conversation, chain)
        tokens = sum(chain[-1].loss_mask[len(prompt) :])
        results.append(SearchResult(chain[winner], tokens, f"{len(chain)} attempts", votes=votes))
    return results


def _sample_and_select(
    policy: Generator, task: Task, prompts: Sequence[Rollout], search: Search, value_fn: ValueFn | None
) -> list[SearchResult]:
    """Sample as many complete answers as the budget allows, and select one answer.

    `vote` selects the most frequent answer. `weighted_vote` selects the answer with the largest total value.
    `best_of_n` selects the answer with the best value.
    """
    wanted = 1 if search.kind == "sample" else search.samples
    value = None
    if search.kind in ("weighted_vote", "best_of_n"):
        value = value_fn or _value_fn(policy, task, search)
    cost = search.max_new_tokens + (value.max_tokens if value else 0)
    count = wanted if search.budget == inf else min(wanted, int(search.budget // cost))
    if not count:
        raise SchoolError(
            f"the search budget of {search.budget:g} tokens is too small, because one answer can cost {cost} tokens: "
            "raise the budget, or lower `max_new_tokens`"
        )
    repeated = [
        replace(prompt, key=prompt.key._replace(sample=prompt.key.sample * count + g))
        for prompt in prompts
        for g in range(count)
    ]
    completions = policy.extend(repeated, search.max_new_tokens, temperature=search.temperature)
    valuations = value([Node(rollout) for rollout in completions]) if value else [Valuation(1.0, 0)] * len(completions)
    shortened = "" if count == wanted else f"; the budget paid for {count} of {wanted}"
    results = []
    for at, prompt in enumerate(prompts):
        own = slice(at * count, (at + 1) * count)
        answers, values = completions[own], [valuation.value for valuation in valuations[own]]
        winner, votes = weighted_vote(policy.conversation, answers, values, task.normalized_answer)
        if search.kind == "best_of_n":  # a truncated answer has fewer steps, and so an easier product
            complete = [policy.conversation.parse_completion(answer).complete for answer in answers]
            winner = max(range(count), key=lambda i: (complete[i], -inf if isnan(values[i]) else values[i]))
        tokens = sum(len(answer) - len(prompt) for answer in answers)
        tokens += sum(valuation.tokens for valuation in valuations[own])
        results.append(SearchResult(answers[winner], tokens, f"{count} answers{shortened}", votes=votes))
    return results


def _names(literal: Any) -> str:
    return ", ".join(get_args(literal))
