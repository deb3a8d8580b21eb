"""nanochat's model, optimizer and compiled step, from its own source (`--source` is a checkout of karpathy/nanochat).

What its scripts/base_train.py does between two log lines, with the arguments of runs/runcpu.sh. Its number type on CPUs
is float32 unless NANOCHAT_DTYPE says otherwise.
"""

import os
import sys
from typing import Any

from turns import read_work, take_turns

folder, work = read_work()
if "source" not in work:
    sys.exit("nanochat is run from its own source: give --source, the folder of a checkout of karpathy/nanochat")
sys.path.insert(0, work["source"])
if "dtype" in work:
    os.environ["NANOCHAT_DTYPE"] = work["dtype"]

import torch  # noqa: E402
from nanochat.gpt import GPT, GPTConfig  # noqa: E402

torch.set_num_threads(work["threads"])
with torch.device("meta"):
    whole = GPT(
        GPTConfig(
            sequence_len=work["context"],
            vocab_size=work["vocabulary"],
            n_layer=work["layers"],
            n_head=work["width"] // 64,
            n_kv_head=work["width"] // 64,
            n_embd=work["width"],
            window_pattern="L",
        )
    )
whole.to_empty(device="cpu")
whole.init_weights()
model: Any = torch.compile(whole, dynamic=False)
optimizer = whole.setup_optimizer()
draw = torch.Generator().manual_seed(0)


def run() -> dict:
    rows = torch.randint(16, work["vocabulary"], (work["batch"], work["context"] + 1), generator=draw)
    loss = model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
    loss.backward()
    optimizer.step()
    whole.zero_grad(set_to_none=True)
    return {"tokens": work["batch"] * work["context"], "loss": loss.item()}


take_turns(run)
