"""Run schoolhouse's pretraining step with the model size of nanochat's CPU configuration (runs/runcpu.sh)."""

from protocol import read_workload, serve_repeats

folder, work = read_workload()

import torch  # noqa: E402

from schoolhouse.algorithms.losses import negative_log_likelihood  # noqa: E402
from schoolhouse.algorithms.packing import pack, token_mean  # noqa: E402
from schoolhouse.bench.workload import row_rollouts  # noqa: E402
from schoolhouse.policy.policy import Policy  # noqa: E402

torch.set_num_threads(work["threads"])
policy = Policy.load(folder / "model", work.get("precision", "auto"))
random, seq_len = torch.Generator().manual_seed(0), work["seq_len"]


def run() -> dict:
    rows = torch.randint(16, work["vocab_size"], (work["batch_size"], seq_len), generator=random).tolist()
    rollouts = row_rollouts(rows)
    policy.update(pack(rollouts, token_mean(rollouts), prompts=False), negative_log_likelihood(), 1e-4)
    return {"tokens": work["batch_size"] * seq_len}


serve_repeats(run)
