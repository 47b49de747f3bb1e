"""How certain is a number? Intervals by resampling, correlation in time, and floors from the reference.

Symbols: R replicas, K blocks of equal time, T frames.
"""

from egraff_utils.statistics.comparison import compact_letters, holm, told_apart
from egraff_utils.statistics.intervals import (
    autocorrelation_time,
    block_bootstrap_interval,
    bootstrap_interval,
    expanded_tail,
    fraction_interval,
    replica_interval,
    standard_error,
)
from egraff_utils.statistics.saturation import floor, floor_ev_fv, floor_rdf

__all__ = [
    "autocorrelation_time",
    "block_bootstrap_interval",
    "bootstrap_interval",
    "compact_letters",
    "expanded_tail",
    "floor",
    "floor_ev_fv",
    "floor_rdf",
    "fraction_interval",
    "holm",
    "replica_interval",
    "standard_error",
    "told_apart",
]
