"""One step of TRL's `GRPOTrainer` with transformers' `generate` and completions of a fixed length.

The backend generates in batches of 64 rows, because `generate` is slower with all rows in one batch (TRL's default).
"""

import tempfile
import time
from typing import Any

from forced_length import ForcedLength
from protocol import read_workload, serve_repeats

folder, work = read_workload()

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

torch.set_num_threads(work["threads"])
model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder / "model")
lengths = torch.tensor([length for group in work["lengths"] for length in group])
generate: Any = model.generate


done = 0  # completions of this step so far


def generate_lengths(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
    global done
    part = lengths[done : done + len(input_ids)]
    done += len(part)
    processors = LogitsProcessorList([ForcedLength(part, input_ids.shape[1], work["stop_ids"])])
    return generate(input_ids=input_ids, logits_processor=processors, **options)


setattr(model, "generate", generate_lengths)  # noqa: B010
if rank := work.get("lora_rank", 0):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=rank, lora_alpha=work["lora_alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)  # its method `generate` calls the one that was set above


class Trainer(GRPOTrainer):
    def _tokenize_prompts(self, prompts: list) -> tuple:
        return [work["prompts"][int(prompt)] for prompt in prompts], None, {}


def reward(completions: list, **_: object) -> list[float | None]:
    return [float(i % 2) for i in range(len(completions))]


def step(problems: int) -> dict:
    """Make one step on the first problems of the workload."""
    global done
    done, rows = 0, problems * work["samples"]
    micro = min(work.get("micro_batch", 32), rows)
    trainer = Trainer(
        model,
        reward_funcs=reward,
        args=GRPOConfig(
            tempfile.mkdtemp(),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=rows // micro,
            steps_per_generation=min(64, rows) // micro,
            num_generations=work["samples"],
            max_completion_length=int(lengths[:rows].max()),
            max_steps=1,
            learning_rate=1e-6,
            beta=0.0,
            bf16=work.get("dtype", "float32") == "bfloat16",
            gradient_checkpointing=False,
            use_cpu=True,
            shuffle_dataset=False,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": [str(p) for p in range(problems)]}),
        processing_class=tokenizer,
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    mean_length = float(lengths[:rows].float().mean())
    assert abs(trainer.state.log_history[0]["completions/mean_length"] - mean_length) < 0.01
    assert done == rows
    return {"tokens": int(lengths[:rows].sum()), "seconds": seconds}


# one problem executes the same code as all problems, and the first step of a large workload takes minutes
serve_repeats(lambda: step(len(work["prompts"])), warm_up=lambda: step(1))
