"""Scripted solvers of one Game of 24, 4 9 10 13, for the tests of searches."""

from typing import Any

from schoolhouse.search.solve import Search, SearchResult, solve
from schoolhouse.search.tree import Node
from schoolhouse.search.values import ValueFn
from schoolhouse.tasks.game24 import Game24
from schoolhouse.types import Key, Rollout

SOLUTION = ["13-9=4 (4 4 10)", "10-4=6 (4 6)", "6*4=24 (24)"]
ANSWER = "</think>\\boxed{(13-9)*(10-4)}<|im_end|>"


def solver(question: str, begun: str, key: Key) -> str:
    """Continues a correct solution, and answers questions about numbers; in odd samples a thought never ends."""
    if question.startswith("What may be done"):
        return "13-9=4 (4 4 10)\nwhatever\n13+9=22 (4 10 22)<|im_end|>"
    if question.startswith("Can"):
        return ("sure" if "4 4 10" in question else "impossible") + "<|im_end|>"
    if key.sample % 2:
        return "<think>" * (not begun) + "never ending, never ending, never ending, never ending, never ending"
    whole = "<think>" + "\n".join(SOLUTION) + ANSWER
    return whole[len(begun) :]


def prompt(policy: Any, game: Game24, sample: int = 0) -> Rollout:
    return policy.conversation.prompt_rollout(game.eval_problems()[0], Key(0, "t", 0, 0, sample))


def thought(policy: Any, game: Game24, *lines: str) -> Node:
    """A node behind some prefilled thoughts."""
    rollout = prompt(policy, game)
    node = Node(rollout)
    for line in lines:
        rollout = policy.conversation.prefill_thought(rollout, line + "\n")
        node = Node(rollout, line, node)
    return node


# --- whole searches

MOVES = {
    "4 9 10 13": "13-9=4 (4 4 10)\n13+9=22 (4 10 22)",
    "4 4 10": "10+4=14 (4 14)\n10-4=6 (4 6)",
    "4 10 22": "22+10=32 (4 32)",
    "4 6": "6-4=2 (2)\n6*4=24 (24)",
    "4 14": "14-4=10 (10)",
    "4 32": "32-4=28 (28)",
}
GOOD = {"4 4 10", "4 6", "24"}
TREE: dict[str, Any] = {"kind": "tot", "thoughts": "propose", "samples": 8, "beam_width": 1, "max_new_tokens": 48}


def player(question: str, begun: str, key: Key) -> str:
    """Lists next moves, knows their values, and answers correctly where its thought led to 24."""
    if question.startswith("What may be done with"):
        return MOVES[question.removeprefix("What may be done with ").removesuffix("?")] + "<|im_end|>"
    if question.startswith("Can"):
        numbers = question.removeprefix("Can ").removesuffix(" make 24?")
        return ("sure" if numbers in GOOD else "impossible") + "<|im_end|>"
    answer = "(13-9)*(10-4)" if "(24)" in begun else "4+9"
    return "<think>" * (not begun) + f"</think>\\boxed{{{answer}}}<|im_end|>"


def search(policy: Any, game: Game24, value_fn: ValueFn | None = None, **changes: Any) -> SearchResult:
    """The result for the game's one problem; `changes` to the options of TREE."""
    (result,) = solve(policy, game, [prompt(policy, game)], Search(**{**TREE, **changes}), value_fn)
    return result


def reward(policy: Any, game: Game24, result: SearchResult) -> float | None:
    assert result.rollout is not None
    return game.grade(result.rollout.problem, policy.conversation.parse_completion(result.rollout)).reward
