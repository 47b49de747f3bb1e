"""Where are files stored, and how safely? The project's folders, and writing that survives a power cut."""

import os
import re
import socket
import sys
import time
import tomllib
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
CLONED = (_PACKAGE.parent / "Snakefile").is_file()
"""Whether the package lies in the folder of the project, and is not installed elsewhere."""
ROOT = _PACKAGE.parent if CLONED else _PACKAGE / "share"
"""Folder of what is shipped beside the package: notebooks, campaigns, pages.

In the project, ``share/`` has links to them, which are copies in an installed package.
"""
HOME = "EGRAFF_HOME"
"""Environment variable with the folder below which everything is written."""


def _folder(variable: str, default: Path) -> Path:
    value = os.environ.get(variable)
    return Path(value).expanduser().resolve() if value else default


def home() -> Path:
    """Folder below which everything is written: ``EGRAFF_HOME``, else the project, else the current folder.

    An installed package writes nothing into its own folder.
    """
    return _folder(HOME, ROOT if CLONED else Path.cwd())


def repository() -> str:
    """Address of the repository of the project, empty if it is not known; it stands in ``pyproject.toml``.

    There it is ``Repository`` under ``[project.urls]``. Before it, ``EGRAFF_REPOSITORY`` counts; without
    both, that of the repository in whose workflow on GitHub this runs.
    """
    file = _PACKAGE.parent / "pyproject.toml"
    urls = tomllib.loads(file.read_text())["project"].get("urls", {}) if CLONED else {}
    workflow = [os.environ.get(name, "") for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY")]
    known = (os.environ.get("EGRAFF_REPOSITORY"), urls.get("Repository"), "/".join(filter(None, workflow)))
    return next(filter(None, known), "")


def results() -> Path:
    """Folder of records: ``EGRAFF_RESULTS``, else ``results/``."""
    return _folder("EGRAFF_RESULTS", home() / "results")


def runs() -> Path:
    """Folder of executed notebooks and checkpoints: ``EGRAFF_RUNS``, else ``runs/``."""
    return _folder("EGRAFF_RUNS", home() / "runs")


def data() -> list[Path]:
    """Folders searched for source files, in order: ``EGRAFF_DATA`` (may be read-only), then ``data/``."""
    mirror = os.environ.get("EGRAFF_DATA")
    return [Path(mirror).expanduser().resolve(), home() / "data"] if mirror else [home() / "data"]


def generated() -> Path:
    """Folder of generated datasets and trajectories: ``EGRAFF_GENERATED``, else ``data/generated/``."""
    return _folder("EGRAFF_GENERATED", home() / "data" / "generated")


def cache() -> Path:
    """Folder of files that can be recreated, such as compiled code: ``EGRAFF_CACHE``, else ``.cache/``."""
    return _folder("EGRAFF_CACHE", home() / ".cache")


@contextmanager
def written(path: str | Path, *, new: bool = False) -> Iterator[Path]:
    """Context in which a file is written under a temporary name; at its end the file takes its place.

    The file and its folder are synced to the disk before and after the renaming, so that neither a kill nor a
    power cut leaves half a file. If the context fails, an old file stays as it was. With ``new`` there must
    be no file of this name, not even one that another process writes meanwhile.

    Yields
    ------
    Path
        Temporary name in the same folder, with the same ending, of an empty file.

    Raises
    ------
    FileExistsError
        If there is a file of this name, with ``new``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f".{path.stem}.{mark}.partial{path.suffix}")
    temporary.touch()
    mode = temporary.stat().st_mode  # some writers make files that only their owner can read
    try:
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        if new:
            path.hardlink_to(temporary)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def leftovers(folder: str | Path) -> list[Path]:
    """Temporary files of :func:`written` below a folder whose process is gone, a list of paths."""
    return [path for path in Path(folder).rglob(".*.partial*") if _abandoned(path)]


def _abandoned(path: Path) -> bool:
    found = re.search(r"-(\d+)-[0-9a-f]{8}\.partial", path.name)
    if found is None:
        return False
    if f".{socket.gethostname()}{found[0]}" in path.name:
        return not alive(int(found[1]))
    with suppress(FileNotFoundError):  # of another machine: no process there works on a file for a week
        return time.time() - path.stat().st_mtime > 7 * 86400
    return False


def alive(process: int) -> bool:
    """Whether a process of this machine, given by its number, still runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def set_aside(path: Path, reason: str | Exception) -> None:
    """Rename a file that cannot be used to ``<name>.unreadable``, so that it is made anew, and say so."""
    aside = path.with_name(f"{path.name}.unreadable")
    with suppress(FileNotFoundError):  # another process was faster
        path.replace(aside)
        print(f"{path} cannot be used ({reason}); it is now {aside.name} and is made anew", file=sys.stderr)


def stamp(path: str | Path) -> tuple[int, int, int]:
    """Time of change, size and number of a file, by which caches notice that it has changed."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ino


def readable(path: str | Path) -> bool:
    """Whether there is a zip archive, such as an ``.npz`` file, that is whole; a damaged one is set aside."""
    path = Path(path)
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        changed = str(error)
    if changed:
        set_aside(path, changed)
    return not changed
