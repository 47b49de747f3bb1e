"""Gives nbval kernels like the batch's; skips notebooks that lack their data and those of another day."""

import os
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import nbval.kernel
import pytest

from egraff_utils.running import batch

PUBLIC = {
    *("acac", "3bpa", "aspirin", "ethanol", "naphthalene", "salicylic_acid", "benzene"),
    *("lips", "lips20", "gete", "datasets"),
}
DAYS = {"datasets": 3, "rollout": 3, "report": 2}
"""Folder of many notebooks that share their code -> days in which each of them runs once."""


def pytest_collection_modifyitems(items):
    skip_without_data(items)
    if not os.environ.get("EGRAFF_TEST_ALL"):
        skip_of_other_days(items, date.today().toordinal())


def skip_of_other_days(items, today):
    """Leave of the folders in ``DAYS`` those of today, by their place in the folder."""
    for item in items:
        folder = item.path.parent
        days = DAYS.get(folder.name)
        if days and (sorted(folder.glob("*.ipynb")).index(item.path) - today) % days:
            item.add_marker(pytest.mark.skip(reason="is of another day; EGRAFF_TEST_ALL=1 runs all"))


def skip_without_data(items):
    if os.environ.get("EGRAFF_DATA") and Path(os.environ["EGRAFF_DATA"]).is_dir():
        return
    skip = pytest.mark.skip(reason="needs a public dataset and EGRAFF_DATA is not set to a mirror")
    for item in items:
        public = item.path.stem in PUBLIC or item.path.parent.name == "ood"
        if item.path.suffix == ".ipynb" and public:
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop():
    make = nbval.kernel.KernelManager
    with ExitStack() as blocks, pytest.MonkeyPatch.context() as patch:

        def make_on_sockets(**settings):
            return make(config=blocks.enter_context(batch.kernel_sockets()), **settings)

        patch.setattr(nbval.kernel, "KernelManager", make_on_sockets)
        return (yield)
