"""`school doctor MODEL` says what was recognised, and its exit status says whether the model can be used."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from schoolhouse.algorithms.settings import Lora
from schoolhouse.cli.main import main
from schoolhouse.hub import describe
from schoolhouse.hub.describe import Token, Weights, describe_model, render
from schoolhouse.policy.policy import Policy
from schoolhouse.types import SchoolError

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(policy: Policy, tmp_path: Path) -> Path:
    policy.save(tmp_path / "model")
    return tmp_path / "model"


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def save_adapter(folder: Path):
    """Replaces the model of a folder by a random model of transformers, with the same tokenizer."""

    def save(model_type: str, **keys: Any) -> Path:
        sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, "head_dim": 8}
        config = transformers.AutoConfig.for_model(model_type, **{**sizes, "pad_token_id": 0, **keys})
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return folder

    return save


def save_lora(folder: Path) -> Path:
    """Write an adapter of the model in `folder` to a folder of its own."""
    Policy.load(folder, lora=Lora(rank=4)).save(folder.with_name("adapter"))
    return folder.with_name("adapter")


def doctor(capsys: pytest.CaptureFixture[str], folder: Path) -> tuple[int, dict[str, str]]:
    """The exit status, and the lines by their topics."""
    status: Any = None
    try:
        status = main(["doctor", str(folder)])
    except SystemExit as end:
        status = end.code
    assert isinstance(status, int)
    lines = capsys.readouterr().out.splitlines()
    return status, {line[:18].strip(): line[18:].strip() for line in lines}


def test_a_model_of_ours_is_described(folder: Path, policy: Policy, capsys) -> None:
    status, lines = doctor(capsys, folder)
    assert status == 0
    assert lines["family"].startswith("qwen3, 0.0 million parameters")
    assert lines["decoder"] == "schoolhouse's own: this decoder supports all keys of config.json"
    assert lines["longest sequence"] == "128 tokens: `max_position_embeddings`"
    assert lines["head"] == "has weights of its own"
    assert lines["numbers"].startswith("float32 in the files")
    assert lines["chat template"] == "chat_template.jinja"
    end, text_end = policy.conversation.stop_ids
    assert lines["an answer ends at"] == f"`<|im_end|>` (id {end}), `<|endoftext|>` (id {text_end})"
    assert lines["thoughts"] == "`<think>` (id 3) and `</think>` (id 4)"
    assert lines["BOS"] == "none"
    assert lines["can be used"] == "yes"


def test_the_parameters_are_counted_in_the_files(folder: Path, policy: Policy) -> None:
    path = folder / "model.safetensors"
    save_file({name: weight.to(torch.bfloat16) for name, weight in load_file(path).items()}, path)
    count = sum(weight.numel() for weight in policy.decoder.parameters())
    assert describe_model(folder).weights == Weights(count, path.stat().st_size, ("bfloat16",))
    weights = load_file(path)
    path.unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    described = describe_model(folder).weights
    assert described
    assert (described.num_parameters, described.dtypes) == (count, ("bfloat16",))


def test_weights_that_no_index_names_are_not_counted(folder: Path, policy: Policy) -> None:
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    described = describe_model(folder).weights
    assert described
    assert described.num_parameters == sum(weight.numel() for weight in policy.decoder.parameters())


def test_unknown_keys_that_change_nothing_are_named(folder: Path) -> None:
    rewrite(folder / "config.json", embedding_note=1)
    described = describe_model(folder)
    assert described.decoder == "own"
    assert "`embedding_note` of this config.json gave the same logits as transformers" in described.decoder_reason


def test_another_family_takes_the_adapter(save_adapter) -> None:
    described = describe_model(save_adapter("olmo2"))
    assert described.decoder == "adapter"
    assert described.decoder_reason == "the own decoder computes llama, mistral, qwen2, qwen3, not `olmo2`"
    assert any("GGUF export" in limit for limit in described.limits)
    assert described.problems == ()


def test_a_key_that_sends_a_llama_to_the_adapter_is_named(save_adapter) -> None:
    described = describe_model(save_adapter("llama", mlp_bias=True))
    assert described.decoder == "adapter"
    assert described.decoder_reason == "the own decoder does not compute `mlp_bias: True`"


def test_a_sliding_window_is_named(save_adapter) -> None:
    described = describe_model(save_adapter("starcoder2", sliding_window=2_048, max_position_embeddings=4_096))
    assert described.config
    assert described.config.max_seq_len == 2_048
    assert described.length_reason.startswith("its layers attend to 2,048 tokens (`sliding_window`)")
    described = describe_model(save_adapter("starcoder2", sliding_window=32, max_position_embeddings=4_096))
    assert described.config
    assert described.config.max_seq_len == 4_096
    assert any("fast kernels" in limit for limit in described.limits)


def test_longrope_is_named(save_adapter) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_type": "longrope", "rope_theta": 1e4}
    rope = {**factors, "original_max_position_embeddings": 32}
    described = describe_model(save_adapter("phi3", rope_parameters=rope, original_max_position_embeddings=32))
    assert described.config
    assert described.config.max_seq_len == 32
    assert described.length_reason == "its rotary frequencies change above 32 tokens (longrope)"


def test_bos_is_described_with_its_use(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", bos_token="<|endoftext|>")
    template = describe_model(folder).template
    assert template
    assert (template.bos, template.adds_bos) == (Token(0, "<|endoftext|>"), False)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + (folder / "chat_template.jinja").read_text())
    template = describe_model(folder).template
    assert template
    assert template.adds_bos


@pytest.mark.parametrize("as_list", [False, True])
def test_the_template_is_found_in_the_tokenizer_config(folder: Path, as_list: bool) -> None:
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    rewrite(
        folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": text}] if as_list else text
    )
    template = describe_model(folder).template
    assert template
    assert template.source == "tokenizer_config.json"


def test_a_missing_template_is_said(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    template = describe_model(folder).template
    assert template
    assert template.source == "none; the default template is used (ChatML)"


def test_a_refused_model_has_exit_status_1(save_adapter, capsys) -> None:
    status, lines = doctor(capsys, save_adapter("lfm2", layer_types=["conv", "full_attention"]))
    assert status == 1
    assert "carry a state from token to token" in lines["CANNOT BE USED"]
    assert "decoder" not in lines


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_missing_file_has_exit_status_1(folder: Path, name: str, capsys) -> None:
    (folder / name).unlink()
    status, lines = doctor(capsys, folder)
    assert status == 1
    assert name in lines["CANNOT BE USED"]


def test_damaged_weights_have_exit_status_1(folder: Path, capsys) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1_000])
    status, lines = doctor(capsys, folder)
    assert status == 1
    assert f"{path} cannot be read" in lines["CANNOT BE USED"]


def test_an_adapter_without_its_base_model_has_exit_status_1(folder: Path, capsys) -> None:
    adapter = save_lora(folder)
    rewrite(adapter / "adapter_config.json", base_model_name_or_path="school/base")
    folder.rename(folder.with_name("elsewhere"))
    status, lines = doctor(capsys, adapter)
    assert status == 1
    assert "changes the base model school/base, which is not on this machine" in lines["CANNOT BE USED"]


def test_an_adapter_is_described_with_its_base_model(folder: Path, capsys) -> None:
    status, lines = doctor(capsys, save_lora(folder))
    assert status == 0
    layers = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    assert lines["LoRA adapter"] == f"rank 4, alpha 32, 14 layers ({layers}) of {folder.resolve()}"
    assert lines["decoder"].startswith("schoolhouse's own")
    assert "LoRA adapter" not in doctor(capsys, folder)[1]


def test_a_tokenizer_that_is_too_large_has_exit_status_1(folder: Path, save_adapter, capsys) -> None:
    status, lines = doctor(capsys, save_adapter("olmo2", vocab_size=64))
    assert status == 1
    assert "use the tokenizer of this model" in lines["CANNOT BE USED"]


def test_a_model_that_does_not_fit_is_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe, "machine_memory", lambda: (1_000, 1_000))
    monkeypatch.setattr(describe, "load_model", pytest.fail)
    described = describe_model(folder)
    assert described.problems[0].startswith("loading the model takes 0.00 GB of memory, and 0.00 GB are free")
    assert "CANNOT BE USED" in render(described)


def test_a_name_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SchoolError, match="`school pull school/tiny`"):
        describe_model("school/tiny")
    assert main(["doctor", "school/tiny"]) == 2
