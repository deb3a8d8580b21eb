"""Think longer about problems: one interface for all searches, counted in sampled tokens, the judges' included.

`Search` says how; `solve` runs it for many problems at once and gives what it found for each. `Searcher` sits an exam
with it, in the place of a policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isnan
from statistics import fmean
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError

from schoolhouse.config import BaseConfig, parse_query, suggest
from schoolhouse.data.chat import Conversation
from schoolhouse.policy.policy import Policy
from schoolhouse.reward_models.implicit import ImplicitRewardModel
from schoolhouse.reward_models.prm import LabelPlaces, RewardModel, StepAggregation, check_same_tokenizer
from schoolhouse.search.budget_forcing import budget_force, max_forced_tokens, revise
from schoolhouse.search.thoughts import (
    ExactValue,
    Generator,
    LookaheadValue,
    PromptedValue,
    RandomValue,
    RewardModelValue,
    ThoughtProposer,
    ThoughtSampler,
    ValueFn,
    VoteValue,
    search_costs,
)
from schoolhouse.search.tree import Answered, Node, Tree, breadth_first, depth_first, explore
from schoolhouse.search.vote import weighted_vote
from schoolhouse.tasks.base import Task
from schoolhouse.types import Rollout, SchoolError

Kind = Literal["sample", "vote", "weighted_vote", "best_of_n", "force", "revise", "tot", "dfs", "beam", "dvts"]


TREES: frozenset[Kind] = frozenset({"tot", "dfs", "beam", "dvts"})
"""Searches that grow a tree."""


class Search(BaseConfig):
    """How to think longer.

    sample, vote   one answer; the most frequent of several (self-consistency, Wang et al. 2022, arXiv 2203.11171)
    weighted_vote, best_of_n  of several answers that of the largest worth in all; the one worth most
    force          one answer with a thought of `least` to `most` tokens (budget forcing)
    revise         `samples` attempts, each behind those before it, and the most frequent answer
    tot, dfs       Tree of Thoughts, breadth first and depth first
    beam, dvts     several samples of each step, of which the best go on; each in a subtree of its own
    """

    kind: Kind = "sample"
    beam_width: int = Field(5, gt=0)
    """Thoughts kept of each level."""
    depth: int = Field(16, gt=0)
    """Levels of the tree, the answer's included: a thought of more steps is never answered."""
    samples: int = Field(5, gt=0)
    """Answers to vote among; or samples of each step, or lines read of each list of proposals."""
    thoughts: Literal["sample", "propose"] = "sample"
    """Let the policy go on by itself, or ask it what may come next."""
    values: str = "ask"
    """Who says what a thought is worth: the policy, about each (ask) or which is best (vote), the task's rules (exact,
    an oracle), a die (random, a control), or the reward model in a folder."""
    label_places: LabelPlaces = "steps"
    """Behind what that reward model was trained to judge: steps, or the end of a solution."""
    reference_model: str = ""
    """Folder of the model that it was trained from, if it is an implicit one (labels: implicit)."""
    step_aggregation: StepAggregation = "product"
    """How its grades of steps become one: product or min for labels of steps, last for values of states."""
    value_samples: int = Field(3, gt=0)
    """Times a thought's worth is asked."""
    lookahead: int = Field(0, ge=0)
    """Judge a thought by where the likeliest steps lead, so many of them later."""
    threshold: float = 0.0
    """dfs: thoughts not worth more are pruned."""
    selection: Literal["best", "vote"] = "best"
    """Of several answers the one worth most, or that of the largest worth in all."""
    step_tokens: int = Field(32, gt=0)
    """Tokens of one step, where it is sampled."""
    proposal_tokens: int = Field(256, gt=0)
    """Tokens of a list of proposals."""
    num_proposals: int = Field(1, gt=0)
    """Lists of proposals asked for behind each thought; what several of them say is one thought."""
    max_new_tokens: int = Field(128, gt=0)
    """Tokens of a whole answer (sample, vote); of what stands behind the last step (trees)."""
    min_think: int = Field(0, ge=0)
    max_think: int = Field(64, gt=0)
    """force: tokens of a thought."""
    wait_text: str = "Wait"
    """force: the word that makes it go on."""
    temperature: float = Field(0.7, ge=0)
    budget: float = Field(inf, gt=0)
    """Tokens that may be sampled for one problem, judges included. A search never goes over it."""


def parse(spec: str, budget: float = inf) -> Search:
    """The search that `KIND[?OPTION=VALUE&...]` names: "tot", "vote?samples=32", "tot?breadth=1&values=random".

    Raises SchoolError naming what is unknown, with the nearest, or out of range.
    """
    kind, _, query = spec.partition("?")
    given = parse_query(f"search `{spec}`", query)
    for name in given:
        if name not in Search.model_fields or name in ("kind", "budget"):
            raise SchoolError(f"search `{spec}`: unknown option `{name}`{suggest(name, [*Search.model_fields])}")
    if kind not in get_args(Kind):
        raise SchoolError(f"unknown search `{kind}`{suggest(kind, get_args(Kind))}")
    try:
        return Search.model_validate({"kind": kind, "budget": budget, **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise SchoolError(f"search `{spec}`: `{first['loc'][0]}`: {first['msg'].lower()}") from None


@dataclass(frozen=True)
class SearchResult:
    """What a search found for one problem.

    rollout  the answer; None where there is none
    tokens   sampled in all, the judges' included
    end      why the search ended, in words
    tree     of its thoughts, where it grew one
    votes    how many answers there were of each kind, the most frequent first
    """

    rollout: Rollout | None
    tokens: int
    stop_reason: str
    tree: Tree | None = None
    votes: tuple[tuple[str, int], ...] = ()


def solve(
    policy: Generator, task: Task, prompts: Sequence[Rollout], search: Search, value_fn: ValueFn | None = None
) -> list[SearchResult]:
    """Search for an answer to each problem (a prefix that asks it, `Conversation.begin`), all at once.

    judge  says what thoughts are worth, in the place of `search.values`

    Raises SchoolError where the task cannot do what the search needs, or the budget does not pay for one answer.
    """
    if search.kind in ("force", "revise"):
        return _longer(policy, prompts, search)
    if search.kind in ("sample", "vote", "weighted_vote", "best_of_n"):
        return _voted(policy, task, prompts, search, value_fn)
    value = _values(policy, task, search, value_fn)
    expand: ThoughtSampler | ThoughtProposer
    if search.thoughts == "propose":
        expand = ThoughtProposer(policy, task, search.samples, search.proposal_tokens, search.max_new_tokens, search.temperature, search.num_proposals)
    else:
        expand = ThoughtSampler(policy, task, search.samples, search.step_tokens, search.max_new_tokens, search.temperature)
    trees = [Tree(Node(prefix), search.budget) for prefix in prompts]
    price = search_costs(expand, value)
    if search.kind == "dfs":
        ways = [depth_first(tree, search.threshold, search.depth, price) for tree in trees]
    else:
        apart = search.kind == "dvts"
        if apart and expand.max_children < search.beam_width:
            raise SchoolError(
                f"dvts begins with {expand.max_children} thoughts, so it cannot keep {search.beam_width} subtrees apart: set "
                "`samples` to `breadth` or more"
            )
        ways = [breadth_first(tree, search.beam_width, search.depth, price, apart) for tree in trees]
    explore(trees, ways, expand, value)
    return [_chosen(policy, tree, search.selection) for tree in trees]


@dataclass
class SearchGenerator:
    """Sits an exam in the place of a policy: what it says to a problem is what the search finds.

    `length` and `temperature` of the exam are the search's own business. `found` holds what was found last.
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
        """An answer to each problem; an empty one where the search found none. The search has its own parameters."""
        self.results = solve(self.policy, self.task, rollouts, self.search)
        if progress:
            progress(len(rollouts))
        pairs = zip(rollouts, self.results, strict=True)
        return [found.rollout or asked.append_sampled((), (), "length", 0) for asked, found in pairs]

    def to_json(self) -> dict[str, Any]:
        """The search, and what it cost and how it ended, problem by problem."""
        ends = [{"tokens": found.tokens, "end": found.stop_reason} for found in self.results]
        budget = None if self.search.budget == inf else self.search.budget
        return {"search": {**self.search.model_dump(mode="json"), "budget": budget}, "searches": ends}

    def summary(self) -> str:
        """What the last search cost, and how it ended, in words."""
        tokens = [found.tokens for found in self.results]
        ends = Counter(found.stop_reason for found in self.results)
        told = ", ".join(f"{count} x {end}" for end, count in ends.most_common())
        return f"{self.search.kind}: {fmean(tokens):,.0f} tokens a problem (at most {max(tokens):,}); {told}"


def _values(policy: Generator, task: Task, search: Search, judge: ValueFn | None) -> ValueFn:
    worth = judge or _judge(policy, task, search)
    if not search.lookahead:
        return worth
    return LookaheadValue(ThoughtSampler(policy, task, 1, search.step_tokens, search.max_new_tokens, 0.0), worth, search.lookahead)


def _judge(policy: Generator, task: Task, search: Search) -> ValueFn:
    match search.values:
        case "ask":
            return PromptedValue(policy, task, search.value_samples, temperature=search.temperature)
        case "vote":
            return VoteValue(policy, task, search.value_samples, temperature=search.temperature)
        case "exact":
            return ExactValue(policy.conversation, task)
        case "random":
            return RandomValue()
    judge = Policy.load(search.values)
    check_same_tokenizer(policy.conversation, judge.conversation, "the policy", f"the judge {search.values}")
    if search.reference_model:
        chosen = {"aggregate": search.step_aggregation} if "aggregate" in search.model_fields_set else {}
        return RewardModelValue(ImplicitRewardModel(judge, Policy.load(search.reference_model), task.delimiter, **chosen))
    return RewardModelValue(RewardModel(judge, task.delimiter, search.label_places, search.step_aggregation))


def _chosen(policy: Generator, tree: Tree, choose: str) -> SearchResult:
    answers = tree.answers
    if not answers:
        return SearchResult(None, tree.tokens, tree.stop_reason, tree)
    rollouts = [node.state for node in answers]
    winner, votes = weighted_vote(policy.conversation, rollouts, [node.value for node in answers])
    best = rollouts[0] if choose == "best" else rollouts[winner]
    return SearchResult(best, tree.tokens, tree.stop_reason, tree, votes)


def _longer(policy: Generator, prefixes: Sequence[Rollout], search: Search) -> list[SearchResult]:
    """One long thought, or a chain of attempts. Raises SchoolError where the budget might not pay for it."""
    forced = max_forced_tokens(policy.conversation, search.max_think, search.max_new_tokens)
    price = forced if search.kind == "force" else search.samples * search.max_new_tokens
    if price > search.budget:
        raise SchoolError(f"{search.kind} may take {price} tokens, the budget is {search.budget:g}: lower its lengths")
    if search.kind == "force":
        bounds = (search.min_think, search.max_think, search.max_new_tokens)
        spent = budget_force(policy, prefixes, *bounds, wait_text=search.wait_text, temperature=search.temperature)
        return [SearchResult(one.rollout, one.tokens, "one answer") for one in spent]
    found = []
    for prefix, chain in zip(
        prefixes, revise(policy, prefixes, search.samples, search.max_new_tokens, search.temperature), strict=True
    ):
        winner, votes = weighted_vote(policy.conversation, chain)
        tokens = sum(chain[-1].loss_mask[len(prefix) :])
        found.append(SearchResult(chain[winner], tokens, f"{len(chain)} attempts", votes=votes))
    return found


def _voted(
    policy: Generator, task: Task, prefixes: Sequence[Rollout], search: Search, judge: ValueFn | None
) -> list[SearchResult]:
    """Whole answers, as many as the budget pays for: the most frequent, that of the largest worth, or the best one."""
    count, judged = 1 if search.kind == "sample" else search.samples, search.kind in ("weighted_vote", "best_of_n")
    value = (judge or _judge(policy, task, search)) if judged else None
    price = search.max_new_tokens + (value.max_tokens if value else 0)
    paid = count if search.budget == inf else min(count, int(search.budget // price))
    if not paid:
        raise SchoolError(
            f"a budget of {search.budget:g} tokens does not pay for one answer of {price}: raise it, or lower `length`"
        )
    asked = [
        replace(prefix, key=prefix.key._replace(sample=prefix.key.sample * paid + g))
        for prefix in prefixes
        for g in range(paid)
    ]
    said = policy.extend(asked, search.max_new_tokens, temperature=search.temperature)
    worth = value([Node(rollout) for rollout in said]) if value else [Answered(1.0, 0) for _ in said]
    found = []
    for at, prefix in enumerate(prefixes):
        mine = slice(at * paid, (at + 1) * paid)
        few, worths = said[mine], [each.found for each in worth[mine]]
        winner, votes = weighted_vote(policy.conversation, few, worths)
        if search.kind == "best_of_n":
            ended = [
                policy.conversation.parse_completion(one).complete for one in few
            ]  # who is cut off has less to be graded
            winner = max(range(paid), key=lambda i: (ended[i], -inf if isnan(worths[i]) else worths[i]))
        short = "" if paid == count else f"; the budget paid for {paid} of {count}"
        tokens = sum(len(rollout) - len(prefix) for rollout in few) + sum(each.tokens for each in worth[mine])
        found.append(SearchResult(few[winner], tokens, f"{len(few)} answers{short}", votes=votes))
    return found
