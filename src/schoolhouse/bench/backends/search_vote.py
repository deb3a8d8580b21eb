"""Plain answers to the problems that `search_ours.py` searches for, `samples` to each: the sampler and nothing else."""

from turns import read_work, take_turns

folder, work = read_work()

import torch  # noqa: E402

from schoolhouse.policy.policy import Policy  # noqa: E402
from schoolhouse.tasks.registry import open_task  # noqa: E402
from schoolhouse.types import Key  # noqa: E402

LENGTH = 128  # tokens an answer may take

torch.set_num_threads(work["threads"])
policy, task = Policy.load(work["taught"]), open_task(work["task"])
keys = [
    (p, Key(0, "bench", 0, at, g))
    for at, p in enumerate(task.eval_problems(work["problems"]))
    for g in range(work["samples"])
]
asked = [policy.conversation.prompt_rollout(problem, key) for problem, key in keys]


def run() -> dict:
    said = policy.extend(asked, LENGTH, temperature=0.7)
    return {"tokens": sum(len(after) - len(before) for before, after in zip(asked, said, strict=True))}


take_turns(run)
