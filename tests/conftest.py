"""Skips what needs the public datasets where they are not at hand."""

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    folder = os.environ.get("EGRAFF_DATA")
    if folder and Path(folder).is_dir():
        return
    reason = f"EGRAFF_DATA={folder} is no folder" if folder else "EGRAFF_DATA is not set"
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=reason))
