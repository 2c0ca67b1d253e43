"""What happens between the shell and a run: checks before Hydra starts, resuming, and errors as one message."""

import contextlib
import functools
import io
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ValueType
from omegaconf import DictConfig

from aira.config import (
    compose_config,
    composed_folder,
    conf_file,
    notices,
    parse_override,
    plain,
    read_config,
    recorded,
)
from aira.errors import AiraError, Stopped, reason_of
from aira.files import (
    check_exists,
    check_writable,
    damage,
    newest_first,
    no_room,
    override,
    read_json,
    throw_away,
    typed,
)
from aira.folders import LOCK, claim, identity, starts_the_run
from aira.sweeps import examples


def _scheduled() -> int:
    """How many processes torchrun or srun has started for the run."""
    started = "RANK" in os.environ or "SLURM_PROCID" in os.environ
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) if started else 1


def _broken(checkpoint: Path, trainer: dict[str, Any]) -> str | None:
    """Why a run cannot go on from a file, of which the first process reads all; a finished run has no need of it."""
    return None if _finished(run_of(checkpoint), trainer) else damage(checkpoint, sums=starts_the_run())


def _refused(checkpoint: Path, broken: str) -> AiraError:
    """The error for a file that is named, or that the other processes take."""
    before = checkpoint.with_name("previous.ckpt")
    whole = before != checkpoint and before.is_file() and not damage(before, sums=starts_the_run())
    offer = f"The one before it is whole: {typed('ckpt_path', before)}." if whole else "No whole one stands beside it."
    return AiraError(f"ckpt_path={checkpoint}: {broken}. {offer}")


def find_last(values: dict[str, Any]) -> Path:
    """The newest whole checkpoint of a run with this configuration, as it is written down, below `output_dir`.

    Of several processes that look for it by themselves, only the first reads it. So all come to the same file, or the
    first one ends the run.

    Raises:
        AiraError: there is none; the message lists other runs, and in what the most similar differ. Or its bytes have
            changed, and there are other processes, which would go on from it.
    """
    wanted = identity(values)
    others: list[tuple[int, str]] = []
    files = newest_first(values["output_dir"], "*/*/checkpoints/*.ckpt")
    for checkpoint in (file for file in files if file.stem in ("last", "previous")):
        try:
            there = identity(read_config(run_of(checkpoint)))
        except AiraError as error:
            print(f"Notice: {checkpoint} is passed over: {error}", file=sys.stderr)
            continue
        differing = [
            f"{key}={there.get(key)} there, {wanted.get(key)} here"
            for key in dict.fromkeys([*wanted, *there])
            if wanted.get(key) != there.get(key)
        ]
        if not differing:
            broken = _broken(checkpoint, values["trainer"])
            if not broken:
                return checkpoint
            if _scheduled() > 1 and not damage(checkpoint, sums=False):
                raise _refused(checkpoint, broken)
            if starts_the_run():
                print(f"Notice: {checkpoint} is passed over: {broken}.", file=sys.stderr)
            continue
        if checkpoint.stem == "previous" and checkpoint.with_name("last.ckpt").exists():
            continue
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        others.append((len(differing), f"\n  {typed('ckpt_path', checkpoint)}\n    {'; '.join(differing[:3])}{more}"))
    others.sort(key=lambda other: other[0])
    nearest_runs = f"Other runs, the most similar first:{''.join(told for _, told in others[:5])}"
    raise AiraError(
        f"ckpt_path=last: no run below {values['output_dir']}/ has this configuration and a checkpoint. "
        f"{nearest_runs if others else 'There is no other run: leave ckpt_path out to start one.'}"
    )


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint."""
    return checkpoint.resolve().parent.parent


def check(config_name: str) -> None:
    """Check the command line in `sys.argv` before Hydra runs, and resolve `ckpt_path`.

    A run that goes on from a checkpoint of its own kind goes on in that run's folder. Exits with status 2 and one
    message where something is wrong.
    """
    _replace_what_cannot_be_shown()
    arguments = get_args_parser().parse_args()
    if arguments.help or arguments.hydra_help or arguments.shell_completion or arguments.config_name or arguments.info:
        return
    try:
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
            if chosen and composed_folder(config_name, overrides, "hydra.job.chdir") == "True":
                raise AiraError(
                    f"{chosen}: the paths of a configuration begin where the command is given. Leave it out; "
                    "hydra.run.dir=<folder> is where a run writes."
                )
            values = plain(cfg)
            if not arguments.cfg:
                for key, path in _paths(values):
                    check_exists(key, path)
                for key in ("output_dir", "cache_dir"):
                    check_writable(key, values[key])
                for example in examples(values["sweep"]["space"]) if values.get("sweep") else ():
                    compose_config(config_name, [*overrides, example])
            if starts_the_run():
                for notice in notices(values):
                    print(f"Notice: {notice}", file=sys.stderr)
        if config_name == "train" and not arguments.cfg:
            _check_one_folder(arguments.overrides)
            values["ckpt_path"] = _begun(arguments.overrides) or values["ckpt_path"]
        own = None
        if not arguments.multirun and values.get("ckpt_path") and not arguments.cfg:
            own = _go_on(values, recorded(cfg))
        if starts_the_run() and not arguments.cfg:
            _claim(config_name, arguments.overrides, recorded(cfg), own, arguments.multirun)
    except AiraError as error:
        fail(error, debug="debug=true" in arguments.overrides)


def _replace_what_cannot_be_shown() -> None:
    """Where an output has no sign for a character, as in ASCII, it gets a question mark, and the run goes on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _check_one_folder(overrides: list[str]) -> None:
    """Processes that a scheduler has started compose each for itself, and would each take a folder by its own clock."""
    processes = _scheduled()
    if processes > 1 and not any(text.startswith("hydra.run.dir=") for text in overrides):
        raise AiraError(
            f"{processes} processes were started, and each would write into a folder of its own. Name one for all of "
            "them: hydra.run.dir=outputs/<a folder>/<a name>."
        )


def _begun(overrides: list[str]) -> str | None:
    """The checkpoint that a run goes on from where torchrun or SLURM has started it again; None where it is new."""
    again = any(int(os.environ.get(name) or 0) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    folders = [text.partition("=")[2] for text in overrides if text.startswith("hydra.run.dir=")]
    if not again or not folders:
        return None
    last = Path(str(parse_override(f"dir={folders[-1]}").value())) / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return None
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID")) == "0":
        print(f"Notice: this run was started again, and goes on from {last}.", file=sys.stderr)
    return str(last)


def _claim(config_name: str, overrides: list[str], values: dict[str, Any], own: Path | None, many: bool) -> None:
    """Take the folder of the run, or of the trials, and name it on the command line for this process and its own."""
    key = "hydra.sweep.dir" if many else "hydra.run.dir"
    given = [text for text in sys.argv[1:] if text.startswith(f"{key}=")]  # where the run goes on, its own by now
    others = [] if many else [text for text in overrides if not text.startswith(f"{key}=")]
    folder = Path(composed_folder(config_name, [*others, *given], key))
    mine = own is not None and own.resolve() == folder.resolve()
    if own and not mine and values["ckpt_path"] == "last" and (folder / ".hydra").is_dir():
        # its own checkpoints are damaged, so `last` is an earlier run's of this very configuration
        mine = not (folder / "metrics.json").exists() and identity(read_config(folder)) == identity(values)
    taken = claim(folder, values, named=bool(given), own=mine, many=many)
    if not given:
        sys.argv.append(override(key, taken))


def _paths(values: dict[str, Any]) -> list[tuple[str, str]]:
    """What a configuration reads from: keys and files, folders or hub ids."""
    data, method = values.get("data", {}), values.get("method", {})
    given = [("model.path", values["model"]["path"]), ("data.path", data.get("path"))]
    given += [
        ("method.reference", method.get("reference")),
        *(("data.exclude", file) for file in data.get("exclude", ())),
    ]
    return [(key, path) for key, path in given if path]


def _go_on(values: dict[str, Any], written: dict[str, Any]) -> Path:
    """Make the command line name the checkpoint file, and the folder of the run that it belongs to, which is returned.

    Args:
        values: the configuration.
        written: the same, as a run writes it down.
    """
    if values["ckpt_path"] == "last":
        checkpoint = find_last(written)
    else:
        checkpoint = Path(values["ckpt_path"])
        if not checkpoint.is_file():
            raise AiraError(
                f"ckpt_path={checkpoint}: there is no such file. `ckpt_path=last` looks for the newest run."
            )
        broken = _broken(checkpoint, values["trainer"])
        if broken:
            raise _refused(checkpoint, broken)
    run = run_of(checkpoint)
    steps = _finished(run, values["trainer"])
    if steps:
        print(
            f"{run} is finished, after {steps} steps: nothing is left to do. Its figures are in metrics.json, its "
            f"model is in export/. To train it for longer, raise trainer.max_steps or max_epochs, with "
            f"{typed('ckpt_path', checkpoint)}."
        )
        sys.exit(0)
    sys.argv = [arg for arg in sys.argv if not arg.startswith("ckpt_path=")]
    sys.argv.append(override("ckpt_path", checkpoint.resolve()))
    if (run / ".hydra").is_dir() and not any(arg.startswith("hydra.run.dir=") for arg in sys.argv):
        sys.argv.append(override("hydra.run.dir", run))
    return run


def _finished(run: Path, trainer: dict[str, Any]) -> int:
    """The steps of a run that has come to its end, or 0."""
    metrics = read_json(run / "metrics.json") or {}
    limit = ("steps", "max_steps") if trainer["max_steps"] > 0 else ("epochs", "max_epochs")
    return int(metrics.get("steps", 0)) if metrics.get(limit[0], 0) >= trainer[limit[1]] else 0


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
                if {"-h", "--help"} & set(sys.argv[1:]):
                    told = sys.modules[run.__module__].__doc__
                    print(f"{told}\n{conf_file(config_name).read_text(encoding='utf-8')}")
                else:
                    with _told_at_the_end():
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
            raise
        raise AiraError(
            f"No space left to write ({reason_of(error)}). What was written before is whole. Make room (old runs and "
            "cache_dir hold most), and give the same command again; a training run goes on with ckpt_path=last."
        ) from error


def stopped(error: Stopped) -> NoReturn:
    """End as a shell expects it of a command that a signal has ended."""
    try:
        print(f"\n{error}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads it
        throw_away(sys.stderr)
    sys.exit(128 + error.signum)
