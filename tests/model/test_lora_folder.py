"""Adapter folders in the format of peft: what is written is read again, and nothing else is taken for it."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from schoolhouse.algorithms.losses import negative_log_likelihood
from schoolhouse.algorithms.packing import pack, token_mean
from schoolhouse.algorithms.settings import Lora, Optimizer
from schoolhouse.cli.main import main
from schoolhouse.data.chat import Conversation
from schoolhouse.model.kv_cache import PackedAttention
from schoolhouse.model.lora import adapter_tensors, lora_layers
from schoolhouse.model.lora_folder import load_conversation, load_model, read_adapter_tensors, save_merged
from schoolhouse.policy.policy import Policy
from schoolhouse.types import Key, Problem, Rollout, SchoolError

TOKENS = torch.tensor([5, 9, 13, 2, 60, 44, 3, 21, 8])


def logits(decoder: Any) -> Tensor:
    packed = PackedAttention([len(TOKENS)])
    with torch.no_grad():
        return decoder.project(decoder(TOKENS, packed.positions, packed))


@pytest.fixture
def base(conversation: Conversation, tiny_decoder: Callable[..., Any], tmp_path: Path) -> Path:
    """The folder of a base model."""
    decoder = tiny_decoder(vocab_size=conversation.tokenizer.vocab_size)
    Policy(decoder, conversation, "float32", device="cpu").save(tmp_path / "base")
    return tmp_path / "base"


def save_adapter(base: Path, folder: Path, **keys: Any) -> Path:
    """Write an adapter with matrices B that are not zero."""
    settings: dict[str, Any] = {"rank": 4, **keys}
    policy = Policy.load(base, "float32", lora=Lora(**settings), seed=3)
    for i, (_, layer) in enumerate(lora_layers(policy.decoder)):
        layer.lora_B.data.normal_(0.0, 0.05, generator=torch.Generator().manual_seed(i))
    policy.save(folder)
    return folder


@pytest.fixture
def adapter(base: Path) -> Path:
    return save_adapter(base, base.parent / "adapter")


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load_error(folder: Path, lora: Lora | None = None) -> str:
    with pytest.raises(SchoolError) as error:
        load_model(folder, lora)
    return str(error.value)


def test_an_adapter_comes_back(base: Path, adapter: Path):
    saved, loaded = load_file(adapter / "adapter_model.safetensors"), load_model(adapter)
    tensors = adapter_tensors(loaded)
    assert len(tensors) == len(saved) == 28
    name = "model.layers.0.self_attn.q_proj.lora_A"
    assert torch.equal(tensors[name], saved[f"base_model.model.{name}.weight"])
    assert not torch.equal(logits(loaded), logits(load_model(base)))
    assert not (adapter / "model.safetensors").exists()
    assert not (adapter / "config.json").exists()
    again = Policy.load(adapter, "float32")
    again.save(adapter.parent / "again")
    for file in ("adapter_model.safetensors", "adapter_config.json", "base_model.json"):
        assert (adapter.parent / "again" / file).read_bytes() == (adapter / file).read_bytes()


def test_the_config_is_that_of_peft(base: Path, adapter: Path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.resolve())
    assert (config["peft_type"], config["task_type"], config["r"], config["lora_alpha"]) == ("LORA", "CAUSAL_LM", 4, 32)
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_a_checkpoint_holds_the_adapter_alone(base: Path, adapter: Path):
    assert (adapter / "adapter_model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size / 2


# --- an adapter is complete, and on its own base model, or it is refused


@pytest.mark.fault("adapter not delivered")
def test_an_adapter_without_weights_is_refused(adapter: Path):
    (adapter / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing, so the adapter has no weights" in load_error(adapter)


@pytest.mark.fault("adapter not delivered")
def test_a_missing_matrix_is_named(adapter: Path):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(tensors, path)
    assert "1 of its 28 matrices are missing, such as `model.layers.1.mlp.up_proj.lora_B`" in load_error(adapter)


@pytest.mark.fault("adapter not delivered")
def test_a_tensor_without_a_layer_is_named(adapter: Path):
    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}, path)
    assert "1 of its tensors have no layer in the base model, such as `lm_head.lora_A`" in load_error(adapter)


@pytest.mark.fault("adapter of another base")
def test_an_adapter_of_another_base_is_refused(base: Path, adapter: Path):
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, base / "model.safetensors")
    assert f"the adapter {adapter} belongs to another base model than {base}" in load_error(adapter)


@pytest.mark.fault("merged twice")
def test_an_adapter_does_not_load_on_its_merged_model(adapter: Path, tmp_path: Path):
    save_merged(adapter, tmp_path / "merged")
    rewrite(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "merged"))
    assert "belongs to another base model" in load_error(adapter)
    with pytest.raises(SchoolError, match="is a whole model, not an adapter; an adapter can be merged only once"):
        save_merged(tmp_path / "merged", tmp_path / "twice")


@pytest.mark.fault("adapter rank mismatch")
def test_a_rank_that_the_tensors_do_not_have_is_refused(adapter: Path):
    rewrite(adapter / "adapter_config.json", r=8)
    assert "lora_A` has the shape [4, 32] in the file, but the shape should be [8, 32] for this" in load_error(adapter)


def test_the_way_the_base_is_stored_does_not_matter(base: Path, adapter: Path):
    before = logits(load_model(adapter))
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    assert torch.equal(logits(load_model(adapter)), before)


def test_base_and_adapter_can_be_moved_together(adapter: Path, tmp_path: Path):
    (tmp_path / "new").mkdir()
    for name in ("base", "adapter"):
        shutil.move(tmp_path / name, tmp_path / "new" / name)
    decoder = load_model(tmp_path / "new" / "adapter")
    assert decoder.lora is not None
    assert decoder.lora.base == str((tmp_path / "new" / "base").resolve())


def test_a_base_that_is_not_here_is_named(base: Path, adapter: Path):
    shutil.rmtree(base)
    message = load_error(adapter)
    assert f"the adapter {adapter} changes the base model {base.resolve()}, which is not on this machine" in message
    rewrite(adapter / "adapter_config.json", base_model_name_or_path="school/base")
    assert "fetch it with `school pull school/base`" in load_error(adapter)
    rewrite(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert "does not name the base model" in load_error(adapter)


def test_an_adapter_on_an_adapter_is_refused(adapter: Path, tmp_path: Path):
    shutil.copytree(adapter, tmp_path / "second")
    rewrite(tmp_path / "second" / "adapter_config.json", base_model_name_or_path=str(adapter))
    assert "is another adapter" in load_error(tmp_path / "second")


def test_a_folder_with_a_model_and_an_adapter_is_refused(base: Path, adapter: Path):
    shutil.copy(base / "model.safetensors", adapter)
    assert "holds the weights of a whole model (model.safetensors) and an adapter" in load_error(adapter)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "LOHA"),
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("layers_to_transform", [7]),
        ("layers_to_transform", "first"),
        ("exclude_modules", r".*_proj"),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("trainable_token_indices", [1]),
        ("lora_bias", True),
        ("key_of_next_year", 1),
        ("r", 0),
        ("lora_alpha", "much"),
        ("target_modules", []),
        ("target_modules", ["nothing"]),
        ("target_modules", ["q_proj", "lm_head"]),
    ],
)
def test_what_we_do_not_compute_is_refused_by_its_key(adapter: Path, key: str, value: Any):
    rewrite(adapter / "adapter_config.json", **{key: value})
    message = load_error(adapter)
    assert key in message
    assert "adapter_config.json" in message


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(q|k|v|o|up|gate|down)_proj"])
def test_target_modules_may_be_a_pattern(adapter: Path, targets: str):
    before = logits(load_model(adapter))
    rewrite(adapter / "adapter_config.json", target_modules=targets)
    assert torch.equal(logits(load_model(adapter)), before)


def test_rslora_is_another_scale(adapter: Path):
    rewrite(adapter / "adapter_config.json", use_rslora=True)
    decoder = load_model(adapter)
    assert {layer.scale for _, layer in lora_layers(decoder)} == {16.0}


def test_pickled_tensors_are_read(adapter: Path):
    before = logits(load_model(adapter))
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert torch.equal(logits(load_model(adapter)), before)


def test_the_tokenizer_may_stay_with_the_base(adapter: Path):
    own = load_conversation(adapter)
    for path in adapter.iterdir():
        if path.name not in ("adapter_config.json", "adapter_model.safetensors", "base_model.json"):
            path.unlink()
    theirs = load_conversation(adapter)
    assert theirs.tokenizer.vocab == own.tokenizer.vocab
    assert theirs.stop_ids == own.stop_ids


# --- training goes on, or says why not


def test_training_from_an_adapter_keeps_it_and_its_base(base: Path, adapter: Path):
    decoder = load_model(adapter, Lora(rank=4), seed=9)
    saved = read_adapter_tensors(adapter)
    assert saved is not None
    assert all(torch.equal(tensor, saved[name]) for name, tensor in adapter_tensors(decoder).items())
    assert decoder.lora is not None
    assert decoder.lora.base == str(base.resolve())
    assert read_adapter_tensors(base) is None


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (Lora(), "lora.rank 0 asks to train a whole model: give --lora.rank 4"),
        (Lora(rank=8), "LoRA adapter with rank 4, but lora.rank is 8: give --lora.rank 4"),
        (Lora(rank=4, alpha=16), "LoRA adapter with alpha 32, but lora.alpha is 16: give --lora.alpha 32"),
        (Lora(rank=4, targets="mlp"), "but lora.targets mlp means other layers"),
    ],
)
@pytest.mark.fault("adapter and whole model", "adapter rank mismatch")
def test_settings_of_another_adapter_are_refused(adapter: Path, lora: Lora, message: str):
    assert message in load_error(adapter, lora)
    assert f"`school export {adapter} --to DIR`" in load_error(adapter, lora)


def test_the_number_type_of_the_base_is_kept(base: Path):
    folder = save_adapter(base, base.parent / "half", base_dtype="bfloat16")
    decoder = load_model(folder)
    assert dict(decoder.named_parameters())["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    save_merged(folder, base.parent / "merged")
    merged, whole = (load_file(base.parent / name / "model.safetensors") for name in ("merged", "base"))
    layer = dict(lora_layers(load_model(folder)))["model.layers.0.mlp.up_proj"]
    expected = whole["model.layers.0.mlp.up_proj.weight"] + layer.scale * layer.lora_B @ layer.lora_A
    assert torch.allclose(merged["model.layers.0.mlp.up_proj.weight"], expected, atol=1e-7)
    assert torch.equal(merged["model.embed_tokens.weight"], whole["model.embed_tokens.weight"])


# --- peft reads our adapters, and we read those of peft


def peft_logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS[None]).logits[0]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_our_adapter_opens_in_peft_with_the_same_logits(base: Path, adapter: Path):
    peft, transformers = (pytest.importorskip(name) for name in ("peft", "transformers"))
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    assert (peft_logits(model) - logits(load_model(adapter))).abs().max() < 1e-5 * logits(
        load_model(adapter)
    ).abs().max()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 16},
        {"target_modules": "all-linear", "use_rslora": True, "lora_dropout": 0.1},
        {"target_modules": r".*\.mlp\.\w+_proj", "r": 2},
    ],
)
def test_an_adapter_of_peft_opens_here_with_the_same_logits(base: Path, tmp_path: Path, keys: dict[str, Any]):
    peft, transformers = (pytest.importorskip(name) for name in ("peft", "transformers"))
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 8, "init_lora_weights": False, **keys})
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "peft")
    ours = logits(load_model(tmp_path / "peft"))
    assert (peft_logits(model) - ours).abs().max() < 1e-5 * ours.abs().max()
    assert (ours - logits(load_model(base))).abs().max() > 0.01


# --- adapters of peft are trained further, on the layers that they have


def peft_adapter(base: Path, folder: Path, **keys: Any) -> Path:
    """Write an adapter that peft has made."""
    peft, transformers = (pytest.importorskip(name) for name in ("peft", "transformers"))
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 2, "init_lora_weights": False, **keys})
    peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


SOME_LAYERS = [
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": ["up_proj", "k_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    {"target_modules": ["q_proj", "v_proj", "o_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    {"target_modules": r".*layers\.1.*\.(gate|down)_proj"},
]
SELECTION = ("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("keys", SOME_LAYERS)
def test_training_goes_on_with_the_layers_that_peft_chose(base: Path, tmp_path: Path, keys: dict[str, Any]):
    peft, transformers = (pytest.importorskip(name) for name in ("peft", "transformers"))
    folder = peft_adapter(base, tmp_path / "peft", **keys, lora_alpha=6)
    before = read_adapter_tensors(folder)
    assert before is not None
    policy = Policy.load(folder, "float32", Optimizer(warmup_steps=0), lora=Lora(rank=2, alpha=6), device="cpu")
    assert (logits(policy.decoder) - logits(load_model(folder))).abs().max() == 0
    ids = tuple(TOKENS.tolist())
    row = Rollout(Problem("p", (), ""), Key(0, "t"), ids, (False, *(True,) * (len(ids) - 1)), (math.nan,) * len(ids))
    policy.update(pack([row], token_mean([row]), 64), negative_log_likelihood(), 0.01)
    policy.save(tmp_path / "trained")
    after = read_adapter_tensors(tmp_path / "trained")
    assert after is not None
    assert after.keys() == before.keys()
    assert all((after[name] - before[name]).abs().max() > 1e-4 for name in before)
    ours, theirs = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("trained", "peft"))
    assert [ours.get(key) for key in SELECTION] == [theirs[key] for key in SELECTION]
    opened = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "trained"
    )
    assert (peft_logits(opened) - logits(policy.decoder)).abs().max() < 1e-5 * logits(policy.decoder).abs().max()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_command_trains_an_adapter_of_peft_with_its_rank_alone(base: Path, tmp_path: Path, capsys):
    folder = peft_adapter(base, tmp_path / "peft", target_modules=["q_proj", "v_proj"], lora_alpha=6)
    sizes = ["--task", "school:addition?digits=1", "--steps", "2", "--batch_size", "2", "--save_every", "1"]
    main(["train", "sft", "--model", str(folder), "--lora.rank", "2", *sizes, "--dir", str(tmp_path / "run")])
    assert "chosen for the size of this model: lora.alpha 6" in capsys.readouterr().err
    config = json.loads((tmp_path / "run/checkpoints/000002/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], sorted(config["target_modules"])) == (2, 6, ["q_proj", "v_proj"])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_an_adapter_of_a_layer_outside_the_blocks_is_refused(base: Path, tmp_path: Path, layer: str):
    folder = peft_adapter(base, tmp_path / "peft", target_modules=["q_proj", layer])
    message = load_error(folder, Lora(rank=2, alpha=8))
    assert f"{layer}`, which is not a linear layer of a block of the base model" in message
    assert "merge the adapter into its base model with the package peft" in message
