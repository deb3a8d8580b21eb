"""Run transformers' `Trainer`, with each row padded to the length of the longest row in its batch."""

import tempfile
from typing import Any

from protocol import read_workload, serve_repeats

folder, work = read_workload()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments  # noqa: E402

torch.set_num_threads(work["threads"])
model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
rows: Any = [{"input_ids": row} for row in work["rows"]]
micro = work.get("micro_batch", 16)


def collate(part: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in part)
    ids = torch.full((len(part), longest), work["pad_id"])
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(part):
        n = len(row["input_ids"])
        ids[i, :n] = labels[i, :n] = torch.tensor(row["input_ids"])
        mask[i, :n] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def run() -> dict:
    trainer = Trainer(
        model,
        TrainingArguments(
            tempfile.mkdtemp(),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=work["batch_size"] // micro,
            num_train_epochs=1,
            learning_rate=1e-4,
            bf16=work.get("dtype", "float32") == "bfloat16",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        data_collator=collate,
    )
    trainer.train()
    return {"tokens": sum(map(len, work["rows"]))}


serve_repeats(run)
