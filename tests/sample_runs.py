"""Run folders made by hand, line by line, as a run writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def line(problem: str, sample: int, score: float | None, said: int = 3, **more: Any) -> Json:
    """One rollout, with a prompt of two tokens."""
    return {
        "problem": problem,
        "family": "f",
        "question": f"what is {problem}?",
        "sample": sample,
        "reward": score,
        "reason": "" if score is not None else "over its clock",
        "reward_parts": {},
        "finish_reason": "stop",
        "policy_version": 0,
        "thought": "so",
        "answer": str(score),
        "tokens": [1, 2, *range(3, 3 + said)],
        "sampled_spans": [[2, 2 + said]],
        "logprob": [-0.5] * said,
        **more,
    }


def grown(problem: str, text: str = "13-9=4") -> Json:
    """A tree of three thoughts: one led to the answer, one was dropped."""
    thoughts = [
        {"text": text, "value": 60.0, "fate": "expanded", "parent": None, "taken": True},
        {"text": "13+9=22", "value": None, "fate": "dropped", "parent": None, "taken": False},
        {"text": "24", "value": None, "fate": "answer", "parent": 0, "taken": True},
    ]
    told = {"question": f"what is {problem}?", "right": True, "tokens": 1234, "end": "answered"}
    return {**told, "votes": [], "tree": thoughts}


def write_run(
    folder: Path, steps: dict[int, list[Json]] | None = None, trees: Sequence[Json] = (), **config: Any
) -> Path:
    """A finished run of four steps, with these rollouts."""
    (folder / "rollouts").mkdir(parents=True)
    settings = {"model": "m", "task": "t", "seed": 0, "steps": 4, **config}
    (folder / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    manifest = {"recipe": "grpo", "state": "finished", "seconds": 12.0, "step": 4, "versions": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    metrics = [
        {"step": s, "reward": s / 4, "sampled_tokens": 10, "groups": 2, "groups_with_signal": 1} for s in range(4)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    times = [{"step": s, "seconds": 3.0 * (s + 1)} for s in range(4)]
    (folder / "times.jsonl").write_text("".join(json.dumps(row) + "\n" for row in times))
    if trees:
        (folder / "trees").mkdir()
        (folder / "trees" / "000002.jsonl").write_text("".join(json.dumps(row) + "\n" for row in trees))
    for step, rows in (steps or {}).items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "rollouts" / f"{step:06d}.jsonl").write_text(text)
    return folder


STEPS = {
    0: [line("a", 0, 0.0, 5), line("a", 1, 1.0, 2), line("b", 0, 0.0, 9), line("b", 1, 0.0, 4)],
    1: [line("a", 0, 1.0, 3), line("a", 1, 1.0, 7), line("c", 0, None, 6, finish_reason="length")],
}


def keep_model(run: Path, step: int) -> None:
    """A checkpoint of a run: a tiny model with weights of its own."""
    from schoolhouse.data.chat import Conversation
    from schoolhouse.data.tokenizer import train_tokenizer
    from schoolhouse.model.decoder import ModelConfig
    from schoolhouse.policy.policy import Policy

    say = Conversation(train_tokenizer(["1+1=2"], 300))
    policy = Policy.create(ModelConfig(say.tokenizer.vocab_size, 16, 16, 1, 1, 1, 16, 64), say, step, "float32")
    policy.save(run / "checkpoints" / f"{step:06d}")
