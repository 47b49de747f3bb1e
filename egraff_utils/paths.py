"""Where are files stored? The folders of the project, each of which an environment variable can move."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _folder(variable, default):
    value = os.environ.get(variable)
    return Path(value).expanduser().resolve() if value else default


def results() -> Path:
    """Folder of records: ``EGRAFF_RESULTS``, else ``results/``."""
    return _folder("EGRAFF_RESULTS", ROOT / "results")


def runs() -> Path:
    """Folder of executed notebooks and checkpoints: ``EGRAFF_RUNS``, else ``runs/``."""
    return _folder("EGRAFF_RUNS", ROOT / "runs")


def data() -> list[Path]:
    """Folders searched for source files, in order: ``EGRAFF_DATA`` (may be read-only), then ``data/``."""
    mirror = os.environ.get("EGRAFF_DATA")
    return [Path(mirror).expanduser().resolve(), ROOT / "data"] if mirror else [ROOT / "data"]


def generated() -> Path:
    """Folder of generated datasets and trajectories: ``EGRAFF_GENERATED``, else ``data/generated/``."""
    return _folder("EGRAFF_GENERATED", ROOT / "data" / "generated")


def cache() -> Path:
    """Folder of files that can be recreated, such as compiled code: ``EGRAFF_CACHE``, else ``.cache/``."""
    return _folder("EGRAFF_CACHE", ROOT / ".cache")
