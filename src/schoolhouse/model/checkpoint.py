"""Load a decoder from a model folder in Hugging Face format, and save a decoder to a folder. Errors name the damaged
file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from schoolhouse.model.config import model_config_to_json, parse_model_config, unknown_keys, unsupported_keys
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.folder import read_json, read_weights, write_config
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.model.hf_adapter import HFAdapter


class _SkipInit(TorchFunctionMode):
    """Inside the `with` block, new modules do not initialise their weights. For a model with 135 million weights,
    random numbers take longer than reading the weights from a file."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)


def load_decoder(folder: Path) -> Decoder | HFAdapter:
    """The decoder of a model folder, in float32. If `Decoder` does not implement the config, the model is loaded with
    `HFAdapter`."""
    path = folder / "config.json"
    config = read_json(path)
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise SchoolError(
            f"{path}: the weights are quantized with {method} (key `quantization_config`); use the original model, or "
            "convert a GGUF file of this model with `school import`"
        )
    try:
        ours = _is_ours(config)
        with _SkipInit():
            decoder = Decoder(parse_model_config(config, str(path))) if ours else None
    except (ValueError, TypeError, RuntimeError, MemoryError, OverflowError, ZeroDivisionError) as error:
        raise SchoolError(f"{path} describes a model that cannot be built: {error}") from error
    if decoder is None:
        from schoolhouse.model.hf_adapter import load_adapter  # transformers takes seconds to import

        return load_adapter(folder)
    decoder.hf_config = config
    return _fill(decoder, read_weights(folder), folder)


def _is_ours(config: dict[str, object]) -> bool:
    """Return whether `Decoder` can compute this model. If the config has unknown keys, the logits of a small model are
    compared with those of transformers."""
    if unsupported_keys(config):
        return False
    if not unknown_keys(config):
        return True
    from schoolhouse.model.parity import decoder_computes

    return decoder_computes(config)


def _fill(decoder: Decoder, weights: dict[str, Tensor], folder: Path) -> Decoder:
    """Copy the weights of a folder into the decoder. Raises SchoolError if names or shapes differ."""
    weights = {name: weight for name, weight in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    if "embed_tokens.weight" in weights:  # saved without the head's prefix
        weights = {name if name.startswith("lm_head.") else f"model.{name}": weight for name, weight in weights.items()}
    if not decoder.config.tie_word_embeddings and "lm_head.weight" not in weights:
        decoder.tie_weights()  # a folder without a head means that the embedding is the head
    if decoder.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    parameters = dict(decoder.named_parameters())
    missing, unexpected = sorted(parameters.keys() - weights.keys()), sorted(weights.keys() - parameters.keys())
    if missing or unexpected:
        raise SchoolError(
            f"{folder}: weights do not fit config.json; missing {missing[:4]}, unexpected {unexpected[:4]}: "
            "copy the folder again"
        )
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            raise SchoolError(
                f"{folder}: `{name}` is {list(weights[name].shape)} in the file, {list(parameter.shape)} by "
                "config.json: copy the folder again"
            )
        parameter.data.copy_(weights[name])
    return decoder


def save_decoder(decoder: Decoder | HFAdapter, folder: Path, eos_id: int | None, pad_id: int | None) -> None:
    """Write config.json and model.safetensors. transformers 4 and transformers 5 can load the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(decoder, Decoder):
        weights = {name: parameter.detach().cpu().contiguous() for name, parameter in decoder.named_parameters()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = {**decoder.hf_config, **model_config_to_json(decoder.config)}
    else:
        config = decoder.save(folder)
    write_config(folder, config, eos_id, pad_id)
