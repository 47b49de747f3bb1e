"""Skips what lacks its data and what is of another day, and lets tests be interrupted."""

import os
import signal
from collections import defaultdict
from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from egraff_utils.records import COLUMNS


def pytest_configure():
    # a shell that starts tests in the background ignores interrupts, and so would the commands under test
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    skip_without_data(items)
    if not os.environ.get("EGRAFF_TEST_ALL"):
        skip_of_other_days(items, date.today().toordinal())


def skip_of_other_days(items, today):
    """Leave of the tests marked ``rare(days)`` those of today, so that all of them run within these days.

    Tests with one name behind the days, ``rare(days, name)``, run on the same day.
    """
    places = defaultdict(dict)
    for item in items:
        if marker := item.get_closest_marker("rare"):
            days, *name = marker.args
            place = places[days].setdefault(name[0] if name else item, len(places[days]))
            if (place - today) % days:
                item.add_marker(pytest.mark.skip(reason="is of another day; EGRAFF_TEST_ALL=1 runs all"))


def skip_without_data(items):
    folder = os.environ.get("EGRAFF_DATA")
    if folder and Path(folder).is_dir():
        return
    reason = f"EGRAFF_DATA={folder} is no folder" if folder else "EGRAFF_DATA is not set"
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def frame():
    """Metrics of three models on ethanol, as ``records.read`` gives them."""
    rows = [
        ("dataset", "ethanol", "reference", "floor_fv", 0.7, "1", None, None),
        ("dataset", "ethanol", "reference", "zero_force_mae", 1000.0, "meV/Å", None, None),
    ]
    for place, model in enumerate(("nequip", "mace", "equiformer")):
        rows += [
            ("training", "ethanol", model, "force_mae", 10.0 * 10**place, "meV/Å", None, None),
            ("training", "ethanol", model, "energy_mae", 5.0 - place, "meV", None, None),
            ("rollout", "ethanol", model, "fv", 0.5 + 0.1 * place, "1", 0.4, 0.8),
            ("rollout", "ethanol", model, "stable_fraction", 1.0, "1", None, None),
        ]
    names = ["kind", "dataset", "model", "metric", "value", "unit", "low", "high"]
    frame = pd.DataFrame(rows, columns=names).reindex(columns=COLUMNS)
    return frame.astype({"value": float, "low": float, "high": float})
