"""The table of docs/models.md: real configs of public models, with small random weights, against transformers.

`python tests/hub/test_model_table.py` writes the table anew.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import numpy as np
import pytest
import torch
from more_configs import MORE_CONFIGS

from schoolhouse.algorithms.losses import clipped_surrogate
from schoolhouse.algorithms.packing import pack, token_mean
from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.model.checkpoint import load_decoder, save_decoder
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.kv_cache import PackedAttention
from schoolhouse.policy.policy import Policy
from schoolhouse.types import NAN, Key, Problem, Rollout, SchoolError

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared" / "cases" / "model_configs.json"
PAGE = ROOT / "docs" / "models.md"
START, END = "<!-- table: models -->\n", "<!-- end of table -->"
TOLERANCE = 1e-4

SHARED: dict[str, dict[str, Any]] = json.loads(CASES.read_text()) if CASES.is_file() else {}
CONFIGS = {**SHARED, **MORE_CONFIGS}
needs_cases = pytest.mark.skipif(not SHARED, reason=f"{CASES} is not there")


class Outcome(NamedTuple):
    """A row of the table. `decoder`: own, adapter, refused or not built."""

    decoder: str
    longest: str
    note: str


@cache
def conversation() -> Conversation:
    """A tokenizer with as many ids as the models have."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(400)]
    tokenizer = train_tokenizer([" ".join(words)] * 4, 1024)
    assert tokenizer.vocab_size == 1024
    return Conversation(tokenizer)


@cache
def outcome(name: str) -> Outcome:
    """Try a config: logits, greedy tokens, a gradient, and saving. Raises AssertionError where transformers differs."""
    with tempfile.TemporaryDirectory() as folder:
        return try_config(copy.deepcopy(CONFIGS[name]), Path(folder))


def try_config(config: dict[str, Any], folder: Path) -> Outcome:
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    if config["model_type"] == "gemma4_text":  # this table has a gigabyte by default
        config.setdefault("vocab_size_per_layer_input", config["vocab_size"])
    torch.manual_seed(0)
    try:
        hf_config = transformers.AutoConfig.for_model(**copy.deepcopy(config))  # changes the mappings that it is given
        expected_model: Any = transformers.AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager")
    except (ValueError, ZeroDivisionError) as error:
        reason = "it has no such `model_type`" if "Unrecognized model" in str(error) else f"{type(error).__name__}"
        return Outcome("refused", "", f"transformers cannot build it: {reason}")
    expected_model = expected_model.eval().float()
    with torch.no_grad():
        for weight in expected_model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    expected_model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    try:
        decoder = load_decoder(folder)
    except SchoolError as error:
        return Outcome("refused", "", missing_part(str(error)))

    tokens_1T = torch.randint(0, 1024, (1, 40))
    assert difference(decoder, expected_model, tokens_1T) <= TOLERANCE, "logits"
    policy = Policy(decoder, conversation(), precision="float32", device="cpu")
    prompt = tuple(tokens_1T[0, :12].tolist())
    rollout = Rollout(Problem("p", (), ""), Key(0, "table"), prompt, (False,) * 12, (NAN,) * 12)
    [greedy] = policy.extend([rollout], 8, stop_ids=(), temperature=0.0)
    no_end = transformers.GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        expected_model.generation_config = no_end
        generated = expected_model.generate(tokens_1T[:, :12], attention_mask=torch.ones(1, 12, dtype=torch.long))
    assert greedy.tokens == tuple(generated[0].tolist()), "greedy tokens"

    rollouts = policy.extend([rollout, replace(rollout, key=Key(0, "table", sample=1))], 6, stop_ids=())
    advantages = [np.full(len(r), sign, np.float32) for r, sign in zip(rollouts, (1, -1), strict=True)]
    batches = pack(rollouts, token_mean(rollouts), advantage=advantages)
    metrics = policy.update(batches, clipped_surrogate(on_policy=True), 1e-3)
    assert 0 < metrics["grad_norm"] < math.inf, "gradient"

    save_decoder(decoder, folder / "saved", 0, 0)
    again = load(folder / "saved", attn_implementation="eager", dtype=torch.float32).eval()
    assert difference(decoder, again, tokens_1T) <= TOLERANCE, "saved folder"
    limit = decoder.config.max_seq_len
    return Outcome(
        "own" if isinstance(decoder, Decoder) else "adapter",
        f"{limit:,}",
        limit_note(hf_config.get_text_config(), limit),
    )


@torch.no_grad()
def difference(decoder: Any, model: Any, tokens_1T: torch.Tensor) -> float:
    """The largest difference between the logits of two models."""
    packed = PackedAttention([tokens_1T.shape[1]])
    logits_TV = decoder.project(decoder(tokens_1T[0], packed.positions, packed))
    return float((logits_TV - model(tokens_1T).logits[0]).abs().max())


def limit_note(hf_config: Any, limit: int) -> str:
    """Why a model reads less than its own limit."""
    if limit == hf_config.max_position_embeddings:
        return ""
    if limit == getattr(hf_config, "sliding_window", None):
        return "as long as its sliding window"
    assert "longrope" in str(hf_config.rope_parameters)
    return "as long as its rotary frequencies stay the same (longrope)"


def missing_part(message: str) -> str:
    """The part of an error that says what is missing, without numbers that may differ from machine to machine."""
    part = message.partition(" is not supported: ")[2] or message
    part = re.split(r"; |, which (?:ours|cannot)|, and our| \(The size| by [\d.e-]+ from", part)[0]
    return part


def table() -> str:
    lines = ["| config | `model_type` | decoder | longest sequence | note |", "|---|---|---|---|---|"]
    for name, config in CONFIGS.items():
        decoder, longest, note = outcome(name)
        kind = f"`{name.removeprefix('~')}` (defaults)" if name.startswith("~") else name
        lines.append(f"| {kind} | `{config['model_type']}` | {decoder} | {longest} | {note} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", MORE_CONFIGS)
def test_a_real_config_gives_what_transformers_gives(name: str) -> None:
    assert outcome(name).decoder in ("own", "adapter")


@needs_cases
@pytest.mark.parametrize("name", SHARED)
def test_a_shared_case_gives_what_transformers_gives_or_names_what_is_missing(name: str) -> None:
    decoder, _, note = outcome(name)
    assert decoder in ("own", "adapter") or note


@needs_cases
def test_the_page_has_this_table() -> None:
    page = PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    assert page == table(), "write it anew: python tests/hub/test_model_table.py"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(START)[0], text.partition(END)[2]
    PAGE.write_text(before + START + table() + END + after, encoding="utf-8")
