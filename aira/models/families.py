"""Families of architectures: what is special of each, in one record.

Whether rows of packed trees give what separate passes give is checked: see `aira.models.probe`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES


@dataclass(frozen=True)
class Family:
    """Models of one `model_type`; what holds for most of them is the default.

    Attributes:
        architecture: `causal` or `encoder`.
        attention: the only implementation that Transformers has for it; None where all are there.
        first_position: of a configuration, the number that its positions begin with.
        verified: tests hold it to separate passes, so it need not be tried; see `aira.models.probe`.
        other_names: keys of its configuration that other programs know by another name: theirs to ours.
    """

    architecture: str
    attention: str | None = None
    first_position: Callable[[PretrainedConfig], int] = lambda config: 0
    verified: bool = False
    other_names: tuple[tuple[str, str], ...] = ()


def _after_padding(config: PretrainedConfig) -> int:
    return int(config.pad_token_id) + 1


FAMILIES = {
    "gpt2": Family("causal", verified=True, other_names=(("n_ctx", "n_positions"),)),  # n_ctx is llama.cpp's
    "opt": Family("causal", verified=True),  # its offset of 2 is in its table of positions, and not in their number
    "llama": Family("causal", verified=True),
    # no positions but ALiBi's biases; see `aira.models.attention.alibi`
    "bloom": Family("causal", attention="eager", verified=True),
    "bert": Family("encoder", verified=True),
    **dict.fromkeys(
        ("roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text", "roberta-prelayernorm", "xlm-roberta-xl"),
        Family("encoder", first_position=_after_padding, verified=True),
    ),
}
"""By `model_type`, those of which something is special, and those that tests hold to separate passes."""


def family_of(config: PretrainedConfig) -> Family:
    """The family of a configuration; of a `model_type` without a record, by what Transformers has of it."""
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    written = " ".join(config.architectures or ())
    causal = "CausalLM" in written or "LMHead" in written or config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return Family("causal" if causal else "encoder")


def score_label(config: PretrainedConfig) -> str | None:
    """What a high score of a scorer stands for, by its `id2label`; None for a language model."""
    scorer = any("SequenceClassification" in name for name in config.architectures or ())
    return config.id2label[0] if scorer else None


UNLIMITED = 10**9
"""The context of a model that has no positions of its own."""


def context_length(config: PretrainedConfig) -> int:
    """The longest sequence that a model of this configuration can read, in tokens."""
    positions = int(getattr(config, "max_position_embeddings", None) or UNLIMITED)
    return positions - family_of(config).first_position(config)
