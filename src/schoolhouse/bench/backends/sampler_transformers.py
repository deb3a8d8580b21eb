"""Run transformers' `generate` with padded batches, a key-value cache, and completions of a fixed length.

On a CPU, the backend generates in batches of 64 rows with a static cache, because `generate` was fastest with this
batch size and cache (docs/performance.md). The rows are sorted by prompt length, so that there is little padding. On a
GPU, the backend generates all rows in one batch. In work.json, the key `rows_at_once` sets the batch size, and the key
`cache` sets the option `cache_implementation` of transformers.
"""

from typing import Any

from forced_length import ForcedLength
from protocol import read_workload, serve_repeats

folder, work = read_workload()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, LogitsProcessorList  # noqa: E402

torch.set_num_threads(work["threads"])
dtype = getattr(torch, work.get("dtype", "float32"))
device = "cuda" if torch.cuda.is_available() else "cpu"
model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype).eval().to(device)
rows = [(prompt, n) for prompt, group in zip(work["prompts"], work["lengths"], strict=True) for n in group]
rows.sort(key=lambda row: len(row[0]))
batch = int(work.get("rows_at_once", len(rows) if device == "cuda" else 64))


@torch.no_grad()
def generate(part: list[tuple[list[int], int]]) -> int:
    longest = max(len(prompt) for prompt, _ in part)
    lengths = torch.tensor([length for _, length in part], device=device)
    padded = [[work["pad_id"]] * (longest - len(prompt)) + prompt for prompt, _ in part]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in part]
    out = model.generate(
        input_ids=torch.tensor(padded, device=device),
        attention_mask=torch.tensor(mask, device=device),
        do_sample=True,
        top_k=0,
        max_new_tokens=int(lengths.max()),
        cache_implementation=work.get("cache", "static"),
        eos_token_id=work["stop_ids"],
        pad_token_id=work["pad_id"],
        logits_processor=LogitsProcessorList([ForcedLength(lengths, longest, work["stop_ids"])]),
    )
    completions = out[:, longest:]
    assert bool(((completions == work["stop_ids"][0]).int().argmax(1) + 1 == lengths).all())
    return int(lengths.sum())


def run() -> dict:
    return {"tokens": sum(generate(rows[at : at + batch]) for at in range(0, len(rows), batch))}


serve_repeats(run)
