"""A search strategy of your own: best-first search over a tree of thoughts, by a value of your own.

school solve MODEL "Sum 4 5" --task python:examples/my_task.py --search examples/my_search.py --show
"""

from schoolhouse.search.tree import Node, Strategy, Tree, grow, rank


def shortest_first(tree: Tree, max_expansions: int = 20) -> Strategy:
    """Expand the best open thought, until there is an answer. Options: examples/my_search.py?max_expansions=9"""
    frontier = [tree.root]
    for _ in range(max_expansions):
        if tree.answers or not frontier:
            return
        frontier.sort(key=rank)
        frontier += yield from grow(tree, [frontier.pop(0)], value=brevity)


def brevity(node: Node) -> float:
    """The fewer tokens, the better. Without `value=brevity` the values are those of `?values=...` (docs/search.md)."""
    return 1 / len(node.state)
