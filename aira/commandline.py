"""What happens between the shell and a run: checks before Hydra starts, resuming, and errors as one message."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import ValueType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aira.config import compose_config, notices, parse_override, plain
from aira.errors import AiraError

IDENTITY_FREE = ("ckpt_path", "output_dir", "cache_dir", "debug")


def identity(values: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that says which run it is: two runs that share it compute the same."""
    return {key: value for key, value in values.items() if key not in IDENTITY_FREE}


def find_last(values: dict[str, Any]) -> Path:
    """The newest checkpoint of a run with this configuration below `output_dir`.

    Raises:
        AiraError: there is none; the message lists the runs that could be gone on with by their path.
    """
    found = sorted(Path(values["output_dir"]).glob("*/*/checkpoints/last.ckpt"), key=lambda file: file.stat().st_mtime)
    for checkpoint in reversed(found):
        config = checkpoint.parent.parent / ".hydra" / "config.yaml"
        try:
            if identity(plain(OmegaConf.load(config))) == identity(values):
                return checkpoint
        except (OSError, OmegaConfBaseException):  # written by another version of conf/, so another configuration
            continue
    listed = "".join(f"\n  ckpt_path={file}" for file in found[-10:]) or " none"
    raise AiraError(
        f"ckpt_path=last: no run below {values['output_dir']}/ has this configuration and a checkpoint. "
        f"Checkpoints of other configurations:{listed}"
    )


def check(config_name: str) -> None:
    """Check the command line in `sys.argv` before Hydra runs, and resolve `ckpt_path`.

    A run that goes on from a checkpoint of its own kind goes on in that run's folder. Exits with status 2 and one
    message where something is wrong.
    """
    arguments = get_args_parser().parse_args()
    if arguments.help or arguments.hydra_help or arguments.shell_completion or arguments.config_name or arguments.info:
        return
    try:
        if arguments.multirun:
            from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

            parsed = [parse_override(override) for override in arguments.overrides]
            unlisted = (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP)  # the sweeper knows their values
            listed = [override for override in parsed if override.value_type not in unlisted]
            trials = BasicSweeper.split_arguments(listed, max_batch_size=None)[0]
        else:
            trials = [arguments.overrides]
        for overrides in trials:
            values = plain(compose_config(config_name, overrides))
            if os.environ.get("LOCAL_RANK", "0") == "0":
                for notice in notices(values):
                    print(f"Notice: {notice}", file=sys.stderr)
        if not arguments.multirun and values.get("ckpt_path") and not arguments.cfg:
            _go_on(values)
    except AiraError as error:
        fail(error, debug="debug=true" in arguments.overrides)


def _go_on(values: dict[str, Any]) -> None:
    """Make the command line name the checkpoint file, and the folder of the run that it belongs to."""
    if values["ckpt_path"] == "last":
        checkpoint = find_last(values)
    else:
        checkpoint = Path(values["ckpt_path"])
        if not checkpoint.is_file():
            raise AiraError(
                f"ckpt_path={checkpoint}: there is no such file. `ckpt_path=last` looks for the newest run."
            )
    run = checkpoint.resolve().parent.parent
    sys.argv = [arg for arg in sys.argv if not arg.startswith("ckpt_path=")]
    sys.argv.append(f"ckpt_path='{checkpoint.resolve()}'")
    if (run / ".hydra").is_dir() and not any(arg.startswith("hydra.run.dir=") for arg in sys.argv):
        sys.argv.append(f"hydra.run.dir='{run}'")


def fail(error: AiraError, debug: bool = False) -> None:
    """Print the message of an error, or its traceback when debugging, and leave with status 2."""
    if debug or os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    print(f"\nError: {error}", file=sys.stderr)
    sys.exit(2)


def readable_errors(run: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Let a command answer an `AiraError` with its message instead of a traceback."""

    @functools.wraps(run)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return run(cfg)
        except AiraError as error:
            return fail(error, debug=cfg.debug)

    return wrapped
