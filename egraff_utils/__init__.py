"""Support code of the benchmark: data, graphs, force fields, training, rollouts, metrics and records.

Importing the package is cheap: submodules that need torch import it themselves.
"""

__version__ = "0.1.0"
