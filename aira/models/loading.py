"""Loading a backbone: from the hub, a folder, a GGUF file in a package, or fresh from an architecture."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from aira.config.schema import Lora
from aira.errors import AiraError
from aira.files import check_exists
from aira.hub import reach_hub
from aira.models.families import family_of, score_label
from aira.models.forward import unwrap
from aira.models.gguf import converted
from aira.models.lora import add_lora
from aira.models.probe import probe
from aira.models.template import apply_template, prepare_scorer
from aira.models.weights import (
    ADAPTER,
    adapter_settings,
    adapter_weights,
    as_scorer,
    check_files,
    check_finite,
    check_folder,
    check_loaded,
    check_rows,
    explained,
    merged,
    without_report,
)

PURPOSES = {"reward", "harmless"}
"""What a high score of the scorers that are trained here stands for."""


def load_tokenizer(
    path: str,
    *,
    architecture: str = "causal",
    head: str = "lm",
    template: str | None = "aira",
    prompt_bos: bool = True,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Load a tokenizer and, for a causal model, give it the chat template that it is to train with.

    Args:
        path: hub id, folder in the hub's format (an adapter's too), or `pkg://package/file.gguf`.
        head: `lm` or `score`; for the latter, see `aira.models.template.prepare_scorer`.
        template: see `aira.models.template.apply_template`; None leaves the tokenizer as it is.

    Returns:
        The tokenizer, and the ids of the tokens that were added to it.

    Raises:
        AiraError: there is no such path, the hub cannot be reached, or the tokenizer has no chat template.
    """
    source, arguments, adapter = _source(path, revision, trust_remote_code)
    if adapter and (Path(adapter) / "tokenizer_config.json").exists():
        source = adapter
    with _explained(path, source, adapter):
        tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
        if not tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False):  # made up, where no file has one
            raise AiraError(
                f"{path} has no tokenizer: it has no tokenizer.json, or an empty one. Copy it from the model that this "
                "one was trained from, or write it with save_pretrained()."
            )
    tokenizer.model_max_length = VERY_LARGE_INTEGER  # for others, see `export`; here all lengths are given
    added = apply_template(tokenizer, template, prompt_bos) if architecture == "causal" and template else []
    return tokenizer, added + (prepare_scorer(tokenizer, architecture) if head == "score" else [])


def load_config(
    path: str,
    vocab_size: int,
    *,
    architecture: str | None = "causal",
    head: str = "lm",
    config: dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PretrainedConfig, bool]:
    """Load a model's configuration, before its weights.

    Args:
        vocab_size: of a fresh model.
        architecture: what it has to be; None for any.
        config: `model_type` and further arguments of the Transformers configuration, for a folder that holds a
            tokenizer and no model.

    Returns:
        The configuration, and whether the model starts from random weights.

    Raises:
        AiraError: there is no such model, its architecture is not verified or not that of `config`, or it
            is a scorer and no language model.
    """
    source, arguments, adapter = _source(path, revision, trust_remote_code)
    bare = Path(source).is_dir() and not (Path(source) / "config.json").exists()
    if bare and not config:
        raise AiraError(
            f"{path} has no config.json, so there is no model in it yet. A run's folder, or its export, has one: "
            "train first (aira train), and give what it says after `Export`."
        )
    fresh = bare and bool(config)
    with _explained(path, source, adapter):
        if fresh:
            # without default special ids, which a small vocabulary does not reach; `load_model` sets the tokenizer's
            ours = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None}
            settings = AutoConfig.for_model(**{**(config or {}), **ours})
        else:
            settings = AutoConfig.from_pretrained(source, **arguments)
            _check_settings(path, settings)
    if adapter and (adapter_settings(adapter) or {}).get("task_type") == "SEQ_CLS":
        as_scorer(settings, adapter_weights(adapter))
    if config and config["model_type"] != settings.model_type:
        raise AiraError(
            f"{path} is a {settings.model_type} model, and the model group is for {config['model_type']}: name the "
            "group that it was trained with, model=<name>."
        )
    known = family_of(settings).architecture
    if architecture not in (known, None):
        raise AiraError(
            f"{path} is a {settings.model_type} model, {'an encoder' if known == 'encoder' else 'a causal one'}, "
            "and the model group is for the other kind. Name a group that fits, or model=auto."
        )
    classes: Any = MODEL_FOR_CAUSAL_LM_MAPPING if known == "causal" else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(settings) not in classes and not getattr(settings, "auto_map", None):
        kind = "language model" if known == "causal" else "sequence classifier"
        raise AiraError(f"{path} is a {settings.model_type} model, of which Transformers has no {kind}.")
    if head == "lm" and any(name.endswith("ForSequenceClassification") for name in settings.architectures or ()):
        raise AiraError(f"{path} is a scorer, without a language-model head. Start from the model that it was made of.")
    return settings, fresh


def _check_settings(path: str, config: PretrainedConfig) -> None:
    """Refuse a configuration by which weights or scores would be read as something else."""
    names, labels = config.architectures or [], config.id2label
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AiraError(f"{path}: architectures in its config.json is {names}, and no list of names.")
    if any("SequenceClassification" in name for name in names) and not isinstance(labels.get(0), str):
        raise AiraError(f"{path}: id2label in its config.json is {labels}, and does not say what its score means.")
    if (positions := getattr(config, "max_position_embeddings", None)) is not None and positions < 1:
        raise AiraError(f"{path}: its config.json gives it {positions} positions, and so no context.")
    if found := getattr(config, "quantization_config", None):
        raise AiraError(
            f"{path} is quantized (quantization_config in its config.json is {str(found)[:60]}), and such weights are "
            "not read. Take the model that it was made of, in float32, float16 or bfloat16."
        )


def as_list(ids: int | list[int] | None) -> list[int]:
    """Token ids that a configuration gives as one, several or none."""
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def end_tokens(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    added: list[int],
    config: PretrainedConfig,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> list[int]:
    """The ids that end an answer: the tokenizer's own, and those of the checkpoint's configurations.

    Args:
        path, tokenizer, added: see `load_model`.
        config: from `load_config`, so its vocabulary is that of the checkpoint's embeddings. An id beyond them, or of
            an added token, is none of the checkpoint's.
    """
    source, arguments, _ = _source(path, revision, trust_remote_code)
    stated = as_list(getattr(config, "eos_token_id", None))
    where = {key: value for key, value in arguments.items() if key == "revision"}
    there = (Path(source) / "generation_config.json").exists()
    with explained(path) if there else contextlib.suppress(OSError):  # it need not have the file
        stated += as_list(GenerationConfig.from_pretrained(source, **where).eos_token_id)
    if not all(isinstance(end, int) for end in stated):
        raise AiraError(
            f"{path}: eos_token_id in its config.json or generation_config.json is {stated}, and no number."
        )
    known = [end for end in stated if 0 <= end < config.vocab_size and end not in added]
    return list(dict.fromkeys([*as_list(tokenizer.eos_token_id), *known]))


def load_model(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    added: list[int],
    *,
    architecture: str = "causal",
    head: str = "lm",
    label: str | None = None,
    config: dict[str, Any] | None = None,
    attn_implementation: str = "trees",
    dropout: float | None = 0.0,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    load_in_4bit: bool = False,
    lora: Lora | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Load a model in float32, ready to be trained on packed rows (causal) or padded branches (encoder).

    Args:
        path: hub id, folder in the hub's format, or `pkg://package/file.gguf`. The weights of an adapter's folder are
            merged into those of its base, and all of them can be trained.
        tokenizer, added: from `load_tokenizer`.
        head: `lm`, or `score` for a single number a text.
        label: what a high score means; it is kept in the configuration (`id2label`). A head that was trained for the
            other purpose is made anew, with a notice.
        config: see `load_config`.
        dropout: probability of every dropout layer; None keeps the configuration's own.
        load_in_4bit: hold the backbone's linear layers in 4 bits, frozen, under LoRA.
        lora: as in conf/model/_base.yaml.

    Returns:
        The model; a `peft.PeftModel` with LoRA.

    Raises:
        AiraError: the hub cannot be reached, the path is no model, its weights are not whole, or its architecture is
            not verified.
    """
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    settings, fresh = load_config(path, len(tokenizer), architecture=architecture, head=head, config=config, **where)
    ends = end_tokens(path, tokenizer, added, settings, **where)  # before the vocabulary grows
    activation = prepare_config(settings, dropout)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    auto = AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification
    purpose = score_label(settings)
    scorer, another = purpose is not None, {purpose, label} == PURPOSES
    if another:
        print(f"{path} was trained to score {purpose!r}, and this model is to score {label!r}: a new head is trained.")
        vars(settings).pop("threshold", None)
    if head == "score":
        settings.num_labels, settings.id2label, settings.label2id = 1, {0: label}, {label: 0}
        # what pipelines go by: the sigmoid of a score that means harmless is a probability, a reward is a number
        settings.problem_type = "multi_label_classification" if label == "harmless" else "regression"
    source, arguments, adapter = _source(path, **where)
    if architecture == "encoder" and attn_implementation == "trees":
        attn_implementation = "sdpa"
    attn_implementation = family_of(settings).attention or attn_implementation
    probed = None
    if not family_of(settings).verified:
        probed = probe(settings, architecture, head, attn_implementation)
        attn_implementation = probed.attention
    dtype_and_attention = {"attn_implementation": attn_implementation, "dtype": torch.float32}
    info: dict[str, Any] = {}
    with _explained(path, source, adapter), without_report():
        if fresh:
            settings.update(special)
            model = auto.from_config(settings, **dtype_and_attention)
        else:
            check_files(path, source)
            model, info = auto.from_pretrained(
                source,
                config=settings,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **dtype_and_attention,
                **arguments,
            )
    brought = adapter_weights(adapter) if adapter else {}
    if not fresh:
        names = [name.removeprefix(ADAPTER) for name in brought]
        new, other = (head == "score" and one for one in (not scorer, not scorer or adapter is not None))
        check_loaded(path, info, base=model.base_model_prefix, new_head=new, no_lm_head=other, brought=names)
        check_rows(path, model, tokenizer, added, brought)
        if head == "lm" and model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
            model.config.tie_word_embeddings = False  # or what resizes and saves would drop the head of the files
    if probed and not probed.packs:
        model.packs_trees = False
        print(f"{path}: each branch is read in a sequence of its own, which is slower: {probed.why}.")
    if activation:
        model.config.activation_function = activation
    if not fresh:
        _add_embeddings(model, added, len(tokenizer))
    if adapter:
        model = merged(model, adapter, brought, scorer=head == "score")
    if another:
        _renew_head(model)
    if not fresh:
        check_finite(path, model)
    model.config.update(special)  # only now: the old embeddings may have no row for a new pad token
    if head == "lm":
        # the checkpoint's ends, and none of its sampling: answers and exports are greedy where nothing else is asked
        several = {"eos_token_id": ends if len(ends) > 1 else tokenizer.eos_token_id}
        model.generation_config = GenerationConfig(**special | several)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if load_in_4bit:
        from aira.models.quantized import quantize  # bitsandbytes need not be installed

        quantize(model)
    if lora and lora.r:
        model = add_lora(model, lora, added, head)
    if compile:
        unwrap(model).base_model.compile(dynamic=True)
    training: nn.Module = model.train()  # Transformers loads in evaluation mode, without dropout and checkpointing
    return training


def _source(
    path: str, revision: str | None, trust_remote_code: bool, key: str = "model.path"
) -> tuple[str, dict[str, Any], str | None]:
    """The first argument of `from_pretrained`, the others that say where things are, and an adapter's own folder."""
    located = check_exists(key, path)
    arguments: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if revision is None:
        del arguments["revision"]
    if located.suffix == ".gguf":
        return str(converted(path, located)), arguments, None
    if not (located / "config.json").exists() and (located / "export").is_dir():  # a run's folder
        located = located / "export"
    if located.exists():
        check_folder(located)
    else:
        reach_hub()
    adapter = adapter_settings(str(located))
    if adapter is None:
        return str(located), arguments, None
    base, revision, key = adapter["base_model_name_or_path"], adapter.get("revision"), "base_model_name_or_path"
    source, arguments, _ = _source(base, revision, trust_remote_code, f"{located / 'adapter_config.json'}: {key}")
    return source, arguments, str(located)


@contextlib.contextmanager
def _explained(path: str, source: str, adapter: str | None) -> Iterator[None]:
    """See `explained`; where the base of an adapter cannot be loaded, its name is not the one that the user gave."""
    try:
        with explained(source if adapter else path):
            yield
    except AiraError as error:
        if not adapter or source == adapter:
            raise
        raise AiraError(f"{path} is an adapter, whose base is {source}. {error}") from error


def prepare_config(config: PretrainedConfig, dropout: float | None) -> str | None:
    """Set what training changes in a configuration: the dropout, and an activation that is faster as one kernel.

    Returns:
        The activation that the configuration had, for exports; None if it names none.
    """
    for name, value in config.to_dict().items() if dropout is not None else ():
        if name.endswith(("dropout", "pdrop", "dropout_prob")) and (value is None or isinstance(value, (int, float))):
            setattr(config, name, dropout)
    activation: str | None = getattr(config, "activation_function", None)
    if activation == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"  # the same function, in one kernel in place of eight
    return activation


def _renew_head(model: PreTrainedModel) -> None:
    """Draw the weights of a scorer's head anew: of all modules beside the backbone."""
    for name, module in model.named_modules():
        if name and name.split(".")[0] != model.base_model_prefix and hasattr(module, "reset_parameters"):
            module.reset_parameters()
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", 0.02))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


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
