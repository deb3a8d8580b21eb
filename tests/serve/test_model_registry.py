"""Several adapters of one base model in one server, each by its name."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.algorithms.settings import Lora
from schoolhouse.cli.options import parse_options
from schoolhouse.model.lora import lora_layers
from schoolhouse.policy.policy import Policy
from schoolhouse.serve.model_registry import ModelRegistry
from schoolhouse.serve.settings import ServerConfig
from schoolhouse.types import Key, Message, Problem, SchoolError

TASK = "school:chain?steps=2&styles=full=100"


@pytest.fixture(scope="module")
def adapters(sft_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of one model."""
    folders = {}
    for seed, name in enumerate(("one", "other")):
        policy = Policy.load(sft_model(TASK), lora=Lora(rank=2), seed=seed)
        for _, layer in lora_layers(policy.decoder):
            layer.lora_B.data.fill_(0.01 * (1 + seed))
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        policy.save(folders[name])
    return folders


@pytest.fixture
def registry(sft_model: Callable[[str], Path], adapters: dict[str, Path]) -> Iterator[ModelRegistry]:
    config = ServerConfig.of(model=sft_model(TASK), served_model_name="base", adapters=adapters)
    registry = ModelRegistry(config)
    yield registry
    registry.close()


def logprobs(policy: Policy) -> Any:
    rollout = policy.conversation.prompt_rollout(Problem("p", (Message("user", "Start at 7."),), ""), Key(0, "t"))
    return policy.extend([rollout.append_sampled((5, 6), (0.0, 0.0), "length", 0)], 3, temperature=0.0)[0].logprob[-3:]


def test_each_name_is_its_own_adapter_on_shared_weights(registry: ModelRegistry, adapters: dict[str, Path]):
    assert [*registry.folders()][:3] == ["base", "one", "other"]
    found = {"base": registry.default_engine.policy}
    for name in adapters:
        found[name] = asyncio.run(registry.engine(name)).policy
        assert logprobs(found[name]) == logprobs(Policy.load(adapters[name]))
    assert len({logprobs(policy) for policy in found.values()}) == 3
    name = "model.layers.0.mlp.up_proj.weight"
    assert len({policy.decoder.get_parameter(name).data_ptr() for policy in found.values()}) == 1


def test_the_name_of_an_adapter_is_kept_as_it_is_written():
    given = ["model", "--adapters.my-math", "a", "--adapters.v1.2", "b", "--adapters.v1=c"]
    config = parse_options(ServerConfig, given, "school serve MODEL", ("model",))
    assert config is not None
    assert config.adapters.folders == {"my-math": Path("a"), "v1.2": Path("b"), "v1": Path("c")}
    with pytest.raises(SchoolError, match=r"--adapters\.my-math needs one value, found none"):
        parse_options(ServerConfig, ["model", "--adapters.my-math"], "school serve MODEL", ("model",))


def test_an_adapter_of_another_base_is_refused_at_the_start(
    sft_model: Callable[[str], Path], adapters: dict[str, Path], tmp_path: Path
):
    model = sft_model(TASK)
    Policy.load(model).save(tmp_path / "copy")
    for served, given, message in (
        (tmp_path / "copy", {"math": adapters["one"]}, "--adapters.math .* is an adapter of"),
        (model, {"math": tmp_path / "copy"}, "is not a LoRA adapter: serve the model with"),
        (model, {"base": adapters["one"]}, "has the name of the served model"),
        (model, {"math": tmp_path / "none"}, "is not a folder: give the folder of an adapter"),
    ):
        with pytest.raises(SchoolError, match=message):
            ModelRegistry(ServerConfig.of(model=served, served_model_name="base", adapters=given))
