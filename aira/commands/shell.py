"""From the shell to a run: checks before Hydra starts, and errors as one message."""

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

from aira.commands.resume import named_folder, process_count, restarted_checkpoint, resume
from aira.config.compose import chosen_model, compose_config, composed_value, defaults_of, typed_settings
from aira.config.conf import CONFIG_DIR, conf_file, replacing_files
from aira.config.help import describe
from aira.config.overrides import parse_override, translate_option
from aira.config.record import to_dict_without_env
from aira.config.schema import DPO, Data, Evaluate, Sweep, Train
from aira.config.spaces import examples
from aira.config.values import notices
from aira.errors import AiraError, Stopped, nearest, reason_of
from aira.files import (
    check_exists,
    check_writable,
    discard_output,
    display_path,
    exports,
    nearest_path,
    no_room,
    override,
    quoted_override,
)
from aira.folders import LOCK, claim, config_differences, is_first_process

HYDRA_OPTIONS = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
    *("--multirun", "-m", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"),
)
"""What a command of Hydra's takes beside key=value."""


def check(config_name: str) -> None:
    """Check the command line in `sys.argv` before Hydra runs, and resolve `ckpt_path`.

    A resumed run writes to the folder of its checkpoint. If something is wrong, prints one message and exits with
    status 2.
    """
    _replace_unencodable()
    try:
        _find_user_files()
    except AiraError as error:
        fail(error)
    parser = get_args_parser()
    parser.error = _fail_on_option  # type: ignore[method-assign]
    try:
        _check_options(config_name, HYDRA_OPTIONS)
    except AiraError as error:
        fail(error)
    arguments = parser.parse_args()
    if arguments.help or arguments.hydra_help or arguments.info:
        _end_on_broken_pipe()
        return _describe(config_name, arguments.overrides) if arguments.help else None
    if arguments.shell_completion or arguments.config_name:
        return
    try:
        model = chosen_model(arguments.overrides) if config_name == "train" else []
    except AiraError as error:
        fail(error)
    arguments.overrides += model
    sys.argv += model
    try:
        with _report_file_errors():
            _check(config_name, arguments)
    except AiraError as error:
        fail(error, debug="debug=true" in arguments.overrides)


def _check(config_name: str, arguments: Namespace) -> None:
    """See `check`."""
    if arguments.multirun and arguments.cfg:
        raise AiraError("--cfg shows one composition: leave out --multirun (-m).")
    if arguments.multirun:
        parsed = [parse_override(text) for text in arguments.overrides]
        unlisted = (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP)  # only the sweeper knows their values
        choices = [
            [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
            if each.is_sweep_override()
            else [str(each.input_line)]
            for each in parsed
            if each.value_type not in unlisted
        ]
        trials = [list(overrides) for overrides in itertools.product(*choices)]
    else:
        trials = [arguments.overrides]
    for overrides in trials:
        cfg = compose_config(config_name, overrides)
        chdir = next((text for text in overrides if "chdir" in text), None)
        if chdir and composed_value(config_name, overrides, "hydra.job.chdir") == "True":
            raise AiraError(
                f"{chdir}: the paths of a configuration are relative to the folder of the command. Leave it out; "
                "hydra.run.dir=<folder> is where a run writes."
            )
        is_run = config_name == "train"
        settings: Train | Evaluate = typed_settings(cfg, Train) if is_run else typed_settings(cfg, Evaluate)
        if not arguments.cfg:
            for key, path in _paths(settings):
                if path == "last" and is_run:
                    newest = next(exports(settings.output_dir), None)
                    example = f", such as {quoted_override(key, display_path(newest))}" if newest else ""
                    raise AiraError(f"{key}=last is for evaluate and chat: name the run's folder{example}.")
                check_exists(key, path)
            if isinstance(settings, Evaluate):
                _check_names(settings)
            check_writable("output_dir", settings.output_dir)
            check_writable("cache_dir", settings.cache_dir)
            if isinstance(settings, Train) and not settings.data.mix and Path(settings.data.path).is_file():
                _check_file(settings.data)
            if isinstance(settings, Train) and isinstance(settings.sweep, Sweep):
                for example in examples(settings.sweep.space):
                    compose_config(config_name, [*overrides, example])
        if is_first_process():
            given = [parse_override(text).key_or_group for text in overrides]
            for notice in notices(settings, given):
                print(f"Notice: {notice}", file=sys.stderr)
    if arguments.cfg:
        return
    resumed = None
    if isinstance(settings, Train):
        _check_one_folder(arguments.overrides)
        ckpt_path = restarted_checkpoint(arguments.overrides) or settings.ckpt_path
        if not arguments.multirun and ckpt_path:
            resumed = resume(ckpt_path, settings, to_dict_without_env(cfg), named_folder(arguments.overrides))
    if is_first_process():
        _claim(config_name, arguments.overrides, to_dict_without_env(cfg), resumed, arguments.multirun)


def _describe(config_name: str, names: list[str]) -> None:
    """Print help on the groups and keys that are named after --help, if any, and exit."""
    try:
        for name in names:
            print(describe(config_name, name))
    except AiraError as error:
        fail(error)
    if names:
        sys.exit(0)


def _fail_on_option(message: str) -> NoReturn:
    """In place of argparse's list of Hydra's options."""
    fail(AiraError(f"{message}. Settings are written as key=value; --hydra-help has the options of Hydra."))


def _replace_unencodable() -> None:
    """Have outputs print a question mark for a character that their encoding lacks, as ASCII, and not fail."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed before the command started
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _end_on_broken_pipe() -> None:
    """End silently on a broken pipe, as behind `| head`, for which Hydra prints a traceback."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _find_user_files() -> None:
    """Search the folder of --config-dir first for groups and options, also in the processes of this command.

    The user's own modules, which a configuration may name, are found in the current folder.
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
    files = [str(file) for file in replacing_files()]
    if files and is_first_process():
        print(f"Notice: used in place of Aira's own of the same name: {', '.join(files)}.", file=sys.stderr)


def _check_options(config_name: str, known: Sequence[str]) -> None:
    """Refuse options of other trainers, with the overrides to use instead: `--lr 3` is optimizer.lr=3.

    Args:
        known: the options that the command has.
    """
    corrected, wrong, name, position = [], [], config_name, 1
    while position < len(sys.argv):
        text = sys.argv[position]
        option, equals, value = text.partition("=")
        following = sys.argv[position + 1] if position + 1 < len(sys.argv) else ""
        position += 1
        if text == "--":
            name = "train"  # the overrides that follow are for the training runs of a pipeline
        beginnings = [each for each in known if each.startswith(option)]
        if not re.match(r"--?[A-Za-z]", text) or option in known or len(beginnings) == 1:
            corrected.append(shlex.quote(text))
            continue
        has_value = not equals and following and not re.match(r"-[^\d.]|[\w.]+=", following)
        argument = value if equals else following if has_value else None
        position += bool(has_value)
        wrong.append(text if equals or argument is None else f"{text} {argument}")
        corrected.append(translate_option(option, argument, defaults_of(name), name))
    if wrong:
        command = f"aira {Path(sys.argv[0]).stem} {' '.join(corrected)}"
        raise AiraError(f"{', '.join(wrong)}: settings are written as key=value: {command}")


def _check_one_folder(overrides: list[str]) -> None:
    """Require a named folder for processes of a scheduler: each would name a folder by its own clock."""
    processes = process_count()
    if processes > 1 and named_folder(overrides) is None:
        raise AiraError(
            f"{processes} processes were started, and each would write into a folder of its own. Name one for all of "
            "them: hydra.run.dir=outputs/<a folder>/<a name>."
        )


def _claim(
    config_name: str, overrides: list[str], config: dict[str, Any], resumed: Path | None, multirun: bool
) -> None:
    """Lock the folder of the run, or of the trials, and set it on the command line for this and its child processes.

    Args:
        resumed: the folder of the checkpoint from which the run is resumed.
    """
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    named = [text for text in sys.argv[1:] if text.startswith(f"{key}=")]  # also by `resume`
    others = [] if multirun else [text for text in overrides if not text.startswith(f"{key}=")]
    folder = Path(composed_value(config_name, [*others, *named], key))
    same = resumed is not None and resumed.resolve() == folder.resolve()
    if resumed and not same and config["ckpt_path"] == "last" and (folder / ".hydra").is_dir():
        # the folder's own checkpoints are damaged, so `last` is of an earlier run with the same configuration
        same = not (folder / "metrics.json").exists() and not config_differences(folder, config)
    claimed = claim(folder, config, named=bool(named), resumed=same, multirun=multirun)
    if not named:
        sys.argv.append(override(key, claimed))


def _check_names(settings: Evaluate) -> None:
    """Check that the evaluations, models and published lines that an evaluation names are there."""
    from aira.evaluation.results import model_folder, models_by_name, published_lines  # NumPy, for this command alone

    data_dir = settings.eval.data_dir
    if data_dir and not Path(data_dir).expanduser().is_dir():
        raise AiraError(
            f"eval.data_dir={data_dir}: there is no such folder.{nearest_path(Path(data_dir).expanduser())}"
        )
    published_lines(settings.eval.published)
    for folder in settings.compare:
        model_folder(folder)
    if not settings.compare:
        models_by_name(settings)


def _check_file(data: Data) -> None:
    """Check the split and the columns of a file of data, as far as its first rows tell."""
    from aira.data.layout import format_of
    from aira.data.rows import read_rows

    file = Path(data.path)
    if data.split != "train":
        raise AiraError(
            f"data.split={data.split}: {file} is one file, which is the split train. Leave it out, or give a folder "
            "with a file for each split."
        )
    if not data.columns or format_of(file) not in (".csv", ".tsv", ".json", ".jsonl"):
        return
    rows = list(itertools.islice(read_rows(file), 1 if format_of(file) in (".csv", ".tsv") else FIRST_ROWS))
    names = list(dict.fromkeys(name for row in rows for name in row))
    wanted = [one for of in data.columns.values() for one in (of if isinstance(of, list) else [of])]
    missing = [name for name in wanted if name not in names and name.split(".")[0] not in names]
    if names and missing and (format_of(file) in (".csv", ".tsv") or len(rows) < FIRST_ROWS):
        raise AiraError(f"data.columns: {file} has no column {missing[0]}. {nearest(missing[0], names)}")


FIRST_ROWS = 1000
"""Rows of a file of JSON that are read before torch is loaded; a later one may have further columns."""


def _paths(settings: Train | Evaluate) -> Iterator[tuple[str, str]]:
    """The keys of a configuration that name files, folders or hub ids, with their values."""
    yield "model.path", settings.model.path
    if isinstance(settings, Evaluate):
        yield from (("models", path) for path in settings.models if "*" not in path)
        return
    yield from (("data.mix", source.path) for source in settings.data.mix)
    if not settings.data.mix:
        yield "data.path", settings.data.path
    yield from (("data.exclude", file) for file in settings.data.exclude)
    if isinstance(settings.method, DPO) and settings.method.reference:
        yield "method.reference", settings.method.reference


def fail(error: AiraError, debug: bool = False) -> NoReturn:
    """Print the message of an error, or its traceback when debugging, and exit with status 2."""
    if debug or os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    print(f"\nError: {error}", file=sys.stderr)
    sys.exit(2)


def readable_errors(run: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Have a command print only the message of an `AiraError`, instead of a traceback."""

    @functools.wraps(run)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            with _report_errors():
                return run(cfg)
        except AiraError as error:
            folder = Path(HydraConfig.get().runtime.output_dir)
            if is_first_process() and {file.name for file in folder.iterdir()} <= {LOCK}:  # nothing was written
                shutil.rmtree(folder)
            return fail(error, debug=cfg.debug)
        except KeyboardInterrupt:
            print("\nInterrupted.", file=sys.stderr)
            sys.exit(130)
        except Stopped as error:
            if os.environ.get("LOCAL_RANK", "0") != "0":
                sys.exit(0)  # if another rank fails, Lightning kills rank 0, which may still be closing its logs
            return exit_stopped(error)

    return wrapped


def command(config_name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Decorate the main function of a command that is configured by conf/<config_name>.yaml.

    `--help` prints the module's docstring and that file; an error that a user can fix is printed as one message.
    """

    def decorate(run: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(run)
        def wrapped() -> None:
            _replace_unencodable()
            try:
                _find_user_files()
                _check_options(config_name, ["-h", "--help", "--json"])
                with _report_errors():
                    if {"-h", "--help"} & set(sys.argv[1:]):
                        _describe(config_name, [text for text in sys.argv[1:] if not text.startswith("-")])
                        docstring = sys.modules[run.__module__].__doc__
                        print(f"{docstring}\n{conf_file(config_name).read_text(encoding='utf-8')}")
                    else:
                        run()
            except AiraError as error:
                fail(error, debug="debug=true" in sys.argv)
            except Stopped as error:
                exit_stopped(error)
            except KeyboardInterrupt:
                print("\nInterrupted.", file=sys.stderr)
                sys.exit(130)

        return wrapped

    return decorate


@contextlib.contextmanager
def _report_errors() -> Iterator[None]:
    """Turn a full disk into an `AiraError`, and a broken pipe into `Stopped`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        discard_output(sys.stdout)
        raise Stopped(signal.SIGPIPE, "Stopped, since nobody reads the output any more.") from error
    except (AiraError, Stopped):
        raise
    except Exception as error:
        if not no_room(error):
            with _report_file_errors():
                raise
        raise AiraError(
            f"No space left to write ({reason_of(error)}). What was written before is whole. Free some space (old runs "
            "and cache_dir take most), and run the same command again; ckpt_path=last resumes a training run."
        ) from error


REFUSED = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    errno.ENAMETOOLONG,
)
"""Errors of a file that does not exist, or may not be read or written."""


@contextlib.contextmanager
def _report_file_errors() -> Iterator[None]:
    """Turn the error of a file or folder that cannot be read or written into an `AiraError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED or error.filename is None:
            raise
        raise AiraError(
            f"{str(error.filename)[:200]} cannot be read or written: {error.strerror}. Name another, or change its "
            "permissions."
        ) from error


def exit_stopped(error: Stopped) -> NoReturn:
    """Print why a command was stopped, and exit with the status that a shell expects after a signal."""
    try:
        print(f"\n{error}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads it
        discard_output(sys.stderr)
    sys.exit(128 + error.signum)
