"""Errors in a model folder name the file and what is wrong; good folders load as they were saved."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from schoolhouse.model.checkpoint import load_decoder, save_decoder
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.folder import read_json
from schoolhouse.model.hf_adapter import HFAdapter
from schoolhouse.policy.policy import Policy
from schoolhouse.types import Message, SchoolError


@pytest.fixture
def folder(policy, tmp_path):
    """A complete model folder, for a test to damage."""
    policy.save(tmp_path / "model")
    return tmp_path / "model"


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load_error(folder, pattern):
    with pytest.raises(SchoolError, match=pattern) as error:
        Policy.load(folder)
    return str(error.value)


@pytest.mark.fault("checkpoint is no model")
def test_a_complete_folder_loads_as_it_was_saved(folder, policy):
    loaded = Policy.load(folder, precision="float32")
    weights, loaded_weights = (dict(each.decoder.named_parameters()) for each in (policy, loaded))
    assert list(weights) == list(loaded_weights)
    assert all(torch.equal(weights[name], loaded_weights[name]) for name in weights)
    assert loaded.conversation.stop_ids == policy.conversation.stop_ids


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert str(folder / name) in load_error(folder, "is missing")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: text + "}"])
def test_damaged_json_is_named(folder, name, damage):
    (folder / name).write_text(damage((folder / name).read_text()))
    assert str(folder / name) in load_error(folder, "copy (it|the file) again")


def test_a_file_that_is_not_utf8_is_named(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe{}")
    assert str(folder / "config.json") in load_error(folder, "not valid JSON")


def test_json_that_is_not_an_object_is_named(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(SchoolError, match=r"config.json should hold a JSON object, not list"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_named(folder, fraction):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    assert str(path) in load_error(folder, "truncated or damaged")


def test_a_missing_folder_is_not_taken_for_a_hub_name(tmp_path):
    load_error(tmp_path / "organization" / "model", "is not a folder")


def test_a_tokenizer_with_more_ids_than_the_model_is_an_error(policy, tiny_config, tmp_path):
    size = policy.conversation.tokenizer.vocab_size
    smaller = tmp_path / "smaller"
    Policy.create(tiny_config(vocab_size=size), policy.conversation, precision="float32").save(smaller)
    weights = load_file(smaller / "model.safetensors")
    cut = {name: w[: size - 9] if w.shape[0] == size else w for name, w in weights.items()}
    save_file({name: w.contiguous() for name, w in cut.items()}, smaller / "model.safetensors")
    rewrite_config(smaller, vocab_size=size - 9)
    load_error(smaller, f"tokenizer has {size} token ids, but the model has only {size - 9}.*vocab_size")


def test_a_special_token_without_a_row_is_no_reason_to_refuse_a_model(folder, policy):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    entry = {**tokenizer["added_tokens"][0], "id": policy.conversation.tokenizer.vocab_size, "content": "<image>"}
    tokenizer["added_tokens"].append(entry)
    path.write_text(json.dumps(tokenizer))
    loaded = Policy.load(folder, precision="float32")
    assert loaded.conversation.tokenizer.special_tokens["<image>"] == loaded.decoder.config.vocab_size
    assert max(loaded.conversation.prompt((Message("user", "an <image>"),))) < loaded.decoder.config.vocab_size


@pytest.mark.parametrize(
    "changes, pattern",
    [
        ({"hidden_size": 40, "head_dim": 8}, r"is \[.*32.*\] in the file, \[.*40.*\] by config.json"),
        ({"vocab_size": 500}, r"embed_tokens.* in the file"),
        ({"num_hidden_layers": 3}, r"missing \['model.layers.2"),
        ({"num_hidden_layers": 1}, r"unexpected \['model.layers.1"),
        ({"model_type": "llama"}, r"unexpected .*k_norm"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_named(folder, changes, pattern):
    rewrite_config(folder, **changes)
    assert str(folder) in load_error(folder, pattern)


def test_a_key_that_nobody_reads_is_no_reason_to_refuse_a_folder(folder, policy):
    rewrite_config(folder, favourite_colour="green")
    loaded = Policy.load(folder, precision="float32")
    assert isinstance(loaded.decoder, Decoder)
    assert torch.equal(loaded.decoder.model.norm.weight, policy.decoder.model.norm.weight)


def test_a_key_that_changes_the_model_sends_it_to_the_adapter(tiny_decoder, tmp_path):
    save_decoder(tiny_decoder(model_type="llama", qk_norm=False), tmp_path, eos_id=0, pad_id=0)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if name.endswith("down_proj.weight")]:
        for proj in ("gate_proj", "up_proj", "down_proj"):
            other = name.replace("down_proj", proj)
            weights[other.replace("weight", "bias")] = torch.ones(len(weights[other]))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    rewrite_config(tmp_path, mlp_bias=True)
    assert isinstance(load_decoder(tmp_path), HFAdapter)


def test_quantized_weights_are_refused_with_their_method(folder):
    rewrite_config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    assert str(folder / "config.json") in load_error(folder, "quantized with awq.*original model")


def test_an_empty_quantization_config_is_no_quantization(folder):
    rewrite_config(folder, quantization_config=None)
    assert isinstance(load_decoder(folder), Decoder)


def test_buffers_of_old_transformers_are_left_out(folder, policy):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_decoder(folder).state_dict().keys() == policy.decoder.state_dict().keys()


def test_an_older_pytorch_file_holds_the_same_model(folder, policy):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    weights, loaded_weights = policy.decoder.state_dict(), load_decoder(folder).state_dict()
    assert all(torch.equal(weights[name], loaded_weights[name]) for name in weights)


def test_a_damaged_pytorch_file_is_named(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 not a model")
    assert str(folder / "pytorch_model.bin") in load_error(folder, "truncated or damaged")


def test_a_pytorch_file_cannot_run_code(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Trap(str(tmp_path / "trapped"))}, folder / "pytorch_model.bin")
    load_error(folder, "truncated or damaged")
    assert not (tmp_path / "trapped").exists()


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_without_a_head_the_embedding_is_the_head(tiny_decoder, tmp_path):
    save_decoder(tiny_decoder(tie_word_embeddings=True), tmp_path, eos_id=0, pad_id=0)
    rewrite_config(tmp_path, tie_word_embeddings=False)
    decoder = load_decoder(tmp_path)
    assert isinstance(decoder, Decoder)
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight
    assert decoder.config.tie_word_embeddings


# --- saving


def test_the_keys_of_the_original_config_are_kept(folder, tmp_path):
    rewrite_config(folder, eos_token_id=[3, 4], bos_token_id=1, is_llama_config=True, auto_map={"A": "b"})
    save_decoder(load_decoder(folder), tmp_path / "saved", eos_id=3, pad_id=0)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (saved["eos_token_id"], saved["bos_token_id"]) == ([3, 4], 1)
    assert (saved["is_llama_config"], saved["auto_map"]) == (True, {"A": "b"})


def test_a_saved_folder_says_its_rope_to_transformers_4_too(tiny_decoder, tmp_path):
    scaling = {"rope_type": "linear", "factor": 2.0}
    save_decoder(tiny_decoder(rope_theta=5e5, rope_scaling=scaling), tmp_path, eos_id=0, pad_id=0)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["rope_parameters"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    assert (saved["rope_theta"], saved["rope_scaling"]) == (5e5, scaling)


# --- shards


@pytest.fixture
def sharded(folder):
    """The same model in two files and an index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: weights[name] for name in members}, folder / shard, metadata={"format": "pt"})
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return folder


def test_shards_load_as_the_same_model(sharded, policy):
    loaded = Policy.load(sharded, precision="float32")
    weights, loaded_weights = policy.decoder.state_dict(), loaded.decoder.state_dict()
    assert all(torch.equal(weights[name], loaded_weights[name]) for name in weights)


def test_a_missing_shard_is_named(sharded):
    (sharded / "b.safetensors").unlink()
    assert str(sharded / "b.safetensors") in load_error(sharded, "is missing")


def test_a_shard_without_its_weights_is_an_error(sharded):
    shutil.copy(sharded / "a.safetensors", sharded / "b.safetensors")
    load_error(sharded, "missing")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    load_error(sharded, "model.safetensors.index.json")


def test_weights_in_bfloat16_are_read_as_float32(tiny_decoder, tmp_path):
    decoder = tiny_decoder()
    save_decoder(decoder, tmp_path, eos_id=0, pad_id=0)
    bfloat16_weights = {name: weight.bfloat16() for name, weight in load_file(tmp_path / "model.safetensors").items()}
    save_file(bfloat16_weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name, weight in load_decoder(tmp_path).named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, bfloat16_weights[name].float())


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_written_once(tiny_decoder, tmp_path, tied):
    save_decoder(tiny_decoder(tie_word_embeddings=tied), tmp_path, eos_id=0, pad_id=0)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is tied


def test_loading_draws_no_random_weights(folder, policy):
    """Random numbers for the weights of a large model take seconds, and the file replaces all of them."""
    state = torch.random.get_rng_state()
    loaded = load_decoder(folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, weight in policy.decoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
