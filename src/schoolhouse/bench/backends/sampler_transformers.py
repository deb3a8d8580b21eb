"""transformers' `generate`: padded batches, a key-value cache, answers ended by force at their length.

64 rows at a time, sorted by prompt length so that little is padding, in a static cache: of what was tried its quickest
on a CPU (docs/performance.md); on a GPU all at once. `rows_at_once` and `cache` (its cache_implementation) choose
otherwise.
"""

from typing import Any

from ending import EndAt
from turns import read_work, take_turns

folder, work = read_work()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, LogitsProcessorList  # noqa: E402

torch.set_num_threads(work["threads"])
dtype = getattr(torch, work.get("dtype", "float32"))
device = "cuda" if torch.cuda.is_available() else "cpu"
model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype).eval().to(device)
rows = [(p, n) for p, wanted in zip(work["prompts"], work["lengths"], strict=True) for n in wanted]
rows.sort(key=lambda row: len(row[0]))
batch = int(work.get("rows_at_once", len(rows) if device == "cuda" else 64))


@torch.no_grad()
def generate(part: list[tuple[list[int], int]]) -> int:
    longest = max(len(prompt) for prompt, _ in part)
    lengths = torch.tensor([length for _, length in part], device=device)
    padded = [[work["pad"]] * (longest - len(prompt)) + prompt for prompt, _ in part]
    seen = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in part]
    out = model.generate(
        input_ids=torch.tensor(padded, device=device),
        attention_mask=torch.tensor(seen, device=device),
        do_sample=True,
        top_k=0,
        max_new_tokens=int(lengths.max()),
        cache_implementation=work.get("cache", "static"),
        eos_token_id=work["ends"],
        pad_token_id=work["pad"],
        logits_processor=LogitsProcessorList([EndAt(lengths, longest, work["ends"])]),
    )
    said = out[:, longest:]
    assert bool(((said == work["ends"][0]).int().argmax(1) + 1 == lengths).all())
    return int(lengths.sum())


def run() -> dict:
    return {"tokens": sum(generate(rows[at : at + batch]) for at in range(0, len(rows), batch))}


take_turns(run)
