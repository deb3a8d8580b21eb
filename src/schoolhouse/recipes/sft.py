"""Supervised fine-tuning on demonstrations: maximize the likelihood of the completion, given the prompt.

The loss covers only the last assistant turn, or every assistant turn. The loss includes the end-of-turn token. The loss
mask comes from known token positions, never from a search for strings in the text.
"""

from __future__ import annotations

from pydantic import Field

from schoolhouse.algorithms.settings import Lora, Optimizer
from schoolhouse.data.chat_rollouts import LossOn, demonstration_rollouts
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.policy.supervised import supervised_update
from schoolhouse.policy.training import load_policy
from schoolhouse.runs.run import Run
from schoolhouse.tasks.registry import data_spec, open_task
from schoolhouse.types import Key, Precision


class Config(ChatConfig):
    model: str
    """Folder of the model to start from (Hugging Face format), or of a run: its newest checkpoint."""
    task: str = "school"
    """Where the demonstrations come from: school[:families], jsonl:PATH, ..."""
    data: str = ""
    """File, folder or glob pattern of chats or other rows (docs/data.md), instead of a task. All rows are trained."""
    loss_on: LossOn = "last"
    """Assistant turns of a chat that have a loss: the last turn, or all turns."""
    seed: int = 0
    steps: int = Field(500, gt=0)
    batch_size: int = Field(64, gt=0)
    """Number of demonstrations per update."""
    optimizer: Optimizer = Optimizer(weight_decay=0.01)
    lora: Lora = Lora()
    microbatch_tokens: int = Field(4_096, gt=0)
    """Maximum number of tokens in one micro-batch. This number changes the memory, but not the result."""
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    """Save memory with a second forward pass in each update. The result of the training does not change."""
    save_every: int = Field(200, gt=0)


def sft(c: Config, run: Run) -> None:
    policy = run.restore(load_policy(c, run))
    task = open_task(data_spec(c.data) if c.data else c.task, c.seed)
    run.track_files(*task.files)

    for step in run.steps(range(run.step, c.steps), save=policy, every=c.save_every):
        demonstrations = task.demonstrations(step, c.batch_size)
        keys = [Key(c.seed, "sft", step, i) for i in range(len(demonstrations))]
        rollouts = demonstration_rollouts(policy.conversation, demonstrations, keys, c.loss_on)
        run.record(step, **supervised_update(policy, rollouts, c.optimizer, step, c.steps, c.microbatch_tokens))
