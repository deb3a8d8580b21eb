"""Grade with the code of another package, so that a result can be compared with published results of the package.

hf       grades with math-verify, as in lighteval and in TRL's examples.
verl     grades with verl's reward for MATH (`verl.utils.reward_score.math_reward`).
minerva  grades with lm-eval's task `minerva_math`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module

from schoolhouse.types import Completion, SchoolError, Verdict

PeerGrader = Callable[[str, str], float]
"""(reply, reference) -> reward."""


def peer_match(name: str, completion: Completion, references: Sequence[str]) -> Verdict:
    """Grade the text that comes after the thought, with the rules of another package. If there are several references,
    the reference with the best result counts."""
    grader = load_peer(name)
    reward = max(float(grader(completion.answer, reference)) for reference in references)
    return Verdict(reward, "" if reward >= 1 else f"refused by the rules of {name}")


@lru_cache(maxsize=8)
def load_peer(name: str) -> PeerGrader:
    """Load the grader of another package. Raises SchoolError if the package is not installed."""
    package, load = _PEERS[name]
    try:
        return load()
    except ImportError as error:
        raise SchoolError(
            f"the grader `{name}` needs the package `{package}`, which cannot be imported ({error}); install the "
            f"package (`pip install {package}`), or use `grader=ours`"
        ) from error


def _load_hf() -> PeerGrader:
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def grade(reply: str, reference: str) -> float:
        expected = parse(f"${reference}$", parsing_timeout=None)  # ty: ignore[invalid-argument-type]
        found = parse(reply, parsing_timeout=None)  # ty: ignore[invalid-argument-type]
        if not found:  # a bare answer without any mark
            found = parse(f"${reply}$", parsing_timeout=None)  # ty: ignore[invalid-argument-type]
        return float(verify(expected, found, timeout_seconds=None))

    return grade


def _load_verl() -> PeerGrader:
    module = import_module("verl.utils.reward_score.math_reward")
    return lambda reply, reference: float(module.compute_score(reply, reference))


def _load_minerva() -> PeerGrader:
    module = import_module("lm_eval.tasks.minerva_math.utils")

    def grade(reply: str, reference: str) -> float:
        answer = module.normalize_final_answer(module.get_unnormalized_answer(reply))
        return float(module.is_equiv(answer, module.normalize_final_answer(reference)))

    return grade


_PEERS: dict[str, tuple[str, Callable[[], PeerGrader]]] = {
    "hf": ("math-verify", _load_hf),
    "verl": ("verl", _load_verl),
    "minerva": ("lm-eval[math]", _load_minerva),
}

GRADERS = ("ours", *_PEERS)
