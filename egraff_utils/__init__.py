"""Support code of the benchmark: data, graphs, force fields, training, rollouts, metrics and records.

Importing the package is cheap: submodules that need torch import it themselves, and the modules in
:data:`DOOR` are imported where they are first asked for.

Examples
--------
>>> from egraff_utils import floors
>>> floors.__name__
'egraff_utils.checks.floors'
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

DOOR = {
    "calculator": "md.calculator",
    "rollout": "md.rollout",
    "audit": "checks.audit",
    "floors": "checks.floors",
    "gate": "checks.gate",
    "horizon": "checks.horizon",
    "batch": "running.batch",
    "plots": "report.plots",
    "tables": "report.tables",
}
"""Modules that users name most, which the package offers as if they stood outside their rooms."""


def __getattr__(name: str) -> ModuleType:
    if name not in DOOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{DOOR[name]}")
