"""One GRPO step of schoolhouse: sample P x G rollouts, compute the advantages, and update the policy."""

from typing import Any

from protocol import read_workload, serve_repeats

folder, work = read_workload()

import torch  # noqa: E402

from schoolhouse.algorithms.advantages import group_advantage  # noqa: E402
from schoolhouse.algorithms.losses import clipped_surrogate  # noqa: E402
from schoolhouse.algorithms.packing import pack, sequence_mean  # noqa: E402
from schoolhouse.bench.workload import lora_options, prompt_rollouts  # noqa: E402
from schoolhouse.policy.policy import Policy  # noqa: E402
from schoolhouse.types import Group, Verdict  # noqa: E402

torch.set_num_threads(work["threads"])
policy = Policy.load(folder / "model", work.get("precision", "auto"), **lora_options(work))
group_size, lengths = work["samples"], [length for group in work["lengths"] for length in group]
prompts = prompt_rollouts(work["prompts"], group_size)


def step(problems: int) -> dict:
    """Make one step on the first problems of the workload."""
    rows = problems * group_size
    rollouts = policy.extend(prompts[:rows], lengths[:rows], stop_ids=())
    verdicts = tuple(Verdict(float(g % 2)) for g in range(group_size))
    members = [tuple(rollouts[at : at + group_size]) for at in range(0, len(rollouts), group_size)]
    groups = [Group(few[0].problem, few, verdicts) for few in members]
    columns: dict[str, Any] = {
        "advantage": group_advantage(groups, "mean", "group_std"),
        "sampled": [r.logprob for r in rollouts],
    }
    batches = pack(rollouts, sequence_mean(rollouts), share_prompts=policy.shares_prompts, **columns)
    stats = policy.update(batches, clipped_surrogate(0.2, 0.2, on_policy=True), 1e-6)
    return {"tokens": sum(lengths[:rows]), "logprob_gap": stats["logprob_gap"]}


serve_repeats(lambda: step(len(work["prompts"])), warm_up=lambda: step(1))
