"""Show the tree of a search: in the terminal, as a single HTML file, or as plain data."""

from __future__ import annotations

from collections.abc import Container, Sequence
from html import escape
from math import isnan
from typing import TYPE_CHECKING, Any

from schoolhouse.search.solve import SearchResult
from schoolhouse.search.tree import Node
from schoolhouse.types import Key

if TYPE_CHECKING:
    from rich.tree import Tree as RichTree

_MAX_LABEL = 60  # characters of a thought


def draw(result: SearchResult) -> RichTree:
    """Draw the tree for a terminal. The path to the chosen answer has bold text, and dropped nodes have pale text.

    The value of each thought is shown after the thought.
    """
    from rich.text import Text
    from rich.tree import Tree as RichTree

    tree, path = result.tree, _chosen_path(result)
    assert tree is not None
    branches = {tree.root: RichTree(Text(_question(tree.root)))}
    for node in tree.nodes:
        assert node.parent is not None
        style = "bold" if node in path else "dim" if node.status in ("dropped", "pruned", "duplicate") else ""
        branches[node] = branches[node.parent].add(Text(label(node), style=style))
    return branches[tree.root]


def label(node: Node) -> str:
    """Describe a node in one line: its thought, its value and its status."""
    text = " ".join(node.text.split())
    short = text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"
    value = "" if isnan(node.value) else f"  {node.value:.3g}"
    status = "" if node.status in ("expanded", "open") else f"  {node.status}"
    return f"{short}{value}{status}"


def html_page(result: SearchResult, answer: str) -> str:
    """Draw the tree as an HTML page with a dark mode.

    A click hides or shows thoughts, and the path to the chosen answer is highlighted.
    """
    tree = result.tree
    assert tree is not None
    question = _question(tree.root)
    summary = f"{result.tokens:,} tokens, {len(tree.nodes)} thoughts; {result.stop_reason}"
    children: dict[Node, list[Node]] = {}
    for node in tree.nodes:
        if node.parent:
            children.setdefault(node.parent, []).append(node)
    path = _chosen_path(result)

    def nested_list(node: Node) -> str:
        items = []
        for child in children.get(node, []):
            css_class = "chosen" if child in path else child.status
            line = f'<span class="{css_class}" title="{escape(child.text)}">{escape(label(child))}</span>'
            inner = nested_list(child)
            unfolded = " open" if child in path else ""
            items.append(
                f"<li><details{unfolded}><summary>{line}</summary>{inner}</details></li>"
                if inner
                else f"<li>{line}</li>"
            )
        return f"<ul>{''.join(items)}</ul>" if items else ""

    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(question)}</title><style>{_STYLE}</style>'
        f'<meta name="viewport" content="width=device-width"><h1>{escape(question)}</h1>'
        f"<p>Answer: <b>{escape(answer) or 'none'}</b></p><p>{escape(summary)}</p>{nested_list(tree.root)}</html>\n"
    )


def result_to_json(result: SearchResult) -> dict[str, Any]:
    """Convert a search to plain data: its number of tokens, the reason why it ended, its votes and its thoughts.

    The thoughts are in order of creation. Each thought has a text, a value (None if unknown), a status and the index of
    its parent (None if the parent is the problem itself). A flag says whether the thought is on the path to the chosen
    answer.
    """
    nodes, path = result.tree.nodes if result.tree else [], _chosen_path(result)
    index_of = {node: at for at, node in enumerate(nodes)}
    tree = [
        {
            "text": node.text,
            "value": None if isnan(node.value) else node.value,
            "status": node.status,
            "parent": index_of.get(node.parent) if node.parent else None,
            "chosen": node in path,
        }
        for node in nodes
    ]
    votes = [list(vote) for vote in result.votes]
    return {"tokens": result.tokens, "stop_reason": result.stop_reason, "votes": votes, "tree": tree}


def tree_rows(results: Sequence[SearchResult], correct_keys: Container[Key]) -> list[dict[str, Any]]:
    """Convert the trees of several searches to rows of a file.

    The board, a web page that shows runs, reads the rows from the file.

    `correct_keys`: the keys of the rollouts whose answers are correct.
    """
    return [
        {
            "question": _question(result.tree.root),
            "correct": bool(result.rollout and result.rollout.key in correct_keys),
            **result_to_json(result),
        }
        for result in results
        if result.tree
    ]


def _question(root: Node) -> str:
    return root.state.problem.messages[-1].content


def _chosen_path(result: SearchResult) -> set[Node]:
    """The nodes on the path to the chosen answer."""
    answers = result.tree.answers if result.tree else []
    chosen = [node for node in answers if node.state is result.rollout]
    return set(chosen[0].path) if chosen else set()


_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.3rem}
ul{list-style:none;padding-left:1.2rem;border-left:1px solid color-mix(in srgb,currentColor 20%,transparent)}
span{font-family:ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.chosen{font-weight:700;color:light-dark(#0a6640,#5fd39a)}
.dropped,.pruned,.duplicate{opacity:.55}
.pruned{text-decoration:line-through}
summary{cursor:pointer}
"""
