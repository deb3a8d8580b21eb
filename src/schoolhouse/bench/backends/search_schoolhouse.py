"""Run a search with schoolhouse's sampler on held-out problems of a task. The model was trained on the same task."""

from protocol import read_workload, serve_repeats

folder, work = read_workload()

import torch  # noqa: E402

from schoolhouse.data.prompts import prompt_groups  # noqa: E402
from schoolhouse.policy.policy import Policy  # noqa: E402
from schoolhouse.search.solve import parse, solve  # noqa: E402
from schoolhouse.tasks.registry import open_task  # noqa: E402

torch.set_num_threads(work["threads"])
policy, task, search = Policy.load(work["model"]), open_task(work["task"]), parse(work["search"])
problems = task.eval_problems(work["problems"])
prompts = prompt_groups(policy.conversation, problems, 1, seed=0, purpose="bench")


def run() -> dict:
    results = solve(policy, task, prompts, search)
    return {"tokens": sum(result.tokens for result in results), "problems": len(prompts)}


serve_repeats(run)
