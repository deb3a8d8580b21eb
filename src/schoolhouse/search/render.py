"""A tree of thoughts to look at: in the terminal, as a page that needs nothing else, and as plain data."""

from __future__ import annotations

from collections.abc import Container, Sequence
from html import escape
from math import isnan
from typing import TYPE_CHECKING, Any

from schoolhouse.search.solve import SearchResult
from schoolhouse.search.tree import Node, Tree
from schoolhouse.types import Key

if TYPE_CHECKING:
    from rich.tree import Tree as Drawn

_SHOWN = 60  # characters of a thought


def draw(result: SearchResult) -> Drawn:
    """The tree for a terminal: the path taken bold, what was dropped or pruned dim, values behind thoughts."""
    from rich.text import Text
    from rich.tree import Tree as Drawn

    tree, path = result.tree, _path(result)
    assert tree is not None
    drawn = {tree.root: Drawn(Text(tree.root.state.problem.messages[-1].content))}
    for node in tree.nodes:
        assert node.parent is not None
        style = "bold" if node in path else "dim" if node.status in ("dropped", "pruned", "repeat") else ""
        drawn[node] = drawn[node.parent].add(Text(label(node), style=style))
    return drawn[tree.root]


def label(node: Node) -> str:
    """A thought in one line: what was thought, what it is worth, what became of it."""
    text = " ".join(node.text.split())
    short = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    worth = "" if isnan(node.value) else f"  {node.value:.3g}"
    fate = "" if node.status in ("expanded", "open") else f"  {node.status}"
    return f"{short}{worth}{fate}"


def html_page(result: SearchResult, answer: str) -> str:
    """The tree as an HTML page: thoughts fold, the path taken is marked, colours follow light and dark."""
    tree = result.tree
    assert tree is not None
    question = tree.root.state.problem.messages[-1].content
    told = f"{result.tokens:,} tokens, {len(tree.nodes)} thoughts; {result.stop_reason}"
    children: dict[Node, list[Node]] = {}
    for node in tree.nodes:
        if node.parent:
            children.setdefault(node.parent, []).append(node)
    path = _path(result)

    def listed(node: Node) -> str:
        items = []
        for child in children.get(node, []):
            kind = "taken" if child in path else child.status
            line = f'<span class="{kind}" title="{escape(child.text)}">{escape(label(child))}</span>'
            inner = listed(child)
            opened = " open" if child in path else ""
            items.append(
                f"<li><details{opened}><summary>{line}</summary>{inner}</details></li>" if inner else f"<li>{line}</li>"
            )
        return f"<ul>{''.join(items)}</ul>" if items else ""

    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(question)}</title><style>{_STYLE}</style>'
        f'<meta name="viewport" content="width=device-width"><h1>{escape(question)}</h1>'
        f"<p>Answer: <b>{escape(answer) or 'none'}</b></p><p>{escape(told)}</p>{listed(tree.root)}</html>\n"
    )


def result_to_json(result: SearchResult) -> dict[str, Any]:
    """A search as plain data: what it cost, why it ended, its votes, and its thoughts in the order they were had in.

    A thought has its text, value (None: it was not asked for), fate, its parent's number (None: the problem itself) and
    whether it led to the answer given.
    """
    nodes, path = result.tree.nodes if result.tree else [], _path(result)
    number_of = {node: at for at, node in enumerate(nodes)}
    tree = [
        {
            "text": node.text,
            "value": None if isnan(node.value) else node.value,
            "fate": node.status,
            "parent": number_of.get(node.parent) if node.parent else None,
            "taken": node in path,
        }
        for node in nodes
    ]
    return {"tokens": result.tokens, "end": result.stop_reason, "votes": [list(vote) for vote in result.votes], "tree": tree}


def tree_rows(results: Sequence[SearchResult], correct_keys: Container[Key]) -> list[dict[str, Any]]:
    """What several searches grew, as rows of a file that the board reads; `right`: keys of answers that are."""
    return [
        {
            "question": one.tree.root.state.problem.messages[-1].content,
            "right": bool(one.rollout and one.rollout.key in correct_keys),
            **result_to_json(one),
        }
        for one in results
        if one.tree
    ]


def _path(found: SearchResult) -> set[Node]:
    """The thoughts that led to the answer given."""
    tree: Tree | None = found.tree
    ends = [node for node in tree.answers if node.state is found.rollout] if tree else []
    return set(ends[0].path) if ends else set()


_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.3rem}
ul{list-style:none;padding-left:1.2rem;border-left:1px solid color-mix(in srgb,currentColor 20%,transparent)}
span{font-family:ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.taken{font-weight:700;color:light-dark(#0a6640,#5fd39a)}
.dropped,.pruned,.repeat{opacity:.55}
.pruned{text-decoration:line-through}
summary{cursor:pointer}
"""
