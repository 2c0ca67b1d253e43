"""Families of architectures: what is special of each, in one record.

Tests hold packed rows (causal) or padded branches (encoder) of each to separate forward passes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PretrainedConfig


@dataclass(frozen=True)
class Family:
    """Models of one `model_type`.

    Attributes:
        architecture: `causal` or `encoder`.
        attention: the only implementation that Transformers has for it; None where all are there.
        first_position: of a configuration, the number that its positions begin with.
        transposed: linear layers keep their weights as [in, out] (`Conv1D`), which LoRA has to know.
        other_names: keys of its configuration that other programs know by another name: theirs to ours.
    """

    architecture: str
    attention: str | None = None
    first_position: Callable[[PretrainedConfig], int] = lambda config: 0
    transposed: bool = False
    other_names: tuple[tuple[str, str], ...] = ()


FAMILIES = {
    "gpt2": Family("causal", transposed=True, other_names=(("n_ctx", "n_positions"),)),  # n_ctx is llama.cpp's
    "opt": Family("causal"),  # its offset of 2 is in its table of positions, and not in their number
    "llama": Family("causal"),
    "bloom": Family("causal", attention="eager"),  # no positions but ALiBi's biases; see `aira.models.attention.alibi`
    "bert": Family("encoder"),
    "roberta": Family("encoder", first_position=lambda config: int(config.pad_token_id) + 1),
}
"""By `model_type`."""


def verified(architecture: str | None) -> list[str]:
    """The families of an architecture; of all where it is None."""
    return [name for name, family in FAMILIES.items() if architecture in (family.architecture, None)]


def score_label(config: PretrainedConfig) -> str | None:
    """What a high score of a scorer stands for, by its `id2label`; None for a language model."""
    scorer = any("SequenceClassification" in name for name in config.architectures or ())
    return config.id2label[0] if scorer else None


UNLIMITED = 10**9
"""The context of a model that has no positions of its own."""


def context_length(config: PretrainedConfig) -> int:
    """The longest sequence that a model of this configuration can read, in tokens."""
    positions = int(getattr(config, "max_position_embeddings", None) or UNLIMITED)
    return positions - FAMILIES[config.model_type].first_position(config)
