"""Run folders with the files of a run, written without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schoolhouse.runs.manifest import FORMAT

Json = dict[str, Any]


def rollout_row(problem: str, sample: int, reward: float | None, num_sampled: int = 3, **more: Any) -> Json:
    """One rollout, with a prompt of two tokens."""
    return {
        "problem": problem,
        "family": "f",
        "question": f"what is {problem}?",
        "sample": sample,
        "reward": reward,
        "reason": "" if reward is not None else "timeout",
        "reward_parts": {},
        "finish_reason": "stop",
        "policy_version": 0,
        "thought": "so",
        "answer": str(reward),
        "tokens": [1, 2, *range(3, 3 + num_sampled)],
        "sampled_spans": [[2, 2 + num_sampled]],
        "logprob": [-0.5] * num_sampled,
        **more,
    }


def tree_row(problem: str, text: str = "13-9=4") -> Json:
    """A search tree of three nodes: a thought on the path to the answer, a dropped thought, the answer."""
    nodes = [
        {"text": text, "value": 60.0, "status": "expanded", "parent": None, "chosen": True},
        {"text": "13+9=22", "value": None, "status": "dropped", "parent": None, "chosen": False},
        {"text": "24", "value": None, "status": "answer", "parent": 0, "chosen": True},
    ]
    return {
        "question": f"what is {problem}?",
        "correct": True,
        "tokens": 1234,
        "stop_reason": "answered",
        "votes": [],
        "tree": nodes,
    }


def write_run(
    folder: Path, steps: dict[int, list[Json]] | None = None, trees: Sequence[Json] = (), **config: Any
) -> Path:
    """A finished run of four steps, with these rollouts."""
    (folder / "rollouts").mkdir(parents=True)
    settings = {"model": "m", "task": "t", "seed": 0, "steps": 4, **config}
    (folder / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    manifest = {"format": FORMAT, "recipe": "grpo", "state": "finished", "seconds": 12.0, "step": 4, "versions": {}}
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


ROLLOUTS = {
    0: [
        rollout_row("a", 0, 0.0, 5),
        rollout_row("a", 1, 1.0, 2),
        rollout_row("b", 0, 0.0, 9),
        rollout_row("b", 1, 0.0, 4),
    ],
    1: [rollout_row("a", 0, 1.0, 3), rollout_row("a", 1, 1.0, 7), rollout_row("c", 0, None, 6, finish_reason="length")],
}


def write_checkpoint(run: Path, step: int) -> None:
    """Add a checkpoint to a run: a tiny model, whose weights depend on the step."""
    from schoolhouse.data.chat import Conversation
    from schoolhouse.data.tokenizer import train_tokenizer
    from schoolhouse.model.config import ModelConfig
    from schoolhouse.policy.policy import Policy

    conversation = Conversation(train_tokenizer(["1+1=2"], 300))
    policy = Policy.create(
        ModelConfig(conversation.tokenizer.vocab_size, 16, 16, 1, 1, 1, 16, 64), conversation, step, "float32"
    )
    policy.save(run / "checkpoints" / f"{step:06d}")
