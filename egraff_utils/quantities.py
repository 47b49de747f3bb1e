"""What is measured? One row per metric gives its names, unit, direction, floor, and place in the paper.

Records hold names and numbers. Everything else that tables, axes and intervals need to know about a metric is
defined here and nowhere else, so that a new metric needs only a function that computes it and a row.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

DIMENSIONLESS = "dimensionless"
GROUPS = ("accuracy", "structure", "dynamics", "cost")
"""Groups of the leaderboard's columns, in order."""


@dataclass(frozen=True)
class Published:
    """Place of a metric in the tables of the paper."""

    table: str
    """Number of the table that holds it for all datasets."""
    column: str
    """Column of that table, and of other tables with this metric."""
    factor: float = 1.0
    """Unit of the table in units of the records."""
    std: str = ""
    """Column of the standard deviation; empty if there is none."""


@dataclass(frozen=True)
class Quantity:
    """One metric, with everything that tables, axes and intervals need to know about it."""

    metric: str
    """Name in the records."""
    unit: str = "1"
    """Unit in the records."""
    title: str = ""
    """Name for readers where it stands alone; by default the name in the records."""
    _: KW_ONLY
    short: str = ""
    """Name next to other metrics, in heads and on axes; by default the title."""
    long: str = ""
    """Name in full, for the axis of a curve over simulation time; by default the short name."""
    column: str = ""
    """Name in the head of a table, if it differs from the short name."""
    column_unit: str = ""
    """Unit in the head of a table; by default that of the records."""
    spoke: str = ""
    """Name at a spoke of a radial plot."""
    factor: float = 1.0
    """Unit of the records in units of the head."""
    digits: int = 3
    """Number of decimal places, within at most four significant digits."""
    lower_is_better: bool | None = True
    """Whether a lower value is better; ``None`` if neither direction is."""
    count: bool = False
    """Whether the metric is a count."""
    kind: str = "rollout"
    """Kind of the records that hold the metric. ``errors`` are in ``training`` for the test set, and in
    ``errors_<set>`` for another set."""
    group: str = "dynamics"
    """One of `GROUPS`, which gives the colours in a table."""
    leaderboard: bool = False
    """Whether the leaderboard has a column for the metric."""
    average: str = ""
    """How the value of a replica is obtained: as the ``geometric`` mean of the curve of this name over all
    frames but the first, which is the shared start; as its ``arithmetic`` mean over all frames; as its mean
    over the last tenth (``late``), as a function of its distribution of this name, g(r) (``rdf``), ``bonds``,
    ``angles`` or ``spectrum``, or in another way (``run``). Empty if a replica has no value."""
    interval: str = "linear"
    """Scale of the interval over replicas: ``linear``, ``log``, or ``fraction`` for the share of a run; empty
    if there is no interval."""
    saturation: str = ""
    """Title of the score of the test frames against themselves in the record of a dataset. Empty if there is
    no saturation level, which takes the rollout into account and has records of the kind ``floor``."""
    best_at_zero: bool = False
    """Whether a value below the range of the saturation level is no better than one inside it."""
    ceiling: str = ""
    """Metric of predicting zero, which is an upper bound."""
    published: Published | None = None

    @property
    def name(self) -> str:
        """The title, or the name in the records."""
        return self.title or self.metric

    @property
    def short_name(self) -> str:
        """The short name, or the title."""
        return self.short or self.name

    @property
    def unit_text(self) -> str:
        """The unit for readers, with ``count`` or ``dimensionless`` in place of 1."""
        return self.unit if self.unit != "1" else "count" if self.count else DIMENSIONLESS

    @property
    def axis(self) -> str:
        """Title and unit, for an axis."""
        return f"{self.name} ({self.unit_text})"

    @property
    def label(self) -> str:
        """Short name and unit, for an axis."""
        return f"{self.short_name} ({self.unit_text})"

    @property
    def written_out(self) -> str:
        """Long name and unit."""
        return f"{self.long or self.short_name} ({self.unit_text})"

    @property
    def head_unit(self) -> str:
        """Unit in the head of a table."""
        return self.column_unit or self.unit_text

    @property
    def head(self) -> str:
        """Head of the metric's column in a table, with the unit."""
        return f"{self.column or self.short_name} ({self.head_unit})"


_ERROR: dict[str, Any] = {"kind": "errors", "group": "accuracy"}
_RDF: dict[str, Any] = {
    "group": "structure",
    "average": "rdf",
    "interval": "log",
    "best_at_zero": True,
    "leaderboard": True,
}
_BONDED: dict[str, Any] = _RDF | {"leaderboard": False}  # the board is as wide as a page
_VIOLATION: dict[str, Any] = {"average": "geometric", "interval": "log", "leaderboard": True}
_HORIZON: dict[str, Any] = {"kind": "horizon", "lower_is_better": False}
_SEEDS: dict[str, Any] = {"kind": "committee", "group": "accuracy"}
_COST: dict[str, Any] = {"group": "cost"}
_COUNT: dict[str, Any] = {"count": True, "digits": 0}
_DATASET: dict[str, Any] = {"kind": "dataset", "lower_is_better": None}

# fmt: off
QUANTITIES = (
    # errors of frames
    Quantity("force_mae", "meV/Å", "Force MAE", **_ERROR, digits=2, spoke="force", leaderboard=True,
             ceiling="zero_force_mae", published=Published("1", "force_mae_mev_per_ang")),
    Quantity("energy_mae", "meV", "Energy MAE", **_ERROR, digits=2, spoke="energy", leaderboard=True,
             published=Published("1", "energy_mae_mev")),
    Quantity("energy_mae_per_atom", "meV/atom", "Energy MAE per atom", **_ERROR),
    Quantity("energy_mae_shifted", "meV", "Energy MAE without its offset", **_ERROR),
    Quantity("energy_offset", "meV", "Energy offset", **_ERROR, lower_is_better=None),
    Quantity("zero_force_mae", "meV/Å", "Force MAE of predicting zero", **_ERROR),
    Quantity("stress_mae", "meV/Å^3", "Stress MAE", **_ERROR, digits=3),
    Quantity("zero_stress_mae", "meV/Å^3", "Stress MAE of predicting zero", **_ERROR, digits=3),
    Quantity("force_slope", "1", "Slope of the forces", group="accuracy", kind="training", digits=2,
             lower_is_better=None),
    # simulations
    Quantity("wf", "%", "Wright's factor", **_RDF, short="WF", digits=2, spoke="WF",
             saturation="Wright's factor, half against half", published=Published("2", "wf_percent")),
    Quantity("jsd", "nats", "JSD", **_RDF, digits=5, spoke="JSD", saturation="JSD, half against half"),
    Quantity("jsd_raw", "nats", "JSD as published", **_RDF, spoke="JSD",
             saturation="JSD as published, half against half", published=Published("2", "jsd")),
    Quantity("bond_jsd", "nats", "JSD of bond lengths", **_BONDED | {"average": "bonds"}, digits=5,
             saturation="JSD of bond lengths, half against half"),
    Quantity("angle_jsd", "nats", "JSD of bond angles", **_BONDED | {"average": "angles"}, digits=5,
             saturation="JSD of bond angles, half against half"),
    Quantity("spectrum_jsd", "nats", "JSD of vibrational spectra", short="JSD of spectra", digits=4,
             average="spectrum", interval="log"),
    Quantity("ev", "1", "EV", long="Energy violation EV", average="run", interval="log"),
    Quantity("ev_root", "1", "Root EV", **_VIOLATION, long="Root energy violation", spoke="EV",
             column_unit="1e-5", factor=1e5, saturation="Root EV, random pairs",
             published=Published("3", "ev_gmean_1e-5", 1e-5, "ev_std_1e-5")),
    Quantity("fv", "1", "FV", **_VIOLATION, long="Force violation FV", spoke="FV",
             saturation="FV, random pairs", published=Published("3", "fv_gmean", std="fv_std")),
    Quantity("rmsd", "Å", "RMSD", long="Root mean square displacement", lower_is_better=None,
             average="late", interval="log", saturation="RMSD of the reference"),
    Quantity("deviation", "Å", "Deviation from the reference", short="Deviation",
             column="Deviation from the reference", average="late", interval="log"),
    Quantity("temperature", "K", "Temperature", digits=0, lower_is_better=None, average="arithmetic"),
    Quantity("horizon_driven", "fs", "Horizon", **_HORIZON, short="Horizon, reference's friction",
             column="Horizon", digits=1, leaderboard=True),
    Quantity("horizon_langevin", "fs", **_HORIZON, short="Horizon, thermostat"),
    Quantity("horizon_nve", "fs", **_HORIZON, short="Horizon, NVE"),
    Quantity("stable_steps", "1", "Stable steps", **_COUNT, lower_is_better=False,
             average="run", interval=""),
    Quantity("stable_fraction", "1", "Stable fraction", digits=2, lower_is_better=False, leaderboard=True,
             average="run", interval="fraction"),
    Quantity("energy_drift", "meV/atom/ps", "Slope of the potential energy", lower_is_better=None,
             average="run"),
    Quantity("pressure", "GPa", "Pressure", digits=2, lower_is_better=None),
    Quantity("pressure_reference", "GPa", "Pressure of the reference frames", digits=2, lower_is_better=None),
    Quantity("reference_contiguous", "1", "Reference contiguous in time", lower_is_better=None),
    # seeds of a model, as a committee
    Quantity("members", "1", "Members of the committee", digits=0, count=True, lower_is_better=None,
             kind="committee"),
    Quantity("committee_mae", "meV/Å", "Force MAE of the committee", **_SEEDS, digits=1),
    Quantity("member_mae", "meV/Å", "Force MAE of a member", **_SEEDS, digits=1),
    Quantity("spread", "meV/Å", "Spread of the members", **_SEEDS, digits=1),
    Quantity("spread_share", "1", "Share of the squared error that seeds differ in", **_SEEDS, digits=2),
    Quantity("spread_correlation", "1", "Rank correlation of spread and error", **_SEEDS, digits=2),
    # a model on frames of its own simulations
    Quantity("oracle_force_mae", "meV/Å", "Force MAE on the model's own frames", group="accuracy"),
    Quantity("oracle_energy_mae_per_atom", "meV/atom", "Energy MAE per atom on the model's own frames",
             group="accuracy"),
    Quantity("oracle_energy_mae_shifted_per_atom", "meV/atom",
             "Energy MAE per atom without its offset, own frames", group="accuracy"),
    Quantity("oracle_fv", "1", "FV on the model's own frames"),
    Quantity("oracle_ev_root", "1", "Root EV on the model's own frames"),
    Quantity("oracle_labelled", "1", "Own frames that the reference could label", lower_is_better=False),
    # costs; a minute per 1000 steps is 60 ms per step
    Quantity("seconds_per_epoch", "s", "Time per epoch", **_COST, kind="training", digits=2, spoke="training",
             column="Training", column_unit="s/epoch", leaderboard=True,
             published=Published("4", "train_min_per_epoch", 60.0)),
    Quantity("ms_per_step", "ms", "Time per MD step", **_COST, digits=1, spoke="MD",
             column="MD", column_unit="ms/step", leaderboard=True,
             published=Published("4", "inference_min_per_1000_steps", 60.0)),
    Quantity("replica_steps_per_second", "1/s", "Speed, all replicas", **_COST, lower_is_better=False),
    Quantity("steps", "1", "Steps", **_COST, **_COUNT, kind="training", lower_is_better=None),
    Quantity("epochs", "1", "Epochs", **_COST, **_COUNT, kind="training", lower_is_better=None),
    Quantity("seconds", "s", "Training time", **_COST, kind="training", lower_is_better=None),
    Quantity("compile_seconds", "s", **_COST, kind="training"),
    Quantity("parameters", "1", "Trainable parameters", **_COST, **_COUNT, kind="training",
             lower_is_better=None),
    # datasets
    Quantity("virial_temperature", "K", "Virial temperature", **_DATASET),
    Quantity("force_rms", "meV/Å", "Root mean square of the force components", **_DATASET),
    Quantity("energy_std", "meV", "Standard deviation of the energies", **_DATASET),
    Quantity("frames_train", "1", "Training frames", **_DATASET, **_COUNT),
    Quantity("frames_val", "1", "Validation frames", **_DATASET, **_COUNT),
    Quantity("frames_test", "1", "Test frames", **_DATASET, **_COUNT),
)
# fmt: on
"""All metrics that describe models, simulations and datasets; those of a rollout are in the order of its
record. Checks have separate tables, ``gate.CHECKS`` and ``audit.CHECKS``."""

SATURATING = tuple(quantity.metric for quantity in QUANTITIES if quantity.saturation)
"""Metrics with a saturation level."""

COSTS = tuple(quantity.metric for quantity in QUANTITIES if quantity.group == "cost")
"""Metrics of the time that a program takes, and of its size."""

COLUMNS = tuple(
    sorted(
        (quantity for quantity in QUANTITIES if quantity.leaderboard),
        key=lambda quantity: (GROUPS.index(quantity.group), quantity.published is None),
    )
)
"""Columns of the leaderboard; within a group, those that are in the paper come first."""

_LEVELS = (
    Quantity(f"floor_{q.metric}", q.unit, q.saturation, kind="dataset") for q in QUANTITIES if q.saturation
)
_BY_NAME = {quantity.metric: quantity for quantity in (*QUANTITIES, *_LEVELS)}

METRIC_NAMES = {name: quantity.title for name, quantity in _BY_NAME.items() if quantity.title}
"""Titles of the metrics that have one, including those of a dataset's record (``floor_wf``)."""


def of(metric: str, unit: str | None = None) -> Quantity:
    """The quantity of a metric, which is made from its name and unit if the table does not hold it.

    Examples
    --------
    >>> of("ev_root").head, of("ev_root").label, of("mine", "eV").head
    ('Root EV (1e-5)', 'Root EV (dimensionless)', 'mine (eV)')
    """
    return _BY_NAME[metric] if metric in _BY_NAME else Quantity(metric, unit or "1")


def is_known(metric: str) -> bool:
    """Whether the table holds the metric, or the metric of which this is the saturation level."""
    return metric in _BY_NAME


def averaged() -> dict[str, str]:
    """Metrics with one value per replica of a rollout -> how it is obtained, in the order of the record.

    Examples
    --------
    >>> list(averaged().items())[4:8]
    [('angle_jsd', 'angles'), ('spectrum_jsd', 'spectrum'), ('ev', 'run'), ('ev_root', 'geometric')]
    """
    return {quantity.metric: quantity.average for quantity in QUANTITIES if quantity.average}


@dataclass
class Metric:
    """One number with its unit and, where known, its 95 % interval and how many values it averages."""

    name: str
    value: float | None
    """``None`` for a missing value, or one that is not finite."""
    unit: str
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @classmethod
    def of(
        cls,
        name: str,
        value: float | None,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
    ) -> Metric:
        """Metric whose unit is that of its row.

        >>> Metric.of("wf", 2.5).unit
        '%'
        """
        return cls(name, value, of(name).unit, low, high, n)

    def __post_init__(self) -> None:
        self.value, self.low, self.high = (_number(v) for v in (self.value, self.low, self.high))


def _number(value: float | None) -> float | None:
    """The value as a float, or ``None`` for a missing or non-finite value, which JSON cannot hold."""
    return float(value) if value is not None and math.isfinite(value) else None


def shown(value: float | None) -> str:
    """Text of a value with four digits; a dash for a missing one."""
    return "—" if value is None else f"{value:.4g}"


def interval_text(metric: Metric) -> str:
    """Interval of a metric as text; an unknown end, such as that of a censored time, is left open.

    >>> interval_text(Metric("horizon_nve", 100, "fs", low=80, high=None))
    '80 and up'
    """
    if metric.low is None:
        return "" if metric.high is None else f"up to {metric.high:.4g}"
    return f"{metric.low:.4g} " + ("and up" if metric.high is None else f"to {metric.high:.4g}")
