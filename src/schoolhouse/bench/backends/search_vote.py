"""Sample `samples` independent answers, without a search, to each problem in `search_schoolhouse.py`."""

from protocol import read_workload, serve_repeats

folder, work = read_workload()

import torch  # noqa: E402

from schoolhouse.data.prompts import prompt_groups  # noqa: E402
from schoolhouse.policy.policy import Policy  # noqa: E402
from schoolhouse.tasks.registry import open_task  # noqa: E402

MAX_NEW_TOKENS = 128

torch.set_num_threads(work["threads"])
policy, task = Policy.load(work["model"]), open_task(work["task"])
problems = task.eval_problems(work["problems"])
prompts = prompt_groups(policy.conversation, problems, work["samples"], seed=0, purpose="bench")


def run() -> dict:
    rollouts = policy.extend(prompts, MAX_NEW_TOKENS, temperature=0.7)
    return {"tokens": sum(len(rollout) - len(prompt) for rollout, prompt in zip(rollouts, prompts, strict=True))}


serve_repeats(run)
