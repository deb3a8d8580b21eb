"""Schoolhouse's pretraining step at the size of nanochat's CPU configuration (its runs/runcpu.sh)."""

from turns import read_work, take_turns

folder, work = read_work()

import torch  # noqa: E402

from schoolhouse.algorithms.losses import negative_log_likelihood  # noqa: E402
from schoolhouse.algorithms.packing import pack, token_mean  # noqa: E402
from schoolhouse.bench.workload import told  # noqa: E402
from schoolhouse.policy.policy import Policy  # noqa: E402

torch.set_num_threads(work["threads"])
policy = Policy.load(folder / "model", work.get("precision", "auto"))
draw, context = torch.Generator().manual_seed(0), work["context"]


def run() -> dict:
    rows = torch.randint(16, work["vocabulary"], (work["batch"], context), generator=draw).tolist()
    rollouts = told(rows)
    policy.update(pack(rollouts, token_mean(rollouts), prompts=False), negative_log_likelihood(), 1e-4)
    return {"tokens": work["batch"] * context}


take_turns(run)
