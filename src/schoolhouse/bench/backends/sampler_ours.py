"""Schoolhouse's `Policy.extend`."""

from turns import read_work, take_turns

folder, work = read_work()

import torch  # noqa: E402

from schoolhouse.bench.workload import asked  # noqa: E402
from schoolhouse.policy.policy import Policy  # noqa: E402

torch.set_num_threads(work["threads"])
policy = Policy.load(folder / "model", work.get("precision", "auto"))
prefixes = asked(work["prompts"], work["samples"])
lengths = [length for wanted in work["lengths"] for length in wanted]


def run() -> dict:
    rollouts = policy.extend(prefixes, lengths, stop_ids=())
    assert [len(r) - len(q) for r, q in zip(rollouts, prefixes, strict=True)] == lengths
    return {"tokens": sum(lengths)}


take_turns(run)
