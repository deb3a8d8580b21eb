"""schoolhouse trains language models to reason, from pretraining to RL. Its first target is the CPU of a laptop.

You import all public names from `schoolhouse`. A name is loaded when it is first used, so `import schoolhouse` is fast.
The names for data are `Problem`, `Message`, `Completion`, `Demonstration`, `Verdict`, `Rollout`, `Group`, `Key`,
`Batch` and `Scores`. The names for policies are `Policy` (with the methods extend, score and update), `Conversation`,
`prompt_groups` and `RolloutStream`. The names for tasks are `Task`, `open_task`, `grade`, `grade_rollouts`,
`answer_match` and `audit_task`. The names for algorithms are `group_advantage` and other advantages, the losses, `pack`
and token weights. The names for runs and configs are `Run`, `BaseConfig`, the groups of config keys that recipes share,
`load_recipe` and `evaluate`. The next line imports the most important names:

    from schoolhouse import Policy, Task, Problem, Verdict, Rollout, Group
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "types": "Completion Demonstration Group Key Message Precision Problem Rollout SchoolError Verdict",
    "config": "BaseConfig",
    "data.chat": "Conversation",
    "data.prompts": "prompt_groups",
    "data.tokenizer": "Tokenizer train_tokenizer",
    "algorithms.advantages": "distillation_advantage group_advantage scale_negatives step_advantage "
    "subtract_to_go value_gains",
    "algorithms.groups": "drop_constant_reward_groups drop_ungraded group_stats rollouts_of truncated with_rewards",
    "algorithms.losses": "Loss add_penalty cispo clipped_surrogate dppo importance_corrected kl_penalty "
    "negative_log_likelihood policy_gradient ratio_stats score_centering token_bce",
    "algorithms.packing": "Batch Scores TokenWeight constant loss_aggregation pack sequence_mean sequence_sum "
    "token_mean without",
    "algorithms.reward_shaping": "add_format_rewards kl_in_reward length_reward overlong_penalty",
    "algorithms.settings": "Advantage Eval Lora Optimizer PolicyLoss Rewards RolloutSampling Sampling",
    "policy.interface": "Generator",
    "policy.policy": "Policy",
    "policy.stream": "RolloutStream",
    "policy.supervised": "supervised_update",
    "tasks.answer_match": "answer_match",
    "tasks.audit": "audit_task",
    "tasks.base": "Task",
    "tasks.grade_reply": "grade",
    "tasks.grading": "grade_rollouts",
    "tasks.registry": "open_task",
    "eval.evaluate": "evaluate",
    "recipes": "Recipe load_recipe recipe_names",
    "runs.run": "Run",
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = [
    "Advantage",
    "BaseConfig",
    "Batch",
    "Completion",
    "Conversation",
    "Demonstration",
    "Eval",
    "Generator",
    "Group",
    "Key",
    "Lora",
    "Loss",
    "Message",
    "Optimizer",
    "Policy",
    "PolicyLoss",
    "Precision",
    "Problem",
    "Recipe",
    "Rewards",
    "Rollout",
    "RolloutSampling",
    "RolloutStream",
    "Run",
    "Sampling",
    "SchoolError",
    "Scores",
    "Task",
    "TokenWeight",
    "Tokenizer",
    "Verdict",
    "add_format_rewards",
    "add_penalty",
    "answer_match",
    "audit_task",
    "cispo",
    "clipped_surrogate",
    "constant",
    "distillation_advantage",
    "dppo",
    "drop_constant_reward_groups",
    "drop_ungraded",
    "evaluate",
    "grade",
    "grade_rollouts",
    "group_advantage",
    "group_stats",
    "importance_corrected",
    "kl_in_reward",
    "kl_penalty",
    "length_reward",
    "load_recipe",
    "loss_aggregation",
    "negative_log_likelihood",
    "open_task",
    "overlong_penalty",
    "pack",
    "policy_gradient",
    "prompt_groups",
    "ratio_stats",
    "recipe_names",
    "rollouts_of",
    "scale_negatives",
    "score_centering",
    "sequence_mean",
    "sequence_sum",
    "step_advantage",
    "subtract_to_go",
    "supervised_update",
    "token_bce",
    "token_mean",
    "train_tokenizer",
    "truncated",
    "value_gains",
    "with_rewards",
    "without",
]

if TYPE_CHECKING:  # the same names for type checkers, which do not run __getattr__
    from schoolhouse.algorithms.advantages import (
        distillation_advantage,
        group_advantage,
        scale_negatives,
        step_advantage,
        subtract_to_go,
        value_gains,
    )
    from schoolhouse.algorithms.groups import (
        drop_constant_reward_groups,
        drop_ungraded,
        group_stats,
        rollouts_of,
        truncated,
        with_rewards,
    )
    from schoolhouse.algorithms.losses import (
        Loss,
        add_penalty,
        cispo,
        clipped_surrogate,
        dppo,
        importance_corrected,
        kl_penalty,
        negative_log_likelihood,
        policy_gradient,
        ratio_stats,
        score_centering,
        token_bce,
    )
    from schoolhouse.algorithms.packing import (
        Batch,
        Scores,
        TokenWeight,
        constant,
        loss_aggregation,
        pack,
        sequence_mean,
        sequence_sum,
        token_mean,
        without,
    )
    from schoolhouse.algorithms.reward_shaping import (
        add_format_rewards,
        kl_in_reward,
        length_reward,
        overlong_penalty,
    )
    from schoolhouse.algorithms.settings import (
        Advantage,
        Eval,
        Lora,
        Optimizer,
        PolicyLoss,
        Rewards,
        RolloutSampling,
        Sampling,
    )
    from schoolhouse.config import BaseConfig
    from schoolhouse.data.chat import Conversation
    from schoolhouse.data.prompts import prompt_groups
    from schoolhouse.data.tokenizer import Tokenizer, train_tokenizer
    from schoolhouse.eval.evaluate import evaluate
    from schoolhouse.policy.interface import Generator
    from schoolhouse.policy.policy import Policy
    from schoolhouse.policy.stream import RolloutStream
    from schoolhouse.policy.supervised import supervised_update
    from schoolhouse.recipes import Recipe, load_recipe, recipe_names
    from schoolhouse.runs.run import Run
    from schoolhouse.tasks.answer_match import answer_match
    from schoolhouse.tasks.audit import audit_task
    from schoolhouse.tasks.base import Task
    from schoolhouse.tasks.grade_reply import grade
    from schoolhouse.tasks.grading import grade_rollouts
    from schoolhouse.tasks.registry import open_task
    from schoolhouse.types import (
        Completion,
        Demonstration,
        Group,
        Key,
        Message,
        Precision,
        Problem,
        Rollout,
        SchoolError,
        Verdict,
    )


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module `schoolhouse` has no public name `{name}`")
    value = getattr(import_module(f"schoolhouse.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
