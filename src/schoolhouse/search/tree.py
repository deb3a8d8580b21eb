"""Trees of thoughts, and the ways through them. Nothing here knows what a thought is.

Tree of Thoughts, Yao et al. 2023, arXiv 2305.10601 (breadth first, depth first); beam search with a verifier, Snell et
al. 2024, arXiv 2408.03314; diverse verifier tree search, Beeching et al. 2024 (scaling test-time compute).

A way through a tree is a generator for one problem that reads like its paper: it yields what it wants expanded or
valued, and goes on when that has been done. `explore` runs many at once, so that the wishes of all problems are
answered together, in one batch of the sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any, Literal, NamedTuple

Status = Literal["open", "expanded", "answer", "dropped", "pruned", "repeat"]
"""`dropped` there were better ones, `pruned` worth less than the threshold, `repeat` the same was thought before."""


class Candidate(NamedTuple):
    """A thought that may follow: its state, what is shown of it, and whether it answers the problem.

    same  two offers with the same are one thought
    """

    state: Any
    text: str
    is_answer: bool = False
    dedup_key: Hashable = None


@dataclass(eq=False)
class Node:
    """A thought in a tree, with all before it."""

    state: Any
    text: str = ""
    parent: Node | None = None
    is_answer: bool = False
    value: float = nan
    status: Status = "open"
    dedup_key: Hashable = None

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else 1 + self.parent.depth

    @property
    def path(self) -> list[Node]:
        """From the first thought to this one; the root, which is the problem, is left out."""
        return [] if self.parent is None else [*self.parent.path, self]


@dataclass(eq=False)
class Tree:
    """One problem's thoughts, in the order in which they were had.

    tokens  sampled for it, the judges' included; `budget` is the most there may be
    end     why the search ended, in words
    """

    root: Node
    budget: float = inf
    nodes: list[Node] = field(default_factory=list)
    tokens: int = 0
    stop_reason: str = ""

    @property
    def answers(self) -> list[Node]:
        """Thoughts that answer the problem, the best first; without a value last; among equals the earlier."""
        return sorted((node for node in self.nodes if node.is_answer), key=_rank)


class Request(NamedTuple):
    """What a search wants done with some thoughts of one tree."""

    action: Literal["expand", "value"]
    nodes: Sequence[Node]


class Answered(NamedTuple):
    """What was found for one thought, and the tokens that took."""

    found: Any
    tokens: int


Strategy = Generator[Request, list[Any], None]
Expand = Callable[[Sequence[Node]], Sequence[Answered]]
"""For each thought its offers (`found`)."""
Value = Callable[[Sequence[Node]], Sequence[Answered]]
"""For each thought what it is worth (`found`); nan where nobody can tell."""


@dataclass(frozen=True)
class Costs:
    """The most tokens that expanding and valuing one thought can take: what a budget is planned with.

    children  the most offers an expansion can make
    """

    expand: int = 0
    value: int = 0
    max_children: int = 1

    @property
    def per_node(self) -> int:
        """Expanding one thought, and valuing what comes of it."""
        return self.expand + self.max_children * self.value


def explore(trees: Sequence[Tree], strategies: Sequence[Strategy], expand: Expand, value: Value) -> None:
    """Run one way through each tree, all together. Trees are filled in place."""
    asking = {at: wish for at, way in enumerate(strategies) if (wish := next(way, None)) is not None}
    while asking:
        answers: dict[int, list[Any]] = {}
        for what, do in (("expand", expand), ("value", value)):
            wanted = [(at, node) for at, wish in asking.items() if wish.action == what for node in wish.nodes]
            if not wanted:
                continue
            for (at, _), (found, tokens) in zip(wanted, do([node for _, node in wanted]), strict=True):
                trees[at].tokens += tokens
                answers.setdefault(at, []).append(found)
        asking = {at: wish for at in asking if (wish := _send(strategies[at], answers.get(at, []))) is not None}


def breadth_first(tree: Tree, beam_width: int, depth: int, costs: Costs, independent_subtrees: bool = False) -> Strategy:
    """Level by level, of which the `breadth` best thoughts are kept: Tree of Thoughts' BFS; with samples, beam search.

    apart  after the first level every kept thought keeps its own best child alone: diverse verifier tree search
    Answers stop growing; they take no place from thoughts that still may.
    """
    front, seen = [tree.root], set[Hashable]()
    for level in range(depth):
        front, left = affordable(tree, front, costs.per_node), front
        if not front:
            tree.stop_reason = f"the budget of {tree.budget:g} tokens does not pay for one more thought"
            break
        short = len(left) > len(front)
        open_ = yield from grow(tree, front, seen)
        if independent_subtrees and level:
            kept = [min(mine, key=_rank) for parent in front if (mine := [n for n in open_ if n.parent is parent])]
            kept.sort(key=_rank)
        else:
            kept = sorted(open_, key=_rank)[:beam_width]
        for node in open_:
            node.status = "open" if node in kept else "dropped"
        seen |= {node.dedup_key for node in kept}
        front = kept
        if not front:
            break
        if short:
            tree.stop_reason = f"the budget of {tree.budget:g} tokens did not pay for all thoughts of a level"
    if not tree.stop_reason:
        tree.stop_reason = _outcome(tree, f"{depth} thoughts deep" if front else "")


def depth_first(tree: Tree, threshold: float, depth: int, costs: Costs, max_expansions: int = 100, num_answers: int = 1) -> Strategy:
    """The best child first, back where nothing is left; a thought not above `threshold` is pruned with all behind it.

    most    thoughts expanded before the search gives up
    enough  answers after which it stops; an answer that is pruned is none
    """
    stack, seen, expanded = [tree.root], set[Hashable](), 0
    while stack:
        if expanded == max_expansions:
            tree.stop_reason = f"gave up after {max_expansions} thoughts"
            return
        if not affordable(tree, stack[-1:], costs.per_node):
            tree.stop_reason = f"the budget of {tree.budget:g} tokens does not pay for one more thought"
            return
        open_ = yield from grow(tree, [stack.pop()], seen, threshold)
        expanded += 1
        if len(tree.answers) >= num_answers:
            break
        seen |= {node.dedup_key for node in open_}
        deeper = [node for node in reversed(open_) if node.depth < depth]
        stack += sorted(deeper, key=_rank, reverse=True)  # the best last; of equals the first
    tree.stop_reason = _outcome(tree)


def _outcome(tree: Tree, cut: str = "") -> str:
    """Why a search ended that had tokens left; `cut` says what stopped thoughts that were still open."""
    if not tree.answers:
        return cut or "the tree died out"
    if any(not node.value <= 0 for node in tree.answers):  # nan, nobody's opinion, is no 0
        return "answered"
    return "its answers are worth nothing" + (f", {cut}" if cut else "")


def grow(
    tree: Tree, front: Sequence[Node], seen: Collection[Hashable], threshold: float = -inf
) -> Generator[Request, list[Any], list[Node]]:
    """The children of some thoughts, valued, that may go on: no answers, no repeats, none that is pruned.

    Of children that are one thought the one worth most stays; what went on before is not valued again.
    """
    offers = yield Request("expand", front)
    fresh: list[Node] = []
    for parent, offered in zip(front, offers, strict=True):
        parent.status = "expanded"
        for offer in offered:
            known = offer.same is not None and offer.same in seen
            child = Node(offer.state, offer.text, parent, offer.answers and not known, dedup_key=offer.same)
            child.status = "repeat" if known else "answer" if offer.answers else "open"
            tree.nodes.append(child)
            fresh += [] if known else [child]
    for node, worth in zip(fresh, (yield Request("value", fresh)) if fresh else [], strict=True):
        node.value = worth
        if threshold > -inf and not worth > threshold:
            node.status, node.is_answer = "pruned", False
    best: dict[Hashable, Node] = {}
    for node in sorted(fresh, key=_rank):
        if node.dedup_key is not None and best.setdefault(node.dedup_key, node) is not node and node.status != "pruned":
            node.status, node.is_answer = "repeat", False
    return [node for node in fresh if node.status == "open"]


def affordable(tree: Tree, front: list[Node], cost: int) -> list[Node]:
    """As many of them, the best first, as the budget pays for."""
    if tree.budget == inf or not cost:
        return front
    return front[: max(0, int((tree.budget - tree.tokens) // cost))]


def _rank(node: Node) -> float:
    """Sorts the best first, and thoughts without a value last."""
    return -node.value if node.value == node.value else inf


def _send(way: Strategy, answers: list[Any]) -> Request | None:
    try:
        return way.send(answers)
    except StopIteration:
        return None
