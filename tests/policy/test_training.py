"""What recipes train: an adapter or the whole model, with a reference that needs no second model under LoRA."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schoolhouse.algorithms.settings import Lora, Optimizer
from schoolhouse.model import lora_folder
from schoolhouse.model.lora import adapter_tensors
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.supervised import supervised_update
from schoolhouse.policy.training import AdapterReference, ModelReference, reference_policy
from schoolhouse.recipes import expert_iteration, grpo, pretrain, sft, star
from schoolhouse.runs.run import Run, read_metrics
from schoolhouse.types import Group, Rollout, SchoolError
from tiny_runs import TINY, metrics_text, train

TASK = "school:facts"
GRPO: dict[str, Any] = {
    "task": TASK,
    "prompts_per_step": 4,
    "group_size": 4,
    "sampling.max_new_tokens": 12,
    "optimizer.learning_rate": 1e-2,
    "precision": "float32",
    "lora.rank": 4,
    "rewards.control": "random",
}


class Killed(Exception):
    """Raised inside a run, as if its process had been killed there."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    c = pretrain.Config.of(task=TASK, model=TINY, vocab_size=300, steps=3, batch_size=4, seq_len=32)
    return str(train(tmp_path_factory.mktemp("lora") / "base", c).model)


@pytest.fixture(scope="module")
def adapter(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter that was fine-tuned for a few steps."""
    keys: dict[str, Any] = {"lora.rank": 4, "optimizer.learning_rate": 1e-2, "precision": "float32"}
    c = sft.Config.of(model=base, task=TASK, steps=4, batch_size=8, **keys)
    return str(train(tmp_path_factory.mktemp("lora") / "sft", c).model)


def tensors_of(folder: Path | str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


def rollouts(policy: Policy, make_prompts: Callable[..., list[Rollout]]) -> list[Rollout]:
    return policy.extend(make_prompts([[5, 6, 7], [8, 9]]), 6, stop_ids=[])


def update(policy: Policy, make_prompts: Callable[..., list[Rollout]], times: int = 3) -> None:
    for step in range(times):
        settings = Optimizer(learning_rate=1e-2, warmup_steps=0)
        supervised_update(policy, rollouts(policy, make_prompts), settings, step, 100, 4_096)


def logprobs(model: Any, some: Sequence[Rollout]) -> list[list[float]]:
    return [scores.logprob.tolist() for scores in model.score(some)]


def test_an_update_changes_the_adapter_and_nothing_else(base: str, make_prompts: Callable[..., list[Rollout]]):
    policy, before = Policy.load(base, "float32", lora=Lora(rank=4)), Policy.load(base, "float32")
    update(policy, make_prompts)
    for name, parameter in before.decoder.named_parameters():
        assert torch.equal(dict(policy.decoder.named_parameters())[name], parameter), name
    assert all(float(tensor.abs().max()) > 0 for tensor in adapter_tensors(policy.decoder).values())
    groups = policy.learner.optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(adapter_tensors(policy.decoder)) == 14


def test_sampler_and_learner_agree(adapter: str, make_prompts: Callable[..., list[Rollout]]):
    policy = Policy.load(adapter, "float32")
    for rollout, scores in zip(some := rollouts(policy, make_prompts), policy.score(some), strict=True):
        sampled = [a for a, mask in zip(rollout.logprob, rollout.loss_mask, strict=True) if mask]
        scored = [b for b, mask in zip(scores.logprob.tolist(), rollout.loss_mask, strict=True) if mask]
        assert sampled == pytest.approx(scored, abs=1e-5)


def test_the_reference_is_the_policy_without_its_adapter(base: str, make_prompts: Callable[..., list[Rollout]]):
    policy, whole = Policy.load(base, "float32", lora=Lora(rank=4)), Policy.load(base, "float32")
    update(policy, make_prompts)
    c = grpo.Config.of(model=base, **GRPO)
    reference, some = reference_policy(c, policy), rollouts(policy, make_prompts)
    assert isinstance(reference, AdapterReference)
    before = logprobs(policy, some)
    assert logprobs(reference, some) == logprobs(whole, some) != before
    assert logprobs(policy, some) == before
    assert isinstance(reference_policy(c, whole), ModelReference)


def test_the_reference_of_a_trained_adapter_is_that_adapter(adapter: str, make_prompts: Callable[..., list[Rollout]]):
    policy, start = Policy.load(adapter, "float32", lora=Lora(rank=4)), Policy.load(adapter, "float32")
    update(policy, make_prompts)
    reference, some = reference_policy(grpo.Config.of(model=adapter, **GRPO), policy), rollouts(policy, make_prompts)
    assert logprobs(reference, some) == logprobs(start, some) != logprobs(policy, some)
    reference.copy_from(policy)
    assert logprobs(reference, some) == logprobs(policy, some)
    again = AdapterReference(policy, None)
    again.load_state_dict(reference.state_dict())
    update(policy, make_prompts, 1)
    assert logprobs(again, some) == logprobs(reference, some) != logprobs(policy, some)


def test_the_average_of_a_policy_holds_the_share_of_each_weight(base: str, make_prompts: Callable[..., list[Rollout]]):
    policy, start = Policy.load(base, "float32"), Policy.load(base, "float32")
    reference = ModelReference(Policy.load(base, "float32"))
    update(policy, make_prompts)
    reference.move_towards(policy, 0.25)
    ours, theirs = (dict(p.decoder.named_parameters()) for p in (policy, start))
    for name, mean in reference.policy.decoder.named_parameters():
        assert mean.detach() == pytest.approx((0.75 * theirs[name] + 0.25 * ours[name]).detach(), abs=1e-6), name
    assert any(not torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_average_of_an_adapter_is_of_its_matrices_alone(base: str, make_prompts: Callable[..., list[Rollout]]):
    policy, frozen = Policy.load(base, "float32", lora=Lora(rank=4)), Policy.load(base, "float32")
    reference = AdapterReference(policy, None)
    reference.copy_from(policy)
    start = {name: tensor.clone() for name, tensor in adapter_tensors(policy.decoder).items()}
    update(policy, make_prompts)
    reference.move_towards(policy, 0.25)
    for name, now in adapter_tensors(policy.decoder).items():
        assert reference.state_dict()[name] == pytest.approx(0.75 * start[name] + 0.25 * now, abs=1e-7), name
    assert reference.state_dict().keys() == start.keys()
    for name, parameter in frozen.decoder.named_parameters():
        assert torch.equal(dict(policy.decoder.named_parameters())[name], parameter), name


def test_a_kl_penalty_loads_no_second_model(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loaded, load_decoder = [], lora_folder.load_decoder
    monkeypatch.setattr(lora_folder, "load_decoder", lambda folder: loaded.append(folder) or load_decoder(folder))
    run = train(tmp_path / "run", grpo.Config.of(model=base, steps=2, **GRPO, **{"loss.kl_coef": 0.1}))
    assert len(loaded) == 1
    kl = [row["kl_to_reference"] for row in read_metrics(run.folder)]
    assert kl[0] == 0.0 < kl[1]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {
            "loss.kl_coef": 0.1,
            "loss.ref_model_sync_steps": 2,
            "max_policy_lag": 1,
            "loss.importance_correction": "token",
        },
        {"lora.base_dtype": "bfloat16", "rewards.kl_coef": 0.1, "model": "adapter"},
    ],
)
@pytest.mark.fault("killed")
def test_a_killed_run_resumes_to_the_same_bits(
    base: str, adapter: str, tmp_path: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    model = adapter if keys.get("model") else base
    config = grpo.Config.of(**{"steps": 5, "save_every": 3, **GRPO, **keys, "model": model})
    whole = train(tmp_path / "whole", config)

    def kill_in_step_4(control: Any, groups: Sequence[Group], seed: int, step: int) -> Sequence[Group]:
        if step == 4:
            raise Killed
        return shape(control, groups, seed, step)

    shape = grpo.apply_reward_control
    with monkeypatch.context() as patch:
        patch.setattr(grpo, "apply_reward_control", kill_in_step_4)
        with pytest.raises(Killed):
            train(tmp_path / "killed", config)
    with Run.open(tmp_path / "killed", config, "grpo") as run:
        assert run.step == 3
        grpo.grpo(config, run)
    ours, theirs = tensors_of(run.model), tensors_of(whole.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics_text(run) == metrics_text(whole)
    assert not list((tmp_path / "whole").rglob("model.safetensors"))


@pytest.mark.parametrize("recipe", [star, expert_iteration])
def test_each_loop_starts_from_the_first_adapter_of_the_base(
    base: str, tmp_path: Path, recipe: Any, make_prompts: Callable[..., list[Rollout]]
):
    policy = Policy.load(base, "float32", lora=Lora(rank=4), seed=5)
    first = {name: tensor.clone() for name, tensor in adapter_tensors(policy.decoder).items()}
    update(policy, make_prompts)
    policy.reset(base)
    assert all(torch.equal(tensor, first[name]) for name, tensor in adapter_tensors(policy.decoder).items())
    keys: dict[str, Any] = {"star": {"num_demos": 4}, "expert_iteration": {"search": "sample", "verify": False}}
    c = recipe.Config.of(
        model=base,
        task=TASK,
        loops=1,
        prompts_per_loop=2,
        updates_per_loop=2,
        batch_size=2,
        lora={"rank": 4},
        **({"demos_task": TASK} if recipe is star else {}),
        **keys[recipe.__name__.rpartition(".")[2]],
    )
    assert len(tensors_of(train(tmp_path / "run", c).model)) == 14


@pytest.mark.fault("adapter and whole model")
def test_a_run_that_asks_for_the_whole_model_refuses_an_adapter(adapter: str, tmp_path: Path):
    with pytest.raises(SchoolError, match="lora.rank 0 asks to train a whole model: give --lora.rank 4"):
        train(tmp_path / "run", sft.Config.of(model=adapter, task=TASK, steps=1))


def test_the_python_of_the_page_runs(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    page = (Path(__file__).parents[2] / "docs" / "lora.md").read_text().partition("<!-- run: lora -->\n")[2]
    code = "\n".join(line.removeprefix("    ") for line in page.splitlines())
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("MODEL", base), "lora.md", "exec"), {})
    assert capsys.readouterr().out.split() == [str(Path(base).resolve()), "8"]
