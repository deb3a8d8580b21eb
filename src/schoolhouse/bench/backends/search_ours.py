"""A search on schoolhouse's sampler: held-out problems of a task, with a model that was taught it."""

from turns import read_work, take_turns

folder, work = read_work()

import torch  # noqa: E402

from schoolhouse.policy.policy import Policy  # noqa: E402
from schoolhouse.search.solve import parse, solve  # noqa: E402
from schoolhouse.tasks.registry import open_task  # noqa: E402
from schoolhouse.types import Key  # noqa: E402

torch.set_num_threads(work["threads"])
policy, task, search = Policy.load(work["taught"]), open_task(work["task"]), parse(work["how"])
exam = task.eval_problems(work["problems"])
asked = [policy.conversation.prompt_rollout(problem, Key(0, "bench", 0, at)) for at, problem in enumerate(exam)]


def run() -> dict:
    return {"tokens": sum(found.tokens for found in solve(policy, task, asked, search)), "problems": len(asked)}


take_turns(run)
