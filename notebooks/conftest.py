"""Skips, under nbval, the notebooks of public datasets where the datasets are not at hand."""

import os
from pathlib import Path

import pytest

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
