"""Run schoolhouse's sampler (`Policy.extend`)."""

from protocol import read_workload, serve_repeats

folder, work = read_workload()

import torch  # noqa: E402

from schoolhouse.bench.workload import prompt_rollouts  # noqa: E402
from schoolhouse.policy.policy import Policy  # noqa: E402

torch.set_num_threads(work["threads"])
policy = Policy.load(folder / "model", work.get("precision", "auto"))
policy.sampling_weights = work.get("weights", "auto")
prompts = prompt_rollouts(work["prompts"], work["samples"])
lengths = [length for group in work["lengths"] for length in group]


def run() -> dict:
    rollouts = policy.extend(prompts, lengths, stop_ids=())
    assert [len(rollout) - len(prompt) for rollout, prompt in zip(rollouts, prompts, strict=True)] == lengths
    return {"tokens": sum(lengths)}


serve_repeats(run)
