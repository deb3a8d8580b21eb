"""Run one pretraining step of nanochat, with nanochat's own model, optimizer and compiled step.

The option `--source` gives the folder of a checkout of karpathy/nanochat. The step is the same as in
scripts/base_train.py, with the arguments of runs/runcpu.sh. On CPUs, nanochat uses float32 unless NANOCHAT_DTYPE sets
another number type.
"""

import os
import sys
from typing import Any

from protocol import read_workload, serve_repeats

folder, work = read_workload()
if "source" not in work:
    sys.exit("nanochat is run from its own source: give --source, the folder of a checkout of karpathy/nanochat")
sys.path.insert(0, work["source"])
if "dtype" in work:
    os.environ["NANOCHAT_DTYPE"] = work["dtype"]

import torch  # noqa: E402
from nanochat.gpt import GPT, GPTConfig  # noqa: E402

torch.set_num_threads(work["threads"])
with torch.device("meta"):
    raw_model = GPT(
        GPTConfig(
            sequence_len=work["seq_len"],
            vocab_size=work["vocab_size"],
            n_layer=work["num_layers"],
            n_head=work["hidden_size"] // 64,
            n_kv_head=work["hidden_size"] // 64,
            n_embd=work["hidden_size"],
            window_pattern="L",
        )
    )
raw_model.to_empty(device="cpu")
raw_model.init_weights()
model: Any = torch.compile(raw_model, dynamic=False)
optimizer = raw_model.setup_optimizer()
random = torch.Generator().manual_seed(0)


def run() -> dict:
    rows = torch.randint(16, work["vocab_size"], (work["batch_size"], work["seq_len"] + 1), generator=random)
    loss = model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
    loss.backward()
    optimizer.step()
    raw_model.zero_grad(set_to_none=True)
    return {"tokens": work["batch_size"] * work["seq_len"], "loss": loss.item()}


serve_repeats(run)
