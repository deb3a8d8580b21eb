"""Errors in a model folder name the file and what is wrong; good folders load as they were saved."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from schoolhouse.model.checkpoint import load_decoder, read_json, save_decoder
from schoolhouse.policy.policy import Policy
from schoolhouse.types import SchoolError


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


def test_an_unsupported_config_key_is_named_with_its_file(folder):
    rewrite_config(folder, final_logit_softcapping=30.0)
    assert str(folder / "config.json") in load_error(folder, "final_logit_softcapping")


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


# --- saving


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
