"""The sampler that `school serve` uses, without a server: the same prompts and seeds, as many at once."""

from turns import read_work, take_turns

folder, work = read_work()

import torch  # noqa: E402

from schoolhouse.policy.policy import Policy  # noqa: E402
from schoolhouse.types import NAN, Key, Problem, Rollout  # noqa: E402

torch.set_num_threads(work["threads"])
policy = Policy.load(folder / "model", work.get("precision", "auto"))
prompts = [tuple(prompt) for prompt in work["prompts"] for _ in range(work["samples"])]
prefixes = [
    Rollout(Problem(str(at), (), ""), Key(at, "asked"), ids, (False,) * len(ids), (NAN,) * len(ids))
    for at, ids in enumerate(prompts)
]
lengths = [length for wanted in work["lengths"] for length in wanted]


def run() -> dict:
    rollouts = policy.extend(prefixes, lengths, num_slots=64)
    return {"tokens": sum(len(r) - len(q) for r, q in zip(rollouts, prefixes, strict=True))}


take_turns(run)
