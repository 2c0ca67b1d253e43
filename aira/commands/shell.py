"""What happens between the shell and a run: checks before Hydra starts, and errors as one message."""

import contextlib
import errno
import functools
import io
import itertools
import os
import re
import shlex
import shutil
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ValueType
from omegaconf import DictConfig

from aira.commands.resume import begun, named_folder, resume, scheduled
from aira.config.compose import chosen_model, compose_config, composed_value, defaults_of, validated
from aira.config.conf import CONFIG_DIR, conf_file, hiding
from aira.config.help import described
from aira.config.overrides import in_place_of, parse_override
from aira.config.record import recorded
from aira.config.schema import DPO, Evaluate, Sweep, Train
from aira.config.spaces import examples
from aira.config.values import notices
from aira.errors import AiraError, Stopped, reason_of
from aira.files import (
    check_exists,
    check_writable,
    no_room,
    override,
    throw_away,
)
from aira.folders import LOCK, claim, differing_from, starts_the_run

HYDRA_OPTIONS = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
    *("--multirun", "-m", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"),
)
"""What a command of Hydra's takes beside key=value."""


def check(config_name: str) -> None:
    """Check the command line in `sys.argv` before Hydra runs, and resolve `ckpt_path`.

    A run that goes on from a checkpoint of its own kind goes on in that run's folder. Exits with status 2 and one
    message where something is wrong.
    """
    _replace_what_cannot_be_shown()
    try:
        _find_the_users_own()
    except AiraError as error:
        fail(error)
    parser = get_args_parser()
    try:
        _check_options(config_name, HYDRA_OPTIONS)
    except AiraError as error:
        fail(error)
    arguments = parser.parse_args()
    try:
        model = chosen_model(arguments.overrides) if config_name == "train" else []
    except AiraError as error:
        fail(error)
    arguments.overrides += model
    sys.argv += model
    if arguments.help or arguments.hydra_help or arguments.info:
        _end_with_the_reader()
        return _describe(config_name, arguments.overrides) if arguments.help else None
    if arguments.shell_completion or arguments.config_name:
        return
    try:
        with _files_told():
            _check(config_name, arguments)
    except AiraError as error:
        fail(error, debug="debug=true" in arguments.overrides)


def _check(config_name: str, arguments: Namespace) -> None:
    """See `check`."""
    if arguments.multirun and arguments.cfg:
        raise AiraError("--cfg shows one composition: leave out --multirun (-m).")
    if arguments.multirun:
        parsed = [parse_override(override) for override in arguments.overrides]
        unlisted = (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP)  # the sweeper knows their values
        values_of = [
            [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
            if one.is_sweep_override()
            else [str(one.input_line)]
            for one in parsed
            if one.value_type not in unlisted
        ]
        trials = [list(overrides) for overrides in itertools.product(*values_of)]
    else:
        trials = [arguments.overrides]
    for overrides in trials:
        cfg = compose_config(config_name, overrides)
        chosen = next((text for text in overrides if "chdir" in text), None)
        if chosen and composed_value(config_name, overrides, "hydra.job.chdir") == "True":
            raise AiraError(
                f"{chosen}: the paths of a configuration begin where the command is given. Leave it out; "
                "hydra.run.dir=<folder> is where a run writes."
            )
        is_run = config_name == "train"
        settings: Train | Evaluate = validated(cfg, Train) if is_run else validated(cfg, Evaluate)
        if not arguments.cfg:
            for key, path in _paths(settings):
                check_exists(key, path)
            check_writable("output_dir", settings.output_dir)
            check_writable("cache_dir", settings.cache_dir)
            if isinstance(settings, Train) and isinstance(settings.sweep, Sweep):
                for example in examples(settings.sweep.space):
                    compose_config(config_name, [*overrides, example])
        if starts_the_run():
            for notice in notices(settings):
                print(f"Notice: {notice}", file=sys.stderr)
    if arguments.cfg:
        return
    own = None
    if isinstance(settings, Train):
        _check_one_folder(arguments.overrides)
        ckpt_path = begun(arguments.overrides) or settings.ckpt_path
        if not arguments.multirun and ckpt_path:
            own = resume(ckpt_path, settings, recorded(cfg), named_folder(arguments.overrides))
    if starts_the_run():
        _claim(config_name, arguments.overrides, recorded(cfg), own, arguments.multirun)


def _describe(config_name: str, names: list[str]) -> None:
    """Tell of the groups and keys that are named after --help, if any, and end."""
    try:
        for name in names:
            print(described(config_name, name))
    except AiraError as error:
        fail(error)
    if names:
        sys.exit(0)


def _replace_what_cannot_be_shown() -> None:
    """Where an output has no sign for a character, as in ASCII, it gets a question mark, and the run goes on."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed before the command began
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _end_with_the_reader() -> None:
    """Leave without a word where nobody reads on, as behind `| head`: Hydra has a traceback for it."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _find_the_users_own() -> None:
    """Look for groups and options in the folder of --config-dir first, in the processes of this command, too.

    Modules of the user's own, which a configuration may name, are found where the command is given.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for i, argument in enumerate(sys.argv):
        name, _, folder = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            folder = folder or "".join(sys.argv[i + 1 : i + 2])
            if not Path(folder).is_dir() or not folder:
                raise AiraError(f"--config-dir={folder}: there is no such folder.")
            os.environ[CONFIG_DIR] = str(Path(folder).resolve())
            del sys.argv[i : i + 1 + ("=" not in argument)]
            break
    mine = [str(file) for file in hiding()]
    if mine and starts_the_run():
        print(f"Notice: taken in place of Aira's own of the same name: {', '.join(mine)}.", file=sys.stderr)


def _check_options(config_name: str, own: Sequence[str]) -> None:
    """Answer options as other trainers have them by what is written here: `--lr 3` is optimizer.lr=3.

    Args:
        own: the options that the command has.
    """
    written, wrong, name, at = [], [], config_name, 1
    while at < len(sys.argv):
        text = sys.argv[at]
        option, equals, value = text.partition("=")
        following = sys.argv[at + 1] if at + 1 < len(sys.argv) else ""
        at += 1
        if text == "--":
            name = "train"  # what stands behind is for the training runs of a pipeline
        if not re.match(r"--?[A-Za-z]", text) or any(one.startswith(option) for one in own if len(option) > 1):
            written.append(shlex.quote(text))
            continue
        taken = not equals and following and not re.match(r"-[^\d.]|[\w.]+=", following)
        given = value if equals else following if taken else None
        at += bool(taken)
        wrong.append(text if equals or given is None else f"{text} {given}")
        written.append(in_place_of(option, given, defaults_of(name), name))
    if wrong:
        command = f"aira {Path(sys.argv[0]).stem} {' '.join(written)}"
        raise AiraError(f"{', '.join(wrong)}: settings are written as key=value: {command}")


def _check_one_folder(overrides: list[str]) -> None:
    """Processes that a scheduler has started compose each for itself, and would each take a folder by its own clock."""
    processes = scheduled()
    if processes > 1 and named_folder(overrides) is None:
        raise AiraError(
            f"{processes} processes were started, and each would write into a folder of its own. Name one for all of "
            "them: hydra.run.dir=outputs/<a folder>/<a name>."
        )


def _claim(config_name: str, overrides: list[str], values: dict[str, Any], own: Path | None, many: bool) -> None:
    """Take the folder of the run, or of the trials, and name it on the command line for this process and its own."""
    key = "hydra.sweep.dir" if many else "hydra.run.dir"
    given = [text for text in sys.argv[1:] if text.startswith(f"{key}=")]  # where the run goes on, its own by now
    others = [] if many else [text for text in overrides if not text.startswith(f"{key}=")]
    folder = Path(composed_value(config_name, [*others, *given], key))
    mine = own is not None and own.resolve() == folder.resolve()
    if own and not mine and values["ckpt_path"] == "last" and (folder / ".hydra").is_dir():
        # its own checkpoints are damaged, so `last` is an earlier run's of this very configuration
        mine = not (folder / "metrics.json").exists() and not differing_from(folder, values)
    taken = claim(folder, values, named=bool(given), own=mine, many=many)
    if not given:
        sys.argv.append(override(key, taken))


def _paths(settings: Train | Evaluate) -> Iterator[tuple[str, str]]:
    """What a configuration reads from: keys and files, folders or hub ids."""
    yield "model.path", settings.model.path
    if isinstance(settings, Evaluate):
        yield from (("models", one) for one in settings.models if "*" not in one)
        return
    yield "data.path", settings.data.path
    yield from (("data.exclude", file) for file in settings.data.exclude)
    if isinstance(settings.method, DPO) and settings.method.reference:
        yield "method.reference", settings.method.reference


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
            with _told_at_the_end():
                return run(cfg)
        except AiraError as error:
            folder = Path(HydraConfig.get().runtime.output_dir)
            if starts_the_run() and {file.name for file in folder.iterdir()} <= {LOCK}:  # nothing was begun
                shutil.rmtree(folder)
            return fail(error, debug=cfg.debug)
        except KeyboardInterrupt:
            print("\nInterrupted.", file=sys.stderr)
            sys.exit(130)
        except Stopped as error:
            if os.environ.get("LOCAL_RANK", "0") != "0":
                sys.exit(0)  # Lightning kills rank 0, which may still be closing its logs, where another one fails
            return stopped(error)

    return wrapped


def command(config_name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """For the main function of a module that is a command of its own, with the settings of conf/<config_name>.yaml.

    `--help` shows the module's docstring and that file; an error that a user can mend is one message.
    """

    def decorate(run: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(run)
        def wrapped() -> None:
            _replace_what_cannot_be_shown()
            try:
                _find_the_users_own()
                _check_options(config_name, ["-h", "--help", "--json"])
                with _told_at_the_end():
                    if {"-h", "--help"} & set(sys.argv[1:]):
                        _describe(config_name, [text for text in sys.argv[1:] if not text.startswith("-")])
                        told = sys.modules[run.__module__].__doc__
                        print(f"{told}\n{conf_file(config_name).read_text(encoding='utf-8')}")
                    else:
                        run()
            except AiraError as error:
                fail(error, debug="debug=true" in sys.argv)
            except Stopped as error:
                stopped(error)
            except KeyboardInterrupt:
                print("\nInterrupted.", file=sys.stderr)
                sys.exit(130)

        return wrapped

    return decorate


@contextlib.contextmanager
def _told_at_the_end() -> Iterator[None]:
    """Say it plainly where there is no room to write, and end quietly where nobody reads what is written."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        throw_away(sys.stdout)
        raise Stopped(signal.SIGPIPE, "Stopped, since nobody reads the output any more.") from error
    except (AiraError, Stopped):
        raise
    except Exception as error:
        if not no_room(error):
            with _files_told():
                raise
        raise AiraError(
            f"No space left to write ({reason_of(error)}). What was written before is whole. Make room (old runs and "
            "cache_dir hold most), and give the same command again; a training run goes on with ckpt_path=last."
        ) from error


REFUSED = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    errno.ENAMETOOLONG,
)
"""Errors of a file that is not there, or may not be read or written."""


@contextlib.contextmanager
def _files_told() -> Iterator[None]:
    """Say it plainly where a file or a folder cannot be read or written."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED or error.filename is None:
            raise
        raise AiraError(
            f"{str(error.filename)[:200]} cannot be read or written: {error.strerror}. Name another, or give the "
            "rights to it."
        ) from error


def stopped(error: Stopped) -> NoReturn:
    """End as a shell expects it of a command that a signal has ended."""
    try:
        print(f"\n{error}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads it
        throw_away(sys.stderr)
    sys.exit(128 + error.signum)
