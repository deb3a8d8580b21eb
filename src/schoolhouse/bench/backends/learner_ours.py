"""Schoolhouse's `pack` and `Policy.update`: every token of rows of mixed length."""

from turns import read_work, take_turns

folder, work = read_work()

import torch  # noqa: E402

from schoolhouse.algorithms.losses import negative_log_likelihood  # noqa: E402
from schoolhouse.algorithms.packing import pack, token_mean  # noqa: E402
from schoolhouse.bench.workload import told  # noqa: E402
from schoolhouse.policy.policy import Policy  # noqa: E402

torch.set_num_threads(work["threads"])
policy = Policy.load(folder / "model", work.get("precision", "auto"))
rollouts = told(work["rows"])


def run() -> dict:
    for start in range(0, len(rollouts), work["batch"]):
        part = rollouts[start : start + work["batch"]]
        policy.update(pack(part, token_mean(part), prompts=False), negative_log_likelihood(), 1e-4)
    return {"tokens": sum(map(len, rollouts))}


take_turns(run)
