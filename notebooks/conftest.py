"""Gives nbval kernels like the batch's; skips the notebooks of public datasets that are not at hand."""

import os
from contextlib import ExitStack
from pathlib import Path

import nbval.kernel
import pytest

from egraff_utils.running import batch

PUBLIC = {
    *("acac", "3bpa", "aspirin", "ethanol", "naphthalene", "salicylic_acid", "benzene"),
    *("lips", "lips20", "gete", "datasets"),
}


def pytest_collection_modifyitems(items):
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
