"""Loading a backbone: from the hub, a folder, a GGUF file in a package, or fresh from an architecture."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from aira.data.trees import Row
from aira.errors import AiraError
from aira.files import locate
from aira.models.attention import dense_mask
from aira.models.template import apply_template

VERIFIED = {"causal": ("gpt2", "opt", "llama"), "encoder": ("bert", "roberta")}
"""Architectures whose packed rows (causal) or padded branches (encoder) tests hold to separate forward passes."""


def load_tokenizer(
    path: str,
    *,
    role: str = "causal",
    template: str = "aira",
    prompt_bos: bool = True,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Load a tokenizer and, for a causal model, give it the chat template that it is to train with.

    Args:
        path: hub id, folder in the hub's format, or `pkg://package/file.gguf`.
        template: see `aira.models.template.apply_template`.

    Returns:
        The tokenizer, and the ids of the tokens that were added to it.

    Raises:
        AiraError: there is no such path, the hub cannot be reached, or the tokenizer has no chat template.
    """
    source, arguments = _source(path, revision, trust_remote_code)
    with _explained(path):
        tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
    return tokenizer, apply_template(tokenizer, template, prompt_bos) if role == "causal" else []


def load_config(
    path: str,
    vocab_size: int,
    *,
    role: str = "causal",
    config: dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PretrainedConfig, bool]:
    """Load a model's configuration, before its weights.

    Args:
        vocab_size: of a fresh model.
        config: `model_type` and further arguments of the Transformers configuration, for a folder that holds a
            tokenizer and no model.

    Returns:
        The configuration, and whether the model starts from random weights.

    Raises:
        AiraError: there is no such model, or its architecture is not verified.
    """
    source, arguments = _source(path, revision, trust_remote_code)
    fresh = bool(config) and Path(source).is_dir() and not (Path(source) / "config.json").exists()
    with _explained(path):
        if fresh:
            settings = AutoConfig.for_model(**{**(config or {}), "vocab_size": vocab_size})
        else:
            settings = AutoConfig.from_pretrained(source, **arguments)
    if settings.model_type not in VERIFIED[role]:
        raise AiraError(
            f"{path} is a {settings.model_type} model. Verified {role} architectures are {', '.join(VERIFIED[role])}; "
            "another might give wrong numbers silently, so it is refused."
        )
    return settings, fresh


def load_model(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    added: list[int],
    *,
    role: str = "causal",
    config: dict[str, Any] | None = None,
    attn_implementation: str = "trees",
    dropout: float = 0.0,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    lora: dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Load a model in float32, ready to be trained on packed rows (causal) or padded branches (encoder).

    Args:
        path: hub id, folder in the hub's format, or `pkg://package/file.gguf`.
        tokenizer, added: from `load_tokenizer`.
        config: see `load_config`.
        dropout: probability of every dropout layer.
        lora: `r` (0: none), `alpha`, `dropout`, `target_modules`.

    Returns:
        The model; a `peft.PeftModel` with LoRA.

    Raises:
        AiraError: the hub cannot be reached, the path is no model, or its architecture is not verified.
    """
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    settings, fresh = load_config(path, len(tokenizer), role=role, config=config, **where)
    _set_dropout(settings, dropout)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    auto = AutoModelForCausalLM if role == "causal" else AutoModel
    source, arguments = _source(path, **where)
    dtype_and_attention = {"attn_implementation": attn_implementation, "dtype": torch.float32}
    with _explained(path):
        if fresh:
            settings.update(special)
            model = auto.from_config(settings, **dtype_and_attention)
        else:
            model = auto.from_pretrained(source, config=settings, **dtype_and_attention, **arguments)
    _forget_quantization(model)
    if not fresh:
        _add_embeddings(model, added, len(tokenizer))
    model.config.update(special)  # only now: the old embeddings may have no row for a new pad token
    if role == "causal":
        model.generation_config = GenerationConfig(**special)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora and lora["r"]:
        model = _add_lora(model, lora, added)
    if compile:
        unwrap(model).base_model.compile(dynamic=True)
    return model.train()  # Transformers loads in evaluation mode, where dropout and checkpointing are off


def _source(path: str, revision: str | None, trust_remote_code: bool) -> tuple[str, dict[str, Any]]:
    """The first argument of `from_pretrained`, and the others that say where things are."""
    located = locate(path)
    arguments: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if revision is None:
        del arguments["revision"]
    if located.endswith(".gguf"):
        file = Path(located)
        if not file.is_file():
            raise AiraError(f"model.path={path}: there is no such file.")
        return str(file.parent), {**arguments, "gguf_file": file.name}
    if located.startswith((".", "/", "~")) or located.count("/") > 1:
        located = str(Path(located).expanduser())
        if not Path(located).is_dir():
            raise AiraError(f"model.path={path}: there is no such folder.")
    return located, arguments


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what Transformers says about an unreachable or wrong model into one message with ways on."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise AiraError(
            f"The model {path} could not be loaded: {reason}\n"
            "If the hub cannot be reached: model.path=<folder> takes a local copy, model=smollm2-135m comes from "
            "PyPI, and model=gpt2-tiny, opt-tiny, llama-tiny and bert-tiny need no download."
        ) from error


def _set_dropout(config: PretrainedConfig, probability: float) -> None:
    for name, value in config.to_dict().items():
        if name.endswith(("dropout", "pdrop", "dropout_prob")) and (value is None or isinstance(value, (int, float))):
            setattr(config, name, probability)


def _forget_quantization(model: PreTrainedModel) -> None:
    """GGUF weights are float32 by now; without this Transformers refuses to save them."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
        model.hf_quantizer = None


@torch.no_grad()
def _add_embeddings(model: PreTrainedModel, added: list[int], vocabulary: int) -> None:
    """Give added tokens the mean of the old embeddings, without noise, so that two loads give one model.

    Embeddings never shrink: where the matrix already has room, the rows of the added tokens are set in place.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if vocabulary > rows:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None and added:
            layer.weight[added] = layer.weight[: min(vocabulary - len(added), rows)].mean(dim=0)


def _add_lora(model: PreTrainedModel, lora: dict[str, Any], added: list[int]) -> nn.Module:
    """Adapters on linear layers; the rows of added tokens are trained beside them."""
    from peft import LoraConfig, get_peft_model

    embeddings = {id(model.get_input_embeddings())}
    if not model.config.tie_word_embeddings and model.get_output_embeddings() is not None:
        embeddings.add(id(model.get_output_embeddings()))
    names = [name for name, module in model.named_modules() if id(module) in embeddings]
    settings = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=lora["target_modules"],
        trainable_token_indices=dict.fromkeys(names, added) if added else None,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    return get_peft_model(model, settings)


def unwrap(model: Any) -> PreTrainedModel:
    """The Transformers model inside a `peft.PeftModel`, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def context_length(config: PretrainedConfig) -> int:
    """The longest sequence that a model of this configuration can read, in tokens."""
    return int(getattr(config, "max_position_embeddings", None) or 10**9)


def hidden_states(model: nn.Module, row: Row) -> Tensor:
    """Run the backbone, without its head, over a row.

    Returns:
        [R * T, hidden size], in the order that `Row.source` and `Row.end` count in.
    """
    backbone = unwrap(model).base_model
    arguments: dict[str, Any] = {"attention_mask": row.attention_mask}
    if row.spans is not None:
        arguments = {"position_ids": row.position_ids, "use_cache": False}
        if backbone.config._attn_implementation == "trees":
            # Transformers passes a 4-D mask on untouched: an empty one keeps it from building one for the row
            arguments |= {"trees": row.spans, "attention_mask": row.input_ids.new_empty((1, 1, 0, 0))}
        else:
            arguments["attention_mask"] = dense_mask(row.spans, row.input_ids.device)
    elif row.token_type_ids is not None:
        arguments["token_type_ids"] = row.token_type_ids
    return backbone(input_ids=row.input_ids, **arguments).last_hidden_state.flatten(0, 1)
