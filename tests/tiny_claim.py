"""A claim of one arm, by name: other processes can be told of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, Step

SHAPE = {"width": 32, "layers": 1, "heads": 1, "key_heads": 1, "head_dim": 32, "inner": 32, "longest": 128}


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    book = {"task": "school:facts", "seed": seed, "model": SHAPE, "vocabulary": 300}
    return {"start": Arm(Step("pretrain", {**book, "steps": 2, "batch": 4, "context": 32}), {})}


def judge(results: Results) -> Sequence[Check]:
    return [Check("must hold", "it", "1", True)]


def draw(results: Results, picture: Any) -> None:
    picture.subplots()


CLAIM = Claim("tiny", "Somebody 2020", "It helps.", "none", "none", "it holds", arms, judge, draw)
