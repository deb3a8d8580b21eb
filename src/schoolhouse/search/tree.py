"""Trees of thoughts, and strategies that search these trees. The code in this file does not read the text of thoughts.

Breadth-first and depth-first search are the searches of Tree of Thoughts (Yao et al. 2023, arXiv 2305.10601). Beam
search with a verifier comes from Snell et al. 2024 (arXiv 2408.03314). Diverse verifier tree search comes from Beeching
et al. 2024 (scaling test-time compute).

A strategy is a generator function for the tree of one problem, and the code of each strategy follows its paper. A
strategy yields a `Request` to expand nodes (add children) or to compute the values of nodes, and receives one result
for each node. The function `explore` runs many strategies at the same time: the requests of all problems are served
together, in one batch of the sampler. All strategies in this file use the function `grow`, which expands nodes (adds
children) and computes the values of the children.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any, Literal, NamedTuple

Status = Literal["open", "expanded", "answer", "dropped", "pruned", "duplicate"]
"""The status of a node. `dropped`: other nodes had better values. `pruned`: the value of the node is not above the
threshold. `duplicate`: the same thought is already in the tree."""


class Candidate(NamedTuple):
    """A possible next thought: its state, and the text that is shown for the thought.

    `is_answer`: whether the candidate answers the problem.
    `dedup_key`: a key that identifies equal thoughts. Candidates with the same key count as one thought. A candidate
        without a key (None) is never a duplicate.
    """

    state: Any
    text: str
    is_answer: bool = False
    dedup_key: Hashable = None


@dataclass(eq=False)
class Node:
    """A node of a tree: one thought, with all thoughts that come before this thought."""

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
        """The nodes from the first thought to this node. The list does not contain the root (the problem)."""
        return [] if self.parent is None else [*self.parent.path, self]


@dataclass(frozen=True)
class Costs:
    """Two upper limits: the tokens that are sampled to expand one node, and to compute the value of one node.

    A search uses the upper limits to decide whether its token budget allows one more request.

    `max_children`: the largest number of candidates that one expansion can give.
    """

    expand: int = 0
    value: int = 0
    max_children: int = 1

    @property
    def per_node(self) -> int:
        """The largest number of tokens that are needed to expand one node and to compute the values of its children."""
        return self.expand + self.max_children * self.value


@dataclass(eq=False)
class Tree:
    """The tree of thoughts about one problem. The list of nodes is in the order in which the nodes were created.

    `budget`: the maximum number of sampled tokens, including the tokens that are sampled to compute values of thoughts.
    `tokens`: the number of tokens that were sampled so far.
    `stop_reason`: the reason why the search ended, in words.
    """

    root: Node
    budget: float = inf
    costs: Costs = Costs()
    nodes: list[Node] = field(default_factory=list)
    tokens: int = 0
    stop_reason: str = ""

    @property
    def answers(self) -> list[Node]:
        """The nodes that answer the problem. The best node is first, and nodes without a value are last.

        Nodes with equal values are in the order in which they were created.
        """
        return sorted((node for node in self.nodes if node.is_answer), key=rank)

    def affordable(self, nodes: list[Node]) -> list[Node]:
        """Return the first nodes of the list. The remaining token budget limits the number of returned nodes."""
        cost = self.costs.per_node
        if self.budget == inf or not cost:
            return nodes
        return nodes[: max(0, int((self.budget - self.tokens) // cost))]


class Request(NamedTuple):
    """A request of a strategy: either expand some nodes (add children), or compute the values of some nodes."""

    action: Literal["expand", "value"]
    nodes: Sequence[Node]


class Expansion(NamedTuple):
    """The candidates that follow one node, and the number of tokens that were sampled for these candidates."""

    candidates: Sequence[Candidate]
    tokens: int


class Valuation(NamedTuple):
    """The value of one node (nan if unknown), and the number of tokens that were sampled to get this value."""

    value: float
    tokens: int


Strategy = Generator[Request, list[Any], None]
"""A strategy. For each node of a request, the strategy receives the node's candidates (action `expand`) or the node's
value (action `value`)."""
ExpandNodes = Callable[[Sequence[Node]], Sequence[Expansion]]
ValueNodes = Callable[[Sequence[Node]], Sequence[Valuation]]


def explore(trees: Sequence[Tree], strategies: Sequence[Strategy], expand: ExpandNodes, value: ValueNodes) -> None:
    """Run one strategy on each tree.

    All strategies run at the same time, and each strategy adds nodes to its own tree.
    """
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
    """Search level by level, and keep the `beam_width` best nodes of each level.

    The function `breadth_first` is the breadth-first search of Tree of Thoughts. If thoughts are sampled steps,
    `breadth_first` is a beam search. Nodes that are answers are not expanded, and do not count towards `beam_width`.

    `independent_subtrees`: if true, the search is diverse verifier tree search: below the first level, each kept node
        keeps its own best child.
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
    """Expand the best child first. When a branch ends, continue with the nodes that were not expanded yet.

    A child is pruned if its value is not above `threshold`.

    `max_expansions`: the number of expanded nodes after which the search stops.
    `num_answers`: the number of answers after which the search stops. Pruned answers are not counted in `num_answers`.
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
    """Expand nodes (add children), and compute the values of the children. Return the children that are still open.

    A child is open if it is not an answer, not a duplicate and not pruned. If several children have the same key, only
    the child with the best value stays.

    `seen`: the keys of earlier thoughts. A child whose key is in `seen` is a duplicate and gets no value.
    `threshold`: the limit for pruning. A child is pruned if its value is not above the threshold.
    `value`: the strategy's own function that gives the values. Without the function `value`, `grow` yields a request
        for the values.
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
    """Return a sort key for a node. Sorting by this key puts the best value first, and nodes without a value last."""
    return -node.value if node.value == node.value else inf


def outcome(tree: Tree, cut: str = "") -> str:
    """Return the reason why a search ended before its budget was used up.

    `cut` is the reason why some nodes were not expanded.
    """
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
