"""Low-rank adapters by PEFT (Hu et al., 2022; DoRA, Liu et al., 2024; rank-stabilized, Kalajdzievski, 2023)."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from aira.config.schema import Lora


def add_lora(model: PreTrainedModel, lora: Lora, added: list[int], head: str) -> nn.Module:
    """Adapters on linear layers; the rows of added tokens and a new score head are trained beside them."""
    from peft import LoraConfig, get_peft_model

    embeddings = {id(model.get_input_embeddings())}
    if not model.config.tie_word_embeddings and model.get_output_embeddings() is not None:
        embeddings.add(id(model.get_output_embeddings()))
    names = [name for name, module in model.named_modules() if id(module) in embeddings]
    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        target_modules=lora.target_modules,
        trainable_token_indices=dict.fromkeys(names, added) if added else None,
        fan_in_fan_out=_has_conv1d(model),
        task_type="SEQ_CLS" if head == "score" else None,
    )
    adapted: nn.Module = get_peft_model(model, settings)
    return adapted


def _has_conv1d(model: nn.Module) -> bool:
    """Whether the model has GPT-2's linear layers, whose weights are transposed."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def merge_lora(model: Any) -> PreTrainedModel:
    """The model with its adapters in its weights for good; of a 4-bit base, in the weights that it computes with.

    Args:
        model: from `add_lora`.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    if getattr(model.get_base_model(), "is_loaded_in_4bit", False):
        from aira.models.quantized import dequantize

        settings, state = model.peft_config["default"], get_peft_model_state_dict(model, save_embedding_layers=False)
        base = model.unload()
        dequantize(base)
        settings.fan_in_fan_out = _has_conv1d(base)
        model = get_peft_model(base, settings)
        set_peft_model_state_dict(model, state)
    merged: PreTrainedModel = model.merge_and_unload()
    return merged
