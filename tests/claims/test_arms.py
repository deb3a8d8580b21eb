"""The arms of every claim: each training run that they plan has a valid config, and each search a valid spec."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from schoolhouse.claims.compute_optimal import SearchStrategies
from schoolhouse.claims.harness import runner
from schoolhouse.claims.harness.claim import Arm, Scale, Step
from schoolhouse.claims.tot_game24 import SearchEvaluation
from schoolhouse.config import BaseConfig, Source, build
from schoolhouse.recipes import load_recipe
from schoolhouse.search.solve import Search, parse
from schoolhouse.types import SchoolError

SCALES = {"grpo": {"tiny", "gpu"}, "lora": {"tiny", "small"}}
"""Of the claims that have others than tiny."""


@pytest.fixture(autouse=True)
def puzzle_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 puzzles, as the claim of Tree of Thoughts needs them."""
    path = tmp_path / "game24.csv"
    path.write_text("Rank,Puzzles\n" + "".join(f"{rank},1 1 4 6\n" for rank in range(1, 1001)))
    monkeypatch.setenv("SCHOOLHOUSE_GAME24", str(path))


@pytest.fixture(autouse=True)
def published_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a model, and a file of problems, as the claims on a published model need them."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "1 + 1 is 2.\\n#### 2"}\n')
    monkeypatch.setenv("SCHOOLHOUSE_SMOLLM2", str(tmp_path))
    monkeypatch.setenv("SCHOOLHOUSE_GSM8K", str(tmp_path / "gsm8k.jsonl"))


def steps_in(value: Any) -> Iterator[Step]:
    """A step, and all steps in its config; or the steps among the values of a mapping."""
    if isinstance(value, Step):
        yield value
        value = value.config
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from steps_in(inner)


def steps_of(arms: Mapping[str, Arm]) -> list[Step]:
    return [step for arm in arms.values() for step in (*steps_in(arm.step), *steps_in(arm.judged_models))]


def config_of(step: Step) -> BaseConfig:
    """The config of one step. The steps that it starts from stand in it as paths of models."""
    values = {key: "a/model" if isinstance(value, Step) else value for key, value in step.config.items()}
    return build(load_recipe(step.recipe).config, Source(values, {}))


@pytest.mark.parametrize("scale", get_args(Scale))
@pytest.mark.parametrize("name", runner.claim_names())
def test_every_step_has_a_valid_config(name: str, scale: Scale):
    claim = runner.load_claim(name)
    if scale not in SCALES.get(name, {"tiny"}):
        with pytest.raises(SchoolError, match=f"no scale `{scale}`"):
            claim.arms(scale, 0)
        return
    for seed in (0, 1):
        steps = steps_of(claim.arms(scale, seed))
        assert {"sft", "pretrain"} & {step.recipe for step in steps}  # what the arms start from is among them
        for step in steps:
            config = config_of(step)
            assert getattr(config, "seed", None) in (seed, 0), "a seed that is neither the claim's nor fixed"


@pytest.mark.parametrize("name", runner.claim_names())
def test_every_measure_has_a_valid_search(name: str):
    for arm in runner.load_claim(name).arms("tiny", 0).values():
        for measure in arm.measures.values():
            if isinstance(measure, SearchEvaluation):
                assert parse(measure.search)
            if isinstance(measure, SearchStrategies):
                assert all(Search.model_validate(options) for options in measure.strategies.values())
        for step in steps_of({"arm": arm}):
            if "search" in step.config:
                assert parse(step.config["search"])


def test_a_wrong_key_is_found_in_the_config_that_a_step_starts_from():
    pretrained = Step("pretrain", {"task": "school:facts", "width": 32})
    step = Step("sft", {"model": pretrained, "task": "school:facts"})
    assert [one.recipe for one in steps_of({"arm": Arm(step, {})})] == ["sft", "pretrain"]
    assert config_of(step)
    with pytest.raises(SchoolError, match="unknown key `width`"):
        config_of(pretrained)


def test_a_step_among_the_judged_models_is_found_too():
    arm = Arm(Path("a/model"), {}, judged_models={"generator": Step("sft", {})})
    assert [step.recipe for step in steps_of({"arm": arm})] == ["sft"]
