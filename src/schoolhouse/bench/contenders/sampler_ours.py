"""Schoolhouse's `Policy.extend`."""

from turns import read_work, take_turns

folder, work = read_work()

import torch  # noqa: E402

from schoolhouse.policy.policy import Policy  # noqa: E402
from schoolhouse.types import Key, Problem, Rollout  # noqa: E402

torch.set_num_threads(work["threads"])
policy = Policy.load(folder / "model", work.get("precision", "auto"))
prefixes, lengths = [], []
for p, (prompt, wanted) in enumerate(zip(work["prompts"], work["lengths"], strict=True)):
    problem = Problem(str(p), (), "")
    for g, length in enumerate(wanted):
        nothing = (float("nan"),) * len(prompt)
        prefixes.append(Rollout(problem, Key(0, "bench", 0, p, g), tuple(prompt), (False,) * len(prompt), nothing))
        lengths.append(length)


def run() -> dict:
    rollouts = policy.extend(prefixes, lengths, stop=())
    assert [len(r) - len(q) for r, q in zip(rollouts, prefixes, strict=True)] == lengths
    return {"tokens": sum(lengths)}


take_turns(run)
