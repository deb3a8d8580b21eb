"""One GRPO step of schoolhouse: sample P x G rollouts, praise, learn."""

from typing import Any

from turns import read_work, take_turns

folder, work = read_work()

import torch  # noqa: E402

from schoolhouse.algorithms.advantages import group_advantage  # noqa: E402
from schoolhouse.algorithms.losses import clipped_surrogate  # noqa: E402
from schoolhouse.algorithms.packing import pack, sequence_mean  # noqa: E402
from schoolhouse.bench.workload import asked  # noqa: E402
from schoolhouse.policy.policy import Policy  # noqa: E402
from schoolhouse.types import Group, Verdict  # noqa: E402

torch.set_num_threads(work["threads"])
policy = Policy.load(folder / "model", work.get("precision", "auto"))
samples, lengths = work["samples"], [length for wanted in work["lengths"] for length in wanted]
prefixes = asked(work["prompts"], samples)


def run() -> dict:
    rollouts = policy.extend(prefixes, lengths, stop_ids=())
    verdicts = tuple(Verdict(float(g % 2)) for g in range(samples))
    families = [tuple(rollouts[at : at + samples]) for at in range(0, len(rollouts), samples)]
    groups = [Group(family[0].problem, family, verdicts) for family in families]
    rows: dict[str, Any] = {
        "advantage": group_advantage(groups, "mean", "group_std"),
        "sampled": [r.logprob for r in rollouts],
    }
    batches = pack(rollouts, sequence_mean(rollouts), share_prompts=policy.shares_prompts, **rows)
    stats = policy.update(batches, clipped_surrogate(0.2, 0.2, on_policy=True), 1e-6)
    return {"tokens": sum(lengths), "logprob_gap": stats["logprob_gap"]}


take_turns(run)
