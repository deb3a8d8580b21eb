"""A claim of one arm, by name: other processes can be told of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, Step

SHAPE = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 32,
    "intermediate_size": 32,
    "max_seq_len": 128,
}


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    book = {"task": "school:facts", "seed": seed, "model": SHAPE, "vocab_size": 300}
    return {"start": Arm(Step("pretrain", {**book, "steps": 2, "batch_size": 4, "seq_len": 32}), {})}


def judge(results: Results) -> Sequence[Check]:
    return [Check("must hold", "it", "1", True)]


def draw(results: Results, picture: Any) -> None:
    picture.subplots()


CLAIM = Claim("tiny", "Somebody 2020", "It helps.", "none", "none", "it holds", arms, judge, draw)
