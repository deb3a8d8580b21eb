"""A claim of one arm, in a module, so that other processes can import it."""

from collections.abc import Mapping, Sequence
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, Step

MODEL = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 32,
    "intermediate_size": 32,
    "max_seq_len": 128,
}


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    config = {"task": "school:facts", "seed": seed, "model": MODEL, "vocab_size": 300, "steps": 2, "batch_size": 4}
    return {"start": Arm(Step("pretrain", {**config, "seq_len": 32}), {})}


def check(results: Results) -> Sequence[Check]:
    return [Check("must hold", "it", "1", True)]


def draw(results: Results, picture: Any) -> None:
    picture.subplots()


CLAIM = Claim("tiny", "Author 2020", "It helps.", "none", "none", "it holds", arms, check, draw)
