"""Trees of thoughts, and strategies that search them. The code in this file does not look into a thought.

Tree of Thoughts, Yao et al. 2023, arXiv 2305.10601 (breadth first, depth first); beam search with a verifier, Snell et
al. 2024, arXiv 2408.03314; diverse verifier tree search, Beeching et al. 2024 (scaling test-time compute).

A strategy is a generator function for the tree of one problem, and its code follows its paper. The generator yields a
`Request` to expand nodes or to value nodes, and receives one result for each node. `explore` runs many strategies at
once: the requests of all problems are served together, in one batch of the sampler. `grow` is the step that all
strategies here share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any, Literal, NamedTuple

Status = Literal["open", "expanded", "answer", "dropped", "pruned", "duplicate"]
"""`dropped`: other nodes had better values; `pruned`: the value of this node is not above the threshold; `duplicate`:
the same thought is already in the tree."""


class Candidate(NamedTuple):
    """A possible next thought: its state, and the text that is shown for it.

    is_answer  this candidate answers the problem
    dedup_key  candidates with the same key count as one thought; None: this candidate is never a duplicate
    """

    state: Any
    text: str
    is_answer: bool = False
    dedup_key: Hashable = None


@dataclass(eq=False)
class Node:
    """A thought in a tree, with all thoughts before it."""

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
        """The nodes from the first thought to this one. The root (the problem) is left out."""
        return [] if self.parent is None else [*self.parent.path, self]


@dataclass(frozen=True)
class Costs:
    """Upper limits of the tokens for expanding one node and for valuing one node. Budgets are planned with them.

    max_children  the largest number of candidates of one expansion
    """

    expand: int = 0
    value: int = 0
    max_children: int = 1

    @property
    def per_node(self) -> int:
        """The cost of expanding one node and valuing all its children."""
        return self.expand + self.max_children * self.value


@dataclass(eq=False)
class Tree:
    """The thoughts about one problem, in order of creation.

    budget  the limit of sampled tokens, including those for values; `tokens` counts the tokens used so far
    stop_reason  why the search ended, in words
    """

    root: Node
    budget: float = inf
    costs: Costs = Costs()
    nodes: list[Node] = field(default_factory=list)
    tokens: int = 0
    stop_reason: str = ""

    @property
    def answers(self) -> list[Node]:
        """Nodes that answer the problem. The best node is first, and nodes without a value are last.

        Nodes of equal value are in order of creation.
        """
        return sorted((node for node in self.nodes if node.is_answer), key=rank)

    def affordable(self, nodes: list[Node]) -> list[Node]:
        """The first of these nodes: as many as the remaining budget can expand and value."""
        cost = self.costs.per_node
        if self.budget == inf or not cost:
            return nodes
        return nodes[: max(0, int((self.budget - self.tokens) // cost))]


class Request(NamedTuple):
    """A strategy's request: expand or value some nodes of its tree."""

    action: Literal["expand", "value"]
    nodes: Sequence[Node]


class Expansion(NamedTuple):
    """The candidates that follow one node, and the number of tokens that were sampled for them."""

    candidates: Sequence[Candidate]
    tokens: int


class Valuation(NamedTuple):
    """The value of one node (nan if unknown), and the number of tokens that were sampled to get this value."""

    value: float
    tokens: int


Strategy = Generator[Request, list[Any], None]
"""A strategy. For each node of a request it receives the node's candidates (`expand`) or its value (`value`)."""
ExpandNodes = Callable[[Sequence[Node]], Sequence[Expansion]]
ValueNodes = Callable[[Sequence[Node]], Sequence[Valuation]]


def explore(trees: Sequence[Tree], strategies: Sequence[Strategy], expand: ExpandNodes, value: ValueNodes) -> None:
    """Run one strategy on each tree. All strategies run together, and each tree is filled in place."""
    requests = {at: request for at, strategy in enumerate(strategies) if (request := next(strategy, None)) is not None}
    while requests:
        results: dict[int, list[Any]] = {at: [] for at in requests}
        for action, serve in (("expand", expand), ("value", value)):
            wanted = [
                (at, node) for at, request in requests.items() if request.action == action for node in request.nodes
            ]
            if not wanted:
                continue
            for (at, _), (result, tokens) in zip(wanted, serve([node for _, node in wanted]), strict=True):
                trees[at].tokens += tokens
                results[at].append(result)
        requests = {at: request for at in requests if (request := _send(strategies[at], results[at])) is not None}


def breadth_first(tree: Tree, beam_width: int, depth: int, independent_subtrees: bool = False) -> Strategy:
    """Search level by level and keep the `beam_width` best nodes of each level.

    This is the BFS of Tree of Thoughts. With sampled steps it is beam search.

    independent_subtrees  below the first level every kept node keeps its own best child: diverse verifier tree search
    Answers are not expanded and do not count in the beam width.
    """
    frontier, seen = [tree.root], set[Hashable]()
    for level in range(depth):
        parents = tree.affordable(frontier)
        if not parents:
            tree.stop_reason = f"the budget of {tree.budget:g} tokens is too small for one more thought"
            break
        shortened = len(parents) < len(frontier)
        children = yield from grow(tree, parents, seen)
        if independent_subtrees and level:
            subtrees = [[child for child in children if child.parent is parent] for parent in parents]
            kept = sorted((min(subtree, key=rank) for subtree in subtrees if subtree), key=rank)
        else:
            kept = sorted(children, key=rank)[:beam_width]
        for child in children:
            child.status = "open" if child in kept else "dropped"
        seen |= {node.dedup_key for node in kept}
        frontier = kept
        if not frontier:
            break
        if shortened:
            tree.stop_reason = f"the budget of {tree.budget:g} tokens did not pay for all thoughts of a level"
    if not tree.stop_reason:
        tree.stop_reason = outcome(tree, f"{depth} thoughts deep" if frontier else "")


def depth_first(tree: Tree, threshold: float, depth: int, max_expansions: int = 100, num_answers: int = 1) -> Strategy:
    """Expand the best child first, and return to earlier nodes where a branch ends.

    A child whose value is not above `threshold` is pruned.

    max_expansions  the search stops after expanding this many nodes
    num_answers     the search stops after this many answers; a pruned answer does not count
    """
    stack, seen, expanded = [tree.root], set[Hashable](), 0
    while stack:
        if expanded == max_expansions:
            tree.stop_reason = f"gave up after {max_expansions} thoughts"
            return
        if not tree.affordable(stack[-1:]):
            tree.stop_reason = f"the budget of {tree.budget:g} tokens is too small for one more thought"
            return
        children = yield from grow(tree, [stack.pop()], seen, threshold)
        expanded += 1
        if len(tree.answers) >= num_answers:
            break
        seen |= {node.dedup_key for node in children}
        deeper = [node for node in reversed(children) if node.depth < depth]
        stack += sorted(deeper, key=rank, reverse=True)  # the best last; of equals the first
    tree.stop_reason = outcome(tree)


def grow(
    tree: Tree,
    parents: Sequence[Node],
    seen: Collection[Hashable] = (),
    threshold: float = -inf,
    value: Callable[[Node], float] | None = None,
) -> Generator[Request, list[Any], list[Node]]:
    """Expand nodes and value their children. Return the open children: no answers, no duplicates, no pruned nodes.

    If several children have the same key, the one with the best value stays.

    seen       children with one of these keys are duplicates, and are not valued
    threshold  a child whose value is not above the threshold is pruned
    value      a function of the strategy that gives the values, instead of a request
    """
    expansions = yield Request("expand", parents)
    fresh: list[Node] = []
    for parent, candidates in zip(parents, expansions, strict=True):
        parent.status = "expanded"
        for candidate in candidates:
            known = candidate.dedup_key is not None and candidate.dedup_key in seen
            is_answer = candidate.is_answer and not known
            child = Node(candidate.state, candidate.text, parent, is_answer, dedup_key=candidate.dedup_key)
            child.status = "duplicate" if known else "answer" if is_answer else "open"
            tree.nodes.append(child)
            fresh += [] if known else [child]
    values = [value(node) for node in fresh] if value else (yield Request("value", fresh)) if fresh else []
    for node, node_value in zip(fresh, values, strict=True):
        node.value = node_value
        if threshold > -inf and not node_value > threshold:
            node.status, node.is_answer = "pruned", False
    best: dict[Hashable, Node] = {}
    for node in sorted(fresh, key=rank):
        if node.dedup_key is not None and best.setdefault(node.dedup_key, node) is not node and node.status != "pruned":
            node.status, node.is_answer = "duplicate", False
    return [node for node in fresh if node.status == "open"]


def rank(node: Node) -> float:
    """A sort key that puts the best value first and nodes without a value last."""
    return -node.value if node.value == node.value else inf


def outcome(tree: Tree, cut: str = "") -> str:
    """Why a search ended before its budget was used up. `cut` says what stopped the nodes that were still open."""
    if not tree.answers:
        return cut or "no thought is left to expand"
    if any(not node.value <= 0 for node in tree.answers):  # an unknown value is not 0
        return "answered"
    return "all its answers have value 0" + (f", {cut}" if cut else "")


def _send(strategy: Strategy, results: list[Any]) -> Request | None:
    try:
        return strategy.send(results)
    except StopIteration:
        return None
