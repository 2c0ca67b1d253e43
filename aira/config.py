"""Composing and checking a configuration; no torch is imported here.

A wrong name or value is answered within a second, with the nearest valid one. Outside this file, `commandline` and the
entry functions nothing sees an OmegaConf type.
"""

import inspect
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from omegaconf.resolvers.oc import env

from aira.bounds import ABOVE_0, ANY, BELOW_1, CHOICES, COUNT, COUNT_OR_0, FACTS, NO_FP16, TEXTS, range_of
from aira.errors import AiraError, nearest, reason_of
from aira.files import read_text, write_whole

CONF = Path(__file__).parent.parent / "conf"

OPEN = ("hydra.", "model.config.", "model.checkpoints.")
"""Where a key that is not in conf/ may be added with `+`."""

PARTS = ("callbacks", "logger")
"""Groups whose parts a run can do without: `~callbacks.emissions`, `logger=[csv,wandb]`."""


def plain(cfg: Any) -> Any:
    """The configuration, or a part of it, resolved into dicts, lists and scalars."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def recorded(cfg: Any) -> dict[str, Any]:
    """The configuration as it is written down: resolved, but for variables of the environment, which may be secrets."""
    OmegaConf.register_new_resolver("oc.env", lambda name, *_: f"${name}", replace=True)
    try:
        found: dict[str, Any] = plain(cfg)
        return found
    finally:
        OmegaConf.register_new_resolver("oc.env", env, replace=True)


def write_config(run: Path, values: dict[str, Any]) -> None:
    """Write down the configuration of a run, as `recorded` has it."""
    write_whole(run / ".hydra" / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(values)))


def read_config(run: Path) -> dict[str, Any]:
    """The configuration that a run has written down, as plain data: nothing in it is resolved.

    Raises:
        AiraError: there is none, or it cannot be read.
    """
    file = run / ".hydra" / "config.yaml"
    text = read_text(file, run)
    try:
        depth = 0
        for event in yaml.parse(text or ""):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > 50:
                raise ValueError("YAML's aliases, or over 50 levels, which a run does not write")
        found: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
        json.dumps(found)
        if not isinstance(found, dict) or not found:
            raise ValueError("no keys")
        return found
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise AiraError(f"{file} is not the configuration of a run: {reason_of(error)}") from error


def build(settings: dict[str, Any], **available: Any) -> Any:
    """Instantiate a part, giving it those of a run's objects that it asks for."""
    partial = instantiate(settings, _partial_=True)
    wanted = inspect.signature(partial.func).parameters
    return partial(**{name: value for name, value in available.items() if name in wanted})


def conf_file(name: str) -> Path:
    """The file conf/<name>.yaml.

    Raises:
        AiraError: there is no conf/, since the package stands alone.
    """
    if not CONF.is_dir():
        raise AiraError(
            f"Aira's commands run from a clone, where conf/ stands beside the package; {CONF} does not exist. "
            "From Python, its parts take plain arguments and need no conf/: aira.chat.pipeline.Chat, for one."
        )
    return CONF / f"{name}.yaml"


def options(group: str) -> list[str]:
    """The choices of a configuration group, such as `model`."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml") if not file.stem.startswith("_"))


def groups() -> list[str]:
    """The configuration groups: the folders of conf/."""
    return sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested dicts, inner nodes included, with their values."""
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")


def compose_config(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose `conf/<config_name>.yaml` as the command line does, for use from Python.

    Raises:
        AiraError: a group, option, key or value is wrong; the message names the nearest valid one.
    """
    with initialize_config_dir(str(conf_file(config_name).parent), version_base="1.3"):
        parsed = [parse_override(override) for override in overrides]
        is_group = [override.key_or_group in groups() or "hydra/" in override.key_or_group for override in parsed]
        for override, group in zip(parsed, is_group, strict=True):
            if group:
                _check_option(override, config_name)
        try:
            chosen = [text for text, group in zip(overrides, is_group, strict=True) if group]
            defaults = compose(config_name, chosen, return_hydra_config=True)
            for override, group in zip(parsed, is_group, strict=True):
                if not group:
                    _check_key(override, defaults, config_name)
            cfg = compose(config_name, overrides)
            values = plain(cfg)
            recipe = defaults.hydra.runtime.choices.get("experiment")
        except (HydraException, OmegaConfBaseException) as error:
            raise AiraError(_source_missing(error, locals().get("cfg"))) from error
    if recipe:
        _check_recipe(recipe, values)
    _check_values(values)
    return cfg


def composed_folder(config_name: str, overrides: list[str], key: str) -> str:
    """What a key of Hydra's, such as `hydra.run.dir`, comes to."""
    with initialize_config_dir(str(conf_file(config_name).parent), version_base="1.3"):
        return str(OmegaConf.select(compose(config_name, overrides, return_hydra_config=True), key))


def parse_override(text: str) -> Override:
    """One override of the command line."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise AiraError(
            f"{text}: this is not of the form key=value. "
            "A value with a space or any of = , ( ) [ ] { } needs quotes in quotes: \"key='value'\"."
        ) from error


def _own_groups(config_name: str) -> list[str]:
    """The groups that a command chooses from."""
    primary: Any = OmegaConf.load(conf_file(config_name))
    entries = [entry for entry in primary.get("defaults", []) if entry != "_self_"]
    return [str(name).removeprefix("optional ") for entry in entries for name in entry]


def _check_option(override: Override, config_name: str) -> None:
    """The option of a group exists, and the command has the group."""
    group, text = override.key_or_group, override.input_line
    if group.startswith("hydra/"):  # such as hydra/sweeper=optuna: Hydra knows its own
        return
    own = _own_groups(config_name)
    if group not in own:
        has = f"It has: {', '.join(name for name in own if '/' not in name)}." if own else "It has no groups."
        raise AiraError(f"{text}: this command (conf/{config_name}.yaml) has no {group} to choose. {has}")
    if override.is_delete() or override.is_add():
        raise AiraError(f"{text}: a run has one {group}. Choose it without + or ~, as {group}=<name>.")
    _check_single(override)
    value = override.value()
    if value is None or (isinstance(value, list) and group not in PARTS):
        raise AiraError(f"{text}: name one option. {nearest('', options(group))}")
    for option in value if isinstance(value, list) else [value]:
        if str(option).removesuffix(".yaml") not in options(group):
            raise AiraError(f"{group}={option}: there is no such {group}. {nearest(str(option), options(group))}")


def _check_single(override: Override) -> None:
    """It is one value, not those of a sweep, which are taken apart before they come here."""
    if override.is_sweep_override():
        raise AiraError(f"{override.input_line}: several values need --multirun; in one value, quote the comma.")


def chosen_by(recipe: str) -> dict[str, str]:
    """The options that a recipe, a file in conf/experiment, chooses of other groups."""
    content: Any = OmegaConf.load(CONF / "experiment" / f"{recipe}.yaml")
    pairs = [pair for entry in content["defaults"] if not isinstance(entry, str) for pair in entry.items()]
    return {group.removeprefix("override /"): option for group, option in pairs}


def _check_recipe(recipe: str, values: dict[str, Any]) -> None:
    """A published model is of one language and one method; all else that its recipe sets may be set otherwise."""
    own, language, method = chosen_by(recipe), values["language"]["code"], values["method"]["name"]
    instead = f"Your own run needs no recipe: model={own['model']} method={method} language={language}."
    if own["language"] != language:
        there = [name for name in options("experiment") if chosen_by(name)["language"] == language]
        raise AiraError(
            f"experiment={recipe} language={language}: the model was published for language={own['language']} alone. "
            f"Published for {language} are {', '.join(there)}. {instead}"
        )
    if own["method"] != method:
        raise AiraError(f"experiment={recipe} method={method}: the model was made by method={own['method']}. {instead}")


def _check_key(override: Override, defaults: DictConfig, config_name: str) -> None:
    """The key exists, and the value is of the default's type."""
    key, text = override.key_or_group, str(override.input_line)
    known = dict(flat(OmegaConf.to_container(defaults, resolve=False)))
    if key not in known:
        if override.is_add() or override.is_force_add():
            if key.startswith(OPEN):
                return
            text += " adds a key that nothing reads"
        readers = [name for name in options("method") if key.removeprefix("method.") in _own_keys(name)]
        chosen = defaults.hydra.runtime.choices.get("method")
        if chosen and readers and chosen not in readers:
            raise AiraError(
                f"{text}: method={chosen} does not read it. method.{key.removeprefix('method.')} is for "
                f"{' and '.join(f'method={name}' for name in readers)}."
            )
        names = [name for name in known if not name.startswith(UNNAMED)] + _own_groups(config_name)
        raise AiraError(f"{text}: there is no key or group '{key}'. {nearest(ELSEWHERE.get(key, key), names)}")
    if key.startswith("hydra."):
        return
    if override.is_delete():
        if key.count(".") == 1 and key.startswith(PARTS):
            return
        raise AiraError(f"{text}: something reads {key}, so it cannot be left out. Set it: {key}=<value>.")
    _check_single(override)
    for part in dict(flat({key: override.value()})):
        fact = next((fact for fact in FACTS if f"{part}.".startswith(f"{fact}.") or part.endswith(f".{fact}")), None)
        if fact:
            raise AiraError(f"{text}: {part} is a fact of the code, and not a setting: {FACTS[fact]}.")
    try:
        default = OmegaConf.select(defaults, key, throw_on_missing=False)
    except InterpolationKeyError:  # data without a path of its own for the method: here it gets one
        default = known[key]
    wrong = _type_expected(key, override.value(), default)
    if wrong:
        raise AiraError(f"{text}: {key} is {wrong}.")
    _check_choice(key, override.value())


def _own_keys(method: str) -> set[str]:
    """The keys that a method's file has beyond those of every method."""
    shared, own = (set(OmegaConf.load(CONF / "method" / f"{name}.yaml")) for name in ("_base", method))
    return {str(key) for key in own - shared - {"defaults"}}


UNNAMED = ("hydra", "method.lr", "model.lr", "model.epochs")
"""Keys that are not proposed for a misspelt one."""

ELSEWHERE = {
    "learning_rate": "optimizer.lr",
    "num_train_epochs": "trainer.max_epochs",
    "epochs": "trainer.max_epochs",
    "per_device_train_batch_size": "data.batch_size",
    "gpus": "trainer.devices",
}
"""What TRL, Transformers and others call keys that have another name here."""


def _type_expected(key: str, value: Any, default: Any) -> str | None:
    """What a value should be, by the default, where it is something else."""
    if (isinstance(value, str) and "${" in value) or (value is None and (default is None or key == "model.dropout")):
        return None
    text = isinstance(value, (str, QuotedString))
    if default is None:
        allowed = range_of(key)
        if allowed and value not in allowed:
            return f"null, or {allowed}"
        return None if key not in TEXTS or (text and value) else "null, or text (a number needs quotes)"
    if key == "trainer.devices":
        several = isinstance(value, list) and value and all(part in COUNT_OR_0 for part in value)
        fits = value == "auto" or value in COUNT or (several and len(set(value)) == len(value))
        return None if fits else "a number from 1 on, or auto, or a list of GPUs such as [0,1]"
    if isinstance(default, DictConfig):
        parts = ", ".join(f"{key}.{part}" for part in map(str, default))
        return None if isinstance(value, dict) else f"one of several: {parts}" if parts else "a mapping: {name: value}"
    if isinstance(default, ListConfig):
        such = f"a list, such as [{','.join(map(str, default))}]" if len(default) else "a list of text"
        kind = (int, float) if key == "optimizer.betas" else (str, QuotedString)
        fits = isinstance(value, list) and all(isinstance(part, kind) and part != "" for part in value)
        return None if fits else such
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)):
        whole = isinstance(default, int) and key != "trainer.val_check_interval"
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        allowed = range_of(key) or ANY
        if fits and value not in allowed:
            return str(allowed)
        return None if fits else f"{'a whole' if whole else 'a'} number, such as {default}"
    if text and not str(value):
        return f"text, such as {default}, and this is empty"
    return None if text else f"text, such as {default} (a number needs quotes)"


def _check_choice(key: str, value: Any) -> None:
    if key in CHOICES and value not in CHOICES[key] and "${" not in str(value):
        raise AiraError(f"{key}={value}: valid are {', '.join(map(str, CHOICES[key]))}.")


def _source_missing(error: Exception, cfg: DictConfig | None) -> str:
    """Say it plainly where the data group has nothing for the method's kind of data in the language."""
    if cfg is not None and "sources" in str(error):
        sources: Any = OmegaConf.to_container(cfg.data.sources, resolve=False)
        kind, language = cfg.method.kind, cfg.language.code
        has = [f"{name} ({', '.join(by_language)})" for name, by_language in sources.items()]
        return (
            f"data={cfg.data.name} has no {kind} data for language={language}, which method={cfg.method.name} needs. "
            f"It has: {'; '.join(has)}. Choose another data group, or give a file with data.path=."
        )
    if "hydra/launcher" in str(error) or "hydra/sweeper" in str(error):
        return f"{reason_of(error)}: pip install -e '.[cluster]' brings joblib and submitit_slurm."
    cause: BaseException | None = error
    while cause is not None and not str(cause).strip():
        cause = cause.__cause__
    return reason_of(cause or error)


def _is_column(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name for name in names)


def _check_values(values: dict[str, Any]) -> None:
    """What no single key shows: choices, ranges, and parts that do not go together."""
    known = dict(flat(values))
    for key, value in known.items():
        _check_choice(key, value)
        allowed = range_of(key) or (ANY if isinstance(value, float) else None)
        if allowed and value is not None and value not in allowed:
            raise AiraError(f"{key}={value}: it must be {allowed}.")
    betas = known.get("optimizer.betas", [0, 0])
    if len(betas) != 2 or not all(beta in BELOW_1 for beta in betas):
        raise AiraError(f"optimizer.betas={betas}: they are two, each {BELOW_1}.")
    columns = known.get("data.columns") or {}
    if not isinstance(columns, dict) or not all(_is_column(column) for column in columns.values()):
        raise AiraError(
            f"data.columns={columns}: it is a mapping to a column or a list of them, such as '{{prompt: question}}'; a "
            "number needs quotes."
        )
    labels = known.get("data.labels") or {}
    if not isinstance(labels, dict) or not all(
        cls is None or (type(cls) is int and cls in (0, 1)) for cls in labels.values()
    ):
        raise AiraError(
            f"data.labels={labels}: 1 is toxic, 0 not, null leaves out, such as '{{OFF: 1, NOT: 0, UNSURE: null}}'."
        )
    sharded = isinstance(known.get("trainer.strategy"), dict)
    if known.get("trainer.precision") == "16-mixed" and (sharded or known["trainer.accelerator"] == "cpu"):
        raise AiraError(f"trainer.precision=16-mixed: {NO_FP16[sharded]}")
    if known.get("export") == "best" and not (
        "checkpoint" in values["callbacks"] and known["trainer.limit_val_batches"]
    ):
        raise AiraError(
            "export=best takes checkpoints/best.ckpt, which is written after a validation: it needs "
            "callbacks.checkpoint, and trainer.limit_val_batches above 0."
        )
    method, model = values.get("method"), values.get("model")
    if not method or not model:
        return
    if model["role"] not in method["role"]:
        fitting = [name for name in options("model") if _role(name) in method["role"]]
        raise AiraError(
            f"method={method['name']} needs a {' or '.join(method['role'])} model and model={model['name']} is an "
            f"{model['role']}. These fit: {', '.join(fitting)}."
        )
    _check_method(method)
    if model["compile"] and model["attn_implementation"] != "sdpa":
        raise AiraError(
            "model.compile=true needs model.attn_implementation=sdpa: the loop over trees does not compile."
        )


def _check_method(method: dict[str, Any]) -> None:
    """Arguments of the losses that no single key shows."""
    smoothing, loss = method.get("label_smoothing", 0), method.get("loss")
    if loss == "exo_pair" and smoothing == 0:
        raise AiraError("method.loss=exo_pair needs method.label_smoothing above 0 (1e-3 is usual): it takes its log.")
    if smoothing and loss in ("hinge", "ipo", "apo_zero", "apo_down", "orpo"):
        raise AiraError(f"method.loss={loss} has no label smoothing; method.label_smoothing={smoothing} must be 0.")
    if loss in ("simpo", "orpo") and method["reference"]:
        raise AiraError(f"method.loss={loss} has no reference; method.reference must be null.")
    weights = method.get("class_weights")
    pair = isinstance(weights, list) and len(weights) == 2 and all(weight in ABOVE_0 for weight in weights)
    if not (pair or weights in (None, "balanced")):
        raise AiraError(f"method.class_weights={weights}: valid are null, balanced, and [harmless, toxic] above 0.")
    if weights and method["objective"] == "pairwise":
        raise AiraError("method.class_weights are for method.objective=classification; pairs hold one of each class.")


def _role(model: str) -> str:
    return str(plain(OmegaConf.load(CONF / "model" / f"{model}.yaml")).get("role", "causal"))


def notices(values: dict[str, Any]) -> list[str]:
    """What a user should know about a valid configuration before it runs."""
    model, language = values["model"], values["language"]["code"]
    said = []
    fresh = model.get("config") and model["path"] == model["checkpoints"]["default"]
    if fresh and values.get("method", {}).get("name") == "dpo":
        said.append(
            f"model={model['name']} starts from random weights, and DPO is for a model that has learnt to answer: "
            "model.path=<run> takes that of an earlier method=sft run."
        )
    pretrained = not model.get("config") and model["path"] == model.get("checkpoints", {}).get("default")
    if pretrained and language != "en" and language not in model["checkpoints"]:
        said.append(
            f"model={model['name']} has no checkpoint of its own for language={language}: "
            f"it starts from {model['path']}. Data, questions and messages are in {language}."
        )
    return said
