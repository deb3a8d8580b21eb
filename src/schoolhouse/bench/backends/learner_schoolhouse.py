"""Run schoolhouse's `pack` and `Policy.update` on rows of different lengths. The loss includes every token of a row."""

from protocol import read_workload, serve_repeats

folder, work = read_workload()

import torch  # noqa: E402

from schoolhouse.algorithms.losses import negative_log_likelihood  # noqa: E402
from schoolhouse.algorithms.packing import pack, token_mean  # noqa: E402
from schoolhouse.bench.workload import row_rollouts  # noqa: E402
from schoolhouse.policy.policy import Policy  # noqa: E402

torch.set_num_threads(work["threads"])
policy = Policy.load(folder / "model", work.get("precision", "auto"))
rollouts = row_rollouts(work["rows"])


def run() -> dict:
    for start in range(0, len(rollouts), work["batch_size"]):
        part = rollouts[start : start + work["batch_size"]]
        policy.update(pack(part, token_mean(part), prompts=False), negative_log_likelihood(), 1e-4)
    return {"tokens": sum(map(len, rollouts))}


serve_repeats(run)
