"""What do the pages of one kind have in common? The values that they glue, and checks of their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms

from egraff_utils import records
from egraff_utils.checks.horizon import divergence
from egraff_utils.config import Kind
from egraff_utils.report import plots, relaxation
from egraff_utils.report.levels import floor_of, perfect_of
from egraff_utils.report.simulations import forgetting_time
from egraff_utils.report.titles import dataset_title, model_title
from egraff_utils.report.values import metrics, say, value

ROLLOUT = ("wf", "fv", "temperature", "stable_fraction")
FOLLOWED = 100
"""Frame at which a rollout is compared with a reference that it starts from."""


def training_values(record) -> dict:
    """Values of a training page: what was spent, the errors, and the cost of a step."""
    spent = metrics(record, "seconds", "epochs", "parameters")
    errors = metrics(record, "force_mae", "energy_mae", "zero_force_mae")
    rates = {
        "gain": record["zero_force_mae"] / record["force_mae"],
        "ms-per-step": 1000 * record["seconds"] / record["steps"],
    }
    return {"dataset": dataset_title(record.dataset)} | spent | errors | rates


def rollout_values(record, training, floor) -> dict:
    """Values of a rollout page: the model, the length of the rollout, its metrics and their levels.

    ``stayed`` says how many replicas did not break.

    Parameters
    ----------
    record, training, floor
        Records of the rollout, of the training of its model, and of the floor.
    """
    ran = {"steps": record["steps"], "replicas": record.parameters["replicas"]}
    given = {"model": model_title(record.model)} | ran | metrics(training, "force_mae")
    level = perfect_of(records.read(record.campaign), record.kind, record.dataset, "fv")
    levels = metrics(floor, "wf", "fv", prefix="floor-") | {"perfect-fv": say(level, ".3g")}
    stayed = f"{ran['replicas'] - len(record.breaks)} of {ran['replicas']} replicas"
    return given | metrics(record, *ROLLOUT) | levels | {"stayed": stayed}


def following_values(record, floor) -> dict:
    """How long a rollout follows the reference on which it starts, and how far from it it goes.

    Parameters
    ----------
    record
        Record of a rollout with curves ``time`` (T,) fs and ``fv`` (R, T), and, Å, ``deviation`` (R, T) from
        the reference and ``rmsd_reference`` (R, T) of the reference from its start.
    floor
        Record of the floor.

    Returns
    -------
    dict
        ``arrival``, when FV, as geometric mean over replicas, reaches 90 % of its floor, as text; ``time``,
        fs, of frame :data:`FOLLOWED` or the last one; ``deviation`` and ``rmsd-reference``, Å, means over
        replicas at that time.
    """
    curves, time = record.curves, record.curves["time"]
    arrival = forgetting_time(record, floor["fv"])
    frame = min(FOLLOWED, len(time) - 1)
    missing = np.full((1, len(time)), np.nan)
    means = {
        name.replace("_", "-"): plots.replica_mean(curves.get(name, missing))[frame]
        for name in ("deviation", "rmsd_reference")
    }
    words = f"after {arrival:.0f} fs" if np.isfinite(arrival) else "at no time"
    return {"arrival": words, "time": time[frame]} | means


def live_values(record, own_noise, floor) -> dict:
    """How long a rollout follows a reference that runs beside it, and how warm both are, as texts.

    Parameters
    ----------
    record, own_noise, floor
        Records of the rollout, of the reference run again with noise of its own (or None), and of the floor.

    Returns
    -------
    dict
        ``followed``, until when FV, as geometric mean over replicas, is less than half of its floor;
        ``target`` of the thermostat and ``rerun``, the mean temperature of the reference with noise of its
        own; ``length`` of the run, and ``relaxation``, the time in which the thermostat forgets a start.
    """
    time, fv = record.curves["time"], record.curves["fv"]
    half = divergence.horizon_time(time, np.where(np.isfinite(fv), fv, 1.0), floor["fv"])
    target, rerun = record.parameters["temperature"], own_noise and own_noise["temperature"]
    followed = "to the end, {:.0f} fs, with a force violation below half of the saturation level"
    if np.isfinite(half):
        followed = "for {:.0f} fs, until its force violation is half of the saturation level"
    return {
        "followed": followed.format(half if np.isfinite(half) else time[-1]),
        "target": f"{target:.0f} K",
        "rerun": f"{rerun:.0f} K" if rerun else say(None),
        "length": f"{time[-1]:.0f} fs",
        "relaxation": f"{1 / relaxation.friction_rate(record):.0f} fs",
    }


def labelled_values(record, training) -> dict:
    """Values of a rollout whose own frames were labelled by the reference, as texts."""
    own = {metric.name: metric.value for metric in record.metrics}.get("oracle_force_mae")
    if own is None:  # too short, or a dataset whose reference method cannot be run
        return dict.fromkeys(("own-force", "own-ratio", "own-fv"), say(None))
    return {
        "own-force": f"{own:.0f} meV/Å",
        "own-ratio": f"{own / training['force_mae']:.1f} times",
        "own-fv": say(record["oracle_fv"], ".3f"),
    }


def dataset_values(record) -> dict:
    """Values of a dataset page: number of frames, error of predicting zero force, and levels, or NaN.

    ``saturation-fv`` is the saturation level of rollouts of the campaign, without any that of random pairs.
    """
    level, *_ = floor_of(records.read(record.campaign), str(Kind("rollout")), record.dataset, "fv")
    known = {name.replace("_", "-"): value(record, name) for name in ("floor_wf", "floor_fv")}
    return metrics(record, "frames_test", "zero_force_mae") | known | {"saturation-fv": level}


def made_over(card, split: str) -> float:
    """Time that the generated frames of a split cover, ps.

    Examples
    --------
    >>> from egraff_utils import cards
    >>> made_over(cards.dataset("aspirin_xtb"), "train")
    5.6
    """
    stages = [stage for stage in card.generate["stages"] if stage.get("split") == split]
    return sum(stage["frames"] * stage["stride"] for stage in stages) * card.timestep / 1000


def check_training(record) -> None:
    """Check what any training must satisfy, whatever its quality.

    Raises
    ------
    AssertionError
        If it does not; the message says what is wrong.
    """
    curves = record.curves
    assert np.all(np.diff(curves["seconds"]) >= 0), "time runs backwards"
    assert np.isfinite(curves["val_force_mae"]).all(), "a validation error is not finite"
    assert 0 < record["force_mae"] < 2 * record["zero_force_mae"], "worse than knowing nothing"
    assert record["energy_mae_per_atom"] < record["energy_mae"], "energy per atom exceeds energy"
    assert record["steps"] >= 1, "no step was taken"


def check_rollout(record) -> None:
    """Check what any rollout must satisfy, whatever its quality.

    Raises
    ------
    AssertionError
        If it does not; the message says what is wrong.
    """
    assert np.all(np.diff(record.curves["time"]) > 0), "time runs backwards"
    assert record["fv"] is None or 0 <= record["fv"] <= 1, "force violation lies between 0 and 1"
    for name in {"jsd", "bond_jsd", "angle_jsd", "spectrum_jsd"} & {metric.name for metric in record.metrics}:
        assert record[name] is None or 0 <= record[name] <= np.log(2), "the divergence is bounded by ln 2"
    assert 0 <= record["stable_fraction"] <= 1, "a fraction lies between 0 and 1"
    assert record.status in ("complete", "unstable"), record.message


def check_frames(card, frames: Mapping[str, Sequence[Atoms]], *, net: float = 0.1) -> None:
    """Check that splits share no frame and hold the elements of the card, and that test forces sum to zero.

    Parameters
    ----------
    card
        `DatasetCard` of the dataset.
    frames
        Split -> frames with forces, eV/Å.
    net
        Largest component of a sum of forces, in units of the largest component of a force.

    Raises
    ------
    AssertionError
        If a check fails; the message says what is wrong.
    """
    keys = [{atoms.positions.tobytes() for atoms in part} for part in frames.values()]
    assert sum(map(len, keys)) == len(set.union(*keys)), "a frame is in two splits"
    elements = {int(z) for part in frames.values() for atoms in part for z in atoms.numbers}
    assert elements == set(card.elements), f"{sorted(elements)} are not the elements of the card"
    forces = [atoms.get_forces() for atoms in frames["test"]]
    assert all(np.isfinite(values).all() for values in forces), "a force is not finite"
    total = max(np.abs(values.sum(0)).max() for values in forces)
    assert total < net * max(np.abs(values).max() for values in forces), (
        f"forces do not sum to zero: {total:.3f} eV/Å"
    )
