"""Defaults for the size of a model: the number of parameters, the chosen values, and the values of the user."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.config import expand_dotted
from schoolhouse.recipes import load_recipe
from schoolhouse.runs.size_defaults import LORA_RANK, num_parameters, size_defaults

MILLION = 1_000_000


def model_folder(folder: Path, parameters: int) -> Path:
    """A model folder whose weight file has the header of `parameters` parameters, and no weights."""
    folder.mkdir()
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [parameters // 2, 2], "data_offsets": [0, 0]},
    }
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    (folder / "config.json").write_text("{}")
    return folder


def adapter_folder(folder: Path, base: Path, **keys: Any) -> Path:
    """A folder with an adapter of rank 8, without its weights."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(base), "r": 8, "lora_alpha": 12, **keys})
    )
    return folder


def chosen(recipe: str, model: Path, **given: Any) -> dict[str, Any]:
    return size_defaults(load_recipe(recipe).config, expand_dotted({"model": str(model), **given}))


def test_parameters_are_counted_from_the_header_alone(tmp_path: Path) -> None:
    assert num_parameters(model_folder(tmp_path / "m", 135 * MILLION)) == 135 * MILLION


def test_an_adapter_counts_the_parameters_of_its_base(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base", 4 * MILLION)
    assert num_parameters(adapter_folder(tmp_path / "adapter", base)) == 4 * MILLION


def test_an_adapter_that_was_moved_with_its_base_keeps_its_values(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    base = model_folder(tmp_path / "old" / "base", 4 * MILLION)
    adapter = adapter_folder(tmp_path / "old" / "adapter", base)
    (adapter / "base_model.json").write_text(json.dumps({"folder": "../base"}))
    before = chosen("sft", adapter)
    (tmp_path / "old").rename(tmp_path / "new")
    assert chosen("sft", tmp_path / "new" / "adapter") == before
    assert before["lora.rank"] == 8


def test_weights_of_16_bits_in_a_pickled_file_have_two_bytes_each(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(1_000))
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    assert num_parameters(tmp_path) == 500


@pytest.mark.parametrize(
    "content",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x10" + bytes(7) + b'{"a":', b"\x02" + bytes(7) + b"[]"],
    ids=["empty", "pointer of git-lfs", "cut off", "no mapping"],
)
def test_a_damaged_weight_file_is_left_to_the_recipe(tmp_path: Path, content: bytes) -> None:
    folder = model_folder(tmp_path / "m", 2 * MILLION)
    (folder / "model.safetensors").write_bytes(content)
    assert chosen("grpo", folder) == {}


@pytest.mark.parametrize("rank", ["many", "nan", "1e999", [8]])
def test_a_rank_that_is_not_a_number_is_left_to_the_check_of_the_values(tmp_path: Path, rank: Any) -> None:
    assert chosen("grpo", model_folder(tmp_path / "m", 2 * MILLION), **{"lora.rank": rank}) == {}


def test_a_small_model_keeps_the_defaults_of_the_recipe(tmp_path: Path) -> None:
    assert chosen("grpo", model_folder(tmp_path / "m", MILLION)) == {}


def test_the_learning_rate_falls_with_the_size(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "m", 30 * MILLION)
    assert chosen("grpo", model) == {"optimizer.learning_rate": pytest.approx(2e-4 / 30**0.75, rel=0.05)}
    assert chosen("sft", model) == {"optimizer.learning_rate": pytest.approx(1e-3 / 30**0.75, rel=0.05)}


def test_a_large_model_gets_lora_with_ten_times_the_rate_and_smaller_steps(tmp_path: Path) -> None:
    assert chosen("grpo", model_folder(tmp_path / "m", 135 * MILLION)) == {
        "optimizer.learning_rate": pytest.approx(5e-5, rel=0.05),
        "lora.rank": LORA_RANK,
        "prompts_per_step": 8,
        "group_size": 8,
        "sampling.max_new_tokens": 256,
    }


def test_full_fine_tuning_of_a_large_model_gets_the_low_rate(tmp_path: Path) -> None:
    values = chosen("grpo", model_folder(tmp_path / "m", 135 * MILLION), **{"lora.rank": "0"})
    assert values["optimizer.learning_rate"] == pytest.approx(5e-6, rel=0.05)
    assert "lora.rank" not in values


def test_values_of_the_user_are_never_replaced(tmp_path: Path) -> None:
    given = {"optimizer.learning_rate": "1e-3", "group_size": "4", "lora.rank": "2", "sampling.max_new_tokens": "9"}
    assert chosen("grpo", model_folder(tmp_path / "m", 135 * MILLION), **given) == {"prompts_per_step": 8}


def test_training_of_an_adapter_keeps_its_rank_and_its_alpha(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base", 4 * MILLION)
    values = chosen("sft", adapter_folder(tmp_path / "adapter", base))
    assert (values["lora.rank"], values["lora.alpha"]) == (8, 12)


def test_settings_that_are_not_numbers_are_left_to_the_recipe(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base", 4 * MILLION)
    values = chosen("sft", adapter_folder(tmp_path / "adapter", base, r=None, lora_alpha="much"))
    assert not values.keys() & {"lora.rank", "lora.alpha"}


def test_a_recipe_without_a_start_model_has_no_defaults_by_size() -> None:
    assert size_defaults(load_recipe("pretrain").config, {"model": {"hidden_size": 64}}) == {}


def test_a_model_that_does_not_exist_is_left_to_the_recipe(tmp_path: Path) -> None:
    assert chosen("grpo", tmp_path / "none") == {}


def test_a_folder_without_weights_is_left_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert chosen("grpo", tmp_path, **{"lora.rank": 8}) == {}
