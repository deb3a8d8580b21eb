"""An exported model loads elsewhere, gives the same completions, and has a card that describes its training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from schoolhouse.algorithms.settings import Lora
from schoolhouse.cli.main import main
from schoolhouse.export.model_card import evaluation_lines, render_model_card
from schoolhouse.model.folder import read_weights
from schoolhouse.model.lora import lora_layers
from schoolhouse.policy.policy import Policy
from schoolhouse.runs.atomic_io import resolve_model
from schoolhouse.runs.manifest import read_config
from schoolhouse.types import Key, Message, Problem

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def run(sft_model: Callable[[str], Path]) -> Path:
    """The run folder of a tiny model that was pretrained and fine-tuned."""
    return sft_model("school:chain?steps=2&styles=full=100").parents[1]


def greedy(policy: Policy) -> tuple[int, ...]:
    prompt = policy.conversation.prompt_rollout(Problem("p", (Message("user", "Start at 7. Add 5."),), ""), Key(0, "t"))
    return policy.extend([prompt], 24, temperature=0.0)[0].tokens


def test_a_folder_opens_in_transformers_and_here(run: Path, tmp_path: Path):
    transformers: Any = pytest.importorskip("transformers")
    assert main(["export", str(run), "--to", str(tmp_path / "out")]) == 0
    tokens = greedy(Policy.load(tmp_path / "out", "float32"))
    assert tokens == greedy(Policy.load(run, "float32"))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "Start at 7. Add 5."}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        generated = reference.generate(**ids, max_new_tokens=24, do_sample=False)
    assert tuple(generated[0].tolist())[: len(tokens)] == tokens


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_pickled_weights_are_written_as_safetensors(run: Path, tmp_path: Path, dtype: str | None):
    source = tmp_path / "source"
    shutil.copytree(resolve_model(run), source)
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}, source / "pytorch_model.bin")
    options = ["--dtype", dtype] if dtype else []
    assert main(["export", str(source), "--to", str(tmp_path / "out"), *options]) == 0
    exported = read_weights(tmp_path / "out")
    to = getattr(torch, dtype) if dtype else torch.float32
    assert all(torch.equal(exported[name], weight.to(to)) for name, weight in weights.items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_written_in_the_number_type_that_is_asked_for(run: Path, tmp_path: Path, dtype: str):
    transformers: Any = pytest.importorskip("transformers")
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--dtype", dtype]) == 0
    exported, original = load_file(tmp_path / "out" / "model.safetensors"), read_weights(resolve_model(run))
    assert all(torch.equal(exported[name], weight.to(getattr(torch, dtype))) for name, weight in original.items())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == getattr(torch, dtype)


def test_a_number_type_is_refused_for_llama_cpp(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--format", "gguf", "--dtype", "float16"]) == 2
    assert "--dtype float16 is only for --format hf" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_card_describes_the_training(run: Path, tmp_path: Path):
    main(["export", str(run), "--to", str(tmp_path / "out"), "--licence", "mit"])
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith('---\nlicense: "mit"\n')
    assert text.index("1. **pretrain** (base)") < text.index("2. **sft** (sft)")
    assert '"learning_rate": 0.01' in text
    assert str(tmp_path.parent) not in text  # no path of this machine


def test_a_card_shows_no_path_of_the_machine(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "copy")
    config = read_config(copy / "config.yaml")
    config |= {"task": "jsonl:/home/me/private/data.jsonl?holdout=none", "text": ["/home/me/book.txt", "and/or"]}
    (copy / "config.yaml").write_text(json.dumps(config))
    text = render_model_card(copy, "hf", "mit")
    assert "/home/me" not in text
    assert "jsonl:data.jsonl?holdout=none" in text
    assert "and/or" in text


def test_the_card_of_a_checkpoint_shows_the_evaluation_before_it(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "copy")
    newest = sorted((copy / "checkpoints").iterdir())[-1]
    rows = [{"step": int(newest.name) + more, "eval": {"overall": {"pass_at_1": 0.25 + more}}} for more in (0, 1)]
    with (copy / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows) + '{"torn": "eval')
    assert "| pass_at_1 | 0.25 |" in evaluation_lines(newest)
    assert "| pass_at_1 | 1.25 |" in evaluation_lines(copy)


def tensors(path: Path) -> dict[str, np.ndarray]:
    def numbers(tensor: Any) -> np.ndarray:
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))

    return {tensor.name: numbers(tensor) for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("form, tolerance", [("gguf", 0.0), ("int8", 0.02)])
def test_a_gguf_file_has_the_same_numbers(run: Path, tmp_path: Path, form: str, tolerance: float):
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--format", form]) == 0
    (path,) = (tmp_path / "out").glob("*.gguf")
    found = tensors(path)
    weights = read_weights(resolve_model(run))
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
        "blk.0.attn_q_norm.weight": "model.layers.0.self_attn.q_norm.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    for gguf_name, name in names.items():
        difference = np.abs(found[gguf_name] - weights[name].numpy()).max()
        assert difference <= tolerance * np.abs(weights[name].numpy()).max()
    assert len(found) == len(weights)


@pytest.mark.parametrize("form", ["gguf", "int8"])
def test_llama_cpp_gives_the_same_completion(run: Path, tmp_path: Path, form: str):
    llama: Any = pytest.importorskip("xllamacpp", reason="no llama.cpp: pip install xllamacpp")
    main(["export", str(run), "--to", str(tmp_path / "out"), "--format", form])
    (file,) = (tmp_path / "out").glob("*.gguf")
    params = llama.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = str(file), 128, 1, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = llama.Server(params)
    policy = Policy.load(run, "float32")
    question = Message("user", "Start at 7. Add 5.")
    prompt = policy.conversation.prompt((question,))
    request = {"max_tokens": 24, "temperature": 0.0, "logprobs": True, "top_logprobs": 1}
    found = server.handle_chat_completions({"messages": [question._asdict()], **request})
    sampled = [entry["id"] for entry in found["choices"][0]["logprobs"]["content"]]
    assert found["usage"]["prompt_tokens"] == len(prompt)
    if form == "gguf":  # the template, the tokenizer and every number are the same
        assert prompt + tuple(sampled) == greedy(policy)
    assert len(sampled) == 24 or sampled[-1] in policy.conversation.stop_ids


def test_a_gguf_file_has_the_tokenizer(run: Path, tmp_path: Path):
    main(["export", str(run), "--to", str(tmp_path / "out"), "--format", "gguf"])
    (path,) = (tmp_path / "out").glob("*.gguf")
    reader, tokenizer = gguf.GGUFReader(path), Policy.load(run).conversation.tokenizer
    words = reader.get_field("tokenizer.ggml.tokens").contents()
    assert words[tokenizer.eos_id] == "<|endoftext|>"
    assert words[tokenizer.special_tokens["<think>"]] == "<think>"
    assert len(words) == tokenizer.vocab_size
    assert "add_generation_prompt" in reader.get_field("tokenizer.chat_template").contents()


def test_existing_files_are_not_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "note").write_text("mine")
    assert main(["export", str(run), "--to", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nowhere"), "--to", str(tmp_path / "out")]) == 2
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.fault("merged twice")
def test_an_adapter_is_merged_into_its_untouched_base(run: Path, tmp_path: Path):
    policy = Policy.load(run, "float32", lora=Lora(rank=4))
    for i, (_, layer) in enumerate(lora_layers(policy.decoder)):
        layer.lora_B.data.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(i))
    policy.save(tmp_path / "adapter")
    assert main(["export", str(tmp_path / "adapter"), "--to", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert greedy(Policy.load(tmp_path / "out", "float32")) == greedy(policy)
    base, merged = (load_file(path / "model.safetensors") for path in (resolve_model(run), tmp_path / "out"))
    for name, layer in lora_layers(policy.decoder):
        expected = base[f"{name}.weight"] + layer.scale * layer.lora_B @ layer.lora_A
        assert torch.allclose(merged[f"{name}.weight"], expected, atol=1e-6)
    assert merged.keys() == base.keys()
    assert main(["export", str(tmp_path / "out"), "--to", str(tmp_path / "again")]) == 0
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in merged.items())
    assert main(["export", str(tmp_path / "adapter"), "--to", str(tmp_path / "gguf"), "--format", "gguf"]) == 0
    reader = gguf.GGUFReader(tmp_path / "gguf" / "adapter.gguf")
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    expected = merged["model.layers.0.mlp.up_proj.weight"].numpy()
    assert np.array_equal(written["blk.0.ffn_up.weight"].reshape(expected.shape), expected)
