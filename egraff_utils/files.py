"""Where are the source files of a dataset? They are found, downloaded, and identified by their hashes."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import pooch
from tqdm import tqdm

from egraff_utils import cards, paths, reference
from egraff_utils.cards import DatasetCard

MOST_BYTES = 20_000_000_000
"""Size above which a file is not downloaded."""


def fetch(card: str | Path | DatasetCard, split: str | None = None) -> dict[str, Path]:
    """Paths of a dataset's files, which are downloaded or generated if needed; hashes are always checked.

    Files are searched for in the folder of the card, in ``EGRAFF_DATA`` (a read-only mirror with the paths
    given in the cards) and in ``data/``; a file that is in none is downloaded into ``data/``. Datasets are
    generated once and kept.

    Parameters
    ----------
    card
        :class:`~egraff_utils.cards.DatasetCard`, or its name.
    split
        Split whose files are needed; None for all files of the dataset.

    Returns
    -------
    dict of str to Path
        Key of the file in the card -> its path.

    Raises
    ------
    FileNotFoundError
        If a file is not available and cannot be downloaded; the message names the file, its address and its
        hash.
    ValueError
        If a file does not match its hash. It is left where it is; a download is kept as ``<name>.bad``, and
        one that was damaged later is put aside and downloaded again.
    """
    card = cards.dataset(card)
    if card.generate:
        return {"frames": reference.make_dataset(card)}
    wanted = card.splits if split is None else [split]
    sources = dict.fromkeys(part.source for name in wanted for part in card.split(name).parts)
    return {key: locate(card, key) for source in sources for key in card.files_of(source)}


def locate(card: DatasetCard, key: str) -> Path:
    """Path of one file after its hash is checked; the file is downloaded if no folder holds it."""
    file = card.files[key]
    for folder in _folders(card):
        path = folder / file.path
        if path.is_file():
            fate = "it was left in place. Correct the hash in the card, or replace the file"
            try:
                _check(path, file.hash, fate)
            except ValueError as error:
                if not _is_download(card, key, folder):
                    raise
                paths.set_aside(path, error)
                break
            return path
    return _download(card, key)


def _is_download(card: DatasetCard, key: str, folder: Path) -> bool:
    """Whether a file of a folder was downloaded by this project, and is not the user's own."""
    mine = folder in (card.folder, *paths.data()[:-1])
    return not mine and card.url(key) is not None


def _folders(card: DatasetCard) -> list[Path]:
    return ([card.folder] if card.folder else []) + paths.data()


def identity(card: DatasetCard, key: str) -> str:
    """Hash of a file, as given in the card or else computed from its content.

    That of a file beside a user's card is compared with the content, which may have been edited.
    """
    file = card.files[key]
    beside = card.folder and (card.folder / file.path).is_file()
    if beside or not file.hash:
        found = locate(card, key)
    return file.hash or file_hash(found)


def _download(card: DatasetCard, key: str) -> Path:
    """Download a file to ``data/``, where it takes its place once its hash is checked."""
    file, url = card.files[key], card.url(key)
    path = paths.data()[-1] / file.path
    if url is None or file.hash is None:
        raise _missing(card, key, "the card gives no address and hash to download it")
    for left in paths.leftovers(path.parent):
        left.unlink(missing_ok=True)
    try:
        with paths.written(path) as temporary, _Bounded(unit="B", unit_scale=True) as progress:
            _check_address(url)
            pooch.HTTPDownloader(progressbar=progress)(url, str(temporary), None)
            if file_hash(temporary, file.hash.split(":")[0]) != file.hash:
                bad = path.with_name(f"{path.name}.bad")
                temporary.replace(bad)
                _check(bad, file.hash, f"it was downloaded from {url} and kept for inspection")
    except OSError as error:  # all errors of requests are OSErrors
        reason = f"the download failed ({type(error).__name__}: {error})"
        raise _missing(card, key, reason) from None  # the chained errors of requests add nothing
    return path


class _Bounded(tqdm):
    """Progress of a download, which ends where it becomes too large, as a server need not say the size."""

    def __bool__(self):  # pooch asks whether there is one; tqdm would answer whether its size is known
        return True

    def update(self, n=1):
        if self.n + n > MOST_BYTES:
            raise OSError(f"the file holds more than {MOST_BYTES} bytes; fetch it by hand")
        return super().update(n)


def _check_address(url):
    """Refuse an address that leads from https to another scheme, or to a file of unusual size."""
    import requests  # of pooch, which does not import it either before it is needed

    with requests.get(url, stream=True, timeout=30) as answer:
        size = int(answer.headers.get("Content-Length") or 0)
    if urlsplit(url).scheme == "https" and urlsplit(answer.url).scheme != "https":
        raise OSError(f"{url} leads to {answer.url}, which is not encrypted")
    if size > MOST_BYTES:
        raise OSError(f"{url} holds {size} bytes, more than {MOST_BYTES}; fetch it by hand")


def _missing(card, key, reason):
    file = card.files[key]
    searched = ", ".join(str(folder) for folder in _folders(card))
    return FileNotFoundError(
        f"{card.name}: {file.path} is not available and {reason}. Searched {searched}. "
        f"Address: {card.url(key) or 'none'}. Expected hash: {file.hash or 'none'}. "
        f"If you have a copy, put it at <folder>/{file.path} and set EGRAFF_DATA=<folder>."
    )


def _check(path, expected, fate):
    """Raise ValueError if the hash of a file is not the expected one."""
    if expected is None:
        return
    found = file_hash(path, expected.split(":")[0])
    if found != expected:
        raise ValueError(
            f"{path} has the hash {found}, expected {expected}; nothing of it was used, and {fate}."
        )


def file_hash(path: str | Path, algorithm: str = "sha256") -> str:
    """Hash of a file, as ``sha256:<hex>`` or as ``git:<hex>``, the id of a blob in a git repository.

    The latter is the SHA-1 of ``b"blob <length>\\0"`` and the content. It is computed once in a process,
    unless the file changes.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     file_hash(file.name, "git")
    'git:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    if algorithm not in ("sha256", "git"):
        raise cards.unknown("hash algorithm", algorithm, ["sha256", "git"])
    return _file_hash(path, algorithm, paths.stamp(path))


@lru_cache(maxsize=4096)
def _file_hash(path, algorithm, stamp):
    digest = hashlib.sha256() if algorithm == "sha256" else hashlib.sha1()
    if algorithm == "git":
        digest.update(b"blob %d\0" % os.path.getsize(path))
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"
