"""Run the sampler of `school serve` without the server.

The prompts, the seeds and the number of parallel completions are the same as in `server_schoolhouse.py`.
"""

from protocol import read_workload, serve_repeats

folder, work = read_workload()

import torch  # noqa: E402

from schoolhouse.policy.policy import Policy  # noqa: E402
from schoolhouse.types import NAN, Key, Problem, Rollout  # noqa: E402

torch.set_num_threads(work["threads"])
policy = Policy.load(folder / "model", work.get("precision", "auto"))
prompt_ids = [tuple(prompt) for prompt in work["prompts"] for _ in range(work["samples"])]
prompts = [
    Rollout(Problem(str(at), (), ""), Key(at, "asked"), ids, (False,) * len(ids), (NAN,) * len(ids))
    for at, ids in enumerate(prompt_ids)
]
lengths = [length for group in work["lengths"] for length in group]


def run() -> dict:
    rollouts = policy.extend(prompts, lengths, num_slots=64)
    return {"tokens": sum(len(rollout) - len(prompt) for rollout, prompt in zip(rollouts, prompts, strict=True))}


serve_repeats(run)
