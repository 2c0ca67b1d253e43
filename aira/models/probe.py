"""Whether an architecture reads rows of packed trees as it reads each branch by itself: tried, and not looked up.

A model of the same configuration, but small and with random weights, is run both ways. Where log-probs, gradients,
cached prefixes, adapters or scores differ, its branches are read in sequences of their own, which is right and slower.
"""

import contextlib
import copy
import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from aira.config.schema import Lora
from aira.data.trees import Row, Tree, pack, pad
from aira.environment import versions
from aira.errors import AiraError, reason_of
from aira.files import cache_folder, read_json, write_atomically
from aira.models.attention import Cached
from aira.models.forward import hidden_states, keys_and_values, scores, unwrap
from aira.models.head import lm_head, log_probs
from aira.models.lora import add_lora
from aira.models.weights import without_report

WINDOW = 8
"""Tokens of a sliding window, and of a chunk: less than the trees here have."""

WIDTHS = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "embedding_size"), 64),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "v_head_dim", "head_dim", "linear_key_head_dim"), 16),
    **dict.fromkeys(("linear_value_head_dim", "mamba_d_head", "d_head"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "rotary_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "kv_n_heads"), 2),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window", "attention_chunk_size"), WINDOW),
    **dict.fromkeys(("local_attention", "max_local_attention"), 2 * WINDOW),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "original_max_position_embeddings"), 64),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 128),
    "mamba_d_ssm": 64,
    "pooler_hidden_size": 64,
    "qk_head_dim": 16,
    "conv_dim": 64,
}
"""What sizes of a configuration become, where it has them."""

PERIODIC = ("period", "pattern", "interval", "freq", "idxs", "every")
"""In names of what tells layers apart by their number."""

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
TOKENS = {"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}


class Probe(NamedTuple):
    """What was found of an architecture."""

    packs: bool  # rows of packed trees (causal), or of padded branches (encoder), equal separate passes
    attention: str  # the implementation to use
    why: str  # not
    raised: bool = False  # whether that was an error, which need not be one again: it is not kept


def shrunk(config: PretrainedConfig) -> PretrainedConfig:
    """The same configuration with small widths, and two layers of each kind that it has."""
    there = config.to_dict()
    count = next((there[name] for name in LAYERS if isinstance(there.get(name), int)), 2)
    listed = {name: value for name, value in there.items() if isinstance(value, list) and len(value) == count > 2}
    kinds = [json.dumps([value[i] for value in listed.values()]) for i in range(count)]
    periodic = any(word in name for name in there for word in PERIODIC)
    kept = [i for i, kind in enumerate(kinds) if kinds[:i].count(kind) < 2] if listed else list(range(min(count, 2)))
    if periodic and not listed:
        kept = list(range(min(count, 8)))
    changed: dict[str, Any] = {name: [value[i] for i in kept] for name, value in listed.items()}
    changed |= {name: size for name, size in WIDTHS.items() if isinstance(there.get(name), int)}
    changed |= {name: len(kept) for name in LAYERS if isinstance(there.get(name), int)}
    changed |= {name: token for name, token in TOKENS.items() if name in there}
    heads, groups = there.get("num_attention_heads"), there.get("num_key_value_heads")
    if isinstance(groups, int):
        changed["num_key_value_heads"] = 2 if isinstance(heads, int) and groups < heads else 4
    if isinstance(there.get("max_window_layers"), int):
        changed["max_window_layers"] = 1 if there["max_window_layers"] < count else len(kept)
    if "qk_rope_head_dim" in there and isinstance(there.get("head_dim"), int):
        changed["head_dim"] = WIDTHS["qk_rope_head_dim"]
    for name, value in there.items():
        if name.endswith(("dropout", "pdrop", "dropout_prob")) and isinstance(value, (int, float)):
            changed[name] = 0.0
    rope = there.get("rope_parameters")
    if isinstance(rope, dict):
        nested = {kind: _plain_angles(one) for kind, one in rope.items() if isinstance(one, dict)}
        changed["rope_parameters"] = nested or _plain_angles(rope)
    dropped = ("model_type", "transformers_version", "dtype", "torch_dtype", "architectures", "quantization_config")
    names = {name: value for name, value in {**there, **changed}.items() if name not in dropped and name[0] != "_"}
    small = type(config)(**names)
    small.num_labels = 1
    return small


def _plain_angles(rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary angles without the lists that are as long as the widths are."""
    numbers = {name: value for name, value in rope.items() if not isinstance(value, list | dict)}
    return numbers | ({"rope_type": "default"} if len(numbers) < len(rope) else {})


def probe(config: PretrainedConfig, architecture: str, head: str, attention: str) -> Probe:
    """Try an architecture; the answer is kept on disk, by configuration and versions, unless an error ended the trial.

    Args:
        config: of the model that is to be used.
        architecture: `causal` or `encoder`.
        head: `lm` or `score`.
        attention: the implementation that is asked for.

    Raises:
        AiraError: a model of this configuration gives other scores to padded texts, so that it cannot be used.
    """
    tried = [architecture, head, attention, config.to_json_string(), TREES, versions("torch", "transformers", "peft")]
    key = hashlib.sha256(json.dumps(tried).encode()).hexdigest()[:32]
    file = cache_folder() / "probes" / f"{key}.json"
    kept = read_json(file, list)
    if kept is not None:
        return Probe(*kept)
    with _undisturbed():
        found = (_encoder if architecture == "encoder" else _causal)(config, head, attention)
    if not found.raised:
        with contextlib.suppress(OSError):  # it is tried again then
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(found))
    return found


@contextlib.contextmanager
def _undisturbed() -> Any:
    """Leave random numbers as they are, and Transformers silent."""
    state = random.getstate()
    try:
        with without_report(), torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(state)


def _tokens(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 120, (length,), generator=generator).tolist()


def _tree(prefix: list[int], *branches: list[int]) -> Tree:
    whole = [prefix + branch for branch in branches]
    return Tree(whole, [[True] * len(tokens) for tokens in whole])


TREES = [
    _tree(_tokens(11, 0), _tokens(6, 1), _tokens(9, 2)),
    _tree([], _tokens(14, 3)),
    _tree(_tokens(3, 4), _tokens(2, 5), _tokens(14, 6), _tokens(14, 6)[:10] + _tokens(3, 7)),  # forks twice
]


def _made(auto: Any, config: PretrainedConfig, attention: str, weights: dict[str, Tensor] | None = None) -> Any:
    """A model with weights that are large enough for a wrong mask to show, or with given ones."""
    model = auto.from_config(copy.deepcopy(config), attn_implementation=attention, dtype=torch.float32)
    if weights is None:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3)
    else:
        model.load_state_dict(weights)
    return model.eval()


def _log_probs(model: nn.Module, tokens: Sequence[int]) -> Tensor:
    """Of all tokens but the first, by the model's own logits."""
    ids = torch.tensor([list(tokens)])
    logits: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]


def _all(model: nn.Module) -> Tensor:
    return torch.cat([_log_probs(model, tokens) for tree in TREES for tokens in tree.branches])


def _scores(model: nn.Module) -> Tensor:
    """Of each branch by itself, by the model's own logits."""
    ids = [torch.tensor([list(tokens)]) for tree in TREES for tokens in tree.branches]
    return torch.stack([model(input_ids=one).logits[0, 0] for one in ids])


def _packed(model: nn.Module, row: Row, cached: Any = None) -> Tensor:
    return log_probs(hidden_states(model, row, cached)[row.source], row.target, lm_head(unwrap(model)))


def _differ(what: str, ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> str:
    """What is wrong, or nothing."""
    far = float((ours - theirs).detach().abs().max()) if ours.shape == theirs.shape else math.inf
    if far <= tolerance * max(1.0, float(theirs.detach().abs().max())):
        return ""
    return f"{what} of packed trees differ by {far:.0e} from those of separate passes"


def _gradients(model: nn.Module, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    found = [one.grad.flatten() for one in model.parameters() if one.grad is not None]
    return torch.cat(found)


def _causal(config: PretrainedConfig, head: str, attention: str) -> Probe:
    """Try packed rows under an attention implementation, with what is right as Transformers' plainest gives it."""
    safe = "eager"
    try:
        small = shrunk(config)
        truth = _made(AutoModelForCausalLM, small, safe)
        expected = _all(truth)
        with contextlib.suppress(Exception):
            quick = _made(AutoModelForCausalLM, small, "sdpa", truth.state_dict())
            if not _differ("log-probs", _all(quick), expected):
                safe = "sdpa"
    except Exception as error:  # of whatever library the architecture brings
        why = f"a small model of its configuration could not be tried ({reason_of(error)[:120]})"
        return Probe(False, "sdpa", why, raised=True)
    tries: list[Probe] = []
    for one in dict.fromkeys([attention, "eager"]):  # a loop over trees, or one dense mask a row
        raised = False
        try:
            model = _made(AutoModelForCausalLM, small, one, truth.state_dict())
            why = (
                _differ("log-probs", _packed(model, pack(TREES)), expected)
                or _differ("log-probs when generating", _all(model), expected)
                or _differ_in_gradients(model, truth)
                or (_differ_with_a_prefix(model, expected) if one != "sdpa" else "")
                or _differ_with_adapters(model)
                or (_differ_in_scores(small, one) if head == "score" else "")
            )
        except Exception as error:
            why, raised = f"packed trees cannot be read ({reason_of(error)[:120]})", True
        if not why:
            return Probe(True, one, "")
        tries.append(Probe(False, safe, why, raised))
    return tries[0]


def _differ_in_gradients(model: nn.Module, truth: PreTrainedModel) -> str:
    ours = _gradients(model, _packed(model, pack(TREES)).sum())
    return _differ("gradients", ours, _gradients(truth, _all(truth).sum()), 1e-4)


def _differ_with_a_prefix(model: PreTrainedModel, expected: Tensor) -> str:
    """A prefix that stands in no row: that of the first tree."""
    tree, count = TREES[0], 11
    cached: Cached = keys_and_values(model, list(tree.branches[0][:count]))  # type: ignore[assignment]
    scored = [[i > count for i in range(len(tokens))] for tokens in tree.branches]
    row = pack([Tree(tree.branches, scored)], cached=count)
    first, second = (len(tokens) - 1 for tokens in tree.branches)
    theirs = torch.cat([expected[count:first], expected[first + count : first + second]])
    return _differ("log-probs after a cached prefix", _packed(model, row, cached), theirs)


def _differ_with_adapters(model: PreTrainedModel) -> str:
    adapted = add_lora(model, Lora(r=2, alpha=4, dropout=0.0, target_modules="all-linear"), [], "lm")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.eval()
    return _differ("log-probs with LoRA", _packed(adapted, pack(TREES)), _all(adapted))


def _differ_in_scores(small: PretrainedConfig, attention: str) -> str:
    truth = _made(AutoModelForSequenceClassification, small, "eager")
    model = _made(AutoModelForSequenceClassification, small, attention, truth.state_dict())
    return _differ("scores", scores(model, pack(TREES)), _scores(truth))


def _encoder(config: PretrainedConfig, head: str, attention: str) -> Probe:
    """Try padded rows; an encoder that scores them otherwise than lone texts is refused."""
    small = shrunk(config)
    reasons = []
    for one in dict.fromkeys([attention, "sdpa", "eager"]):
        try:
            model = _made(AutoModelForSequenceClassification, small, one)
            row = pad(TREES, pad_id=TOKENS["pad_token_id"])
            why = _differ("scores", scores(model, row), _scores(model)).replace("packed trees", "padded texts")
        except Exception as error:
            why = reason_of(error)[:160]
        if not why:
            return Probe(True, one, "")
        reasons.append(f"{one}: {why}")
    raise AiraError(f"A {config.model_type} model cannot be used as a scorer here: {'; '.join(reasons)}.")
