r"""Do seeds that disagree know that they are wrong? The spread of a committee beside its errors.

The members are the seeds of one model on one dataset. With the force of member :math:`m` on a component
:math:`k`, their mean :math:`\bar f_k` and the label :math:`t_k`,

.. math::

    \sigma_k^2 = \frac{1}{M - 1} \sum_m (f_{mk} - \bar f_k)^2, \qquad
    e_k^2 = \frac{1}{M} \sum_m (f_{mk} - t_k)^2

the ratio of the sums of :math:`\sigma_k^2` and :math:`e_k^2` is the share of the squared error that differs
from seed to seed. The rest is common to all seeds, and no spread can show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from scipy import stats

from egraff_utils import accuracy, cards, data, records, weights
from egraff_utils.config import Key, Kind
from egraff_utils.records import Metric, Outcome, Record
from egraff_utils.units import EV_TO_MEV


@dataclass(frozen=True)
class CommitteeConfig(accuracy.TransferConfig):
    """The seeds of a model and the frames on which they are asked; ``seed`` is that of the record, zero."""

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """:class:`~egraff_utils.config.Kind` ``committee`` with the name of the shift, or ``test``."""
        return super().kind._replace(act="committee")


def seeds(config: CommitteeConfig) -> list[int]:
    """Seeds that are trained; none of a model that is a calculator, whose seeds do not differ."""
    return [] if cards.is_calculator(config.model) else weights.seeds(_training(config, 0))


def judge_if_any(config: CommitteeConfig) -> Record | None:
    """The record of :func:`judge`, or ``None`` where fewer than two seeds are trained."""
    return judge(config) if len(seeds(config)) > 1 else None


def judge(config: CommitteeConfig) -> Record:
    """Spread and errors of the forces of all trained seeds on a set of frames.

    Parameters
    ----------
    config
        :class:`CommitteeConfig`.

    Returns
    -------
    Record
        Kind ``committee_<shift>``, with the metrics and curves of `compare`. A stored record is returned if
        it was made with the same weights and frames.

    Raises
    ------
    ValueError
        If fewer than two seeds are trained; the message says how to train one.
    """
    config, trained = replace(config, seed=0), seeds(config)
    if len(trained) < 2:
        raise ValueError(
            f"a committee of {config.model} on {config.dataset} in campaign {config.campaign} needs two "
            f"seeds or more, and {len(trained)} is trained; train another: egraff train {config.model} "
            f"{config.dataset} --campaign {config.campaign} --seed {max(trained, default=-1) + 1}"
        )
    card = cards.dataset(config.target or config.dataset)
    config = replace(config, target=config.target and card.name)
    frames = data.thinned(data.checked(card, (config.split,))[config.split], config.frames)
    members = [_training(config, seed) for seed in trained]
    digests = {
        "frames": data.digest(card, (config.split,)),
        "weights": records.digest(*[weights.digest(member) for member in members]),
    }

    def make() -> Outcome:
        torch.set_num_threads(config.threads)
        fields = [weights.load(member).to(config.device) for member in members]
        forces = [accuracy.predict(field, frames)[1] for field in fields]
        metrics, curves = compare(frames, forces)
        return Outcome(metrics, curves, provenance={"seeds": trained})

    return records.run(config, make, **digests)


def compare(
    frames: Sequence[Atoms], forces: Sequence[Sequence[np.ndarray]]
) -> tuple[list[Metric], dict[str, np.ndarray]]:
    r"""Metrics and curves of the predictions of several members.

    Parameters
    ----------
    frames
        S frames with forces, eV/Å.
    forces
        Predictions of each of M members, a list of S arrays of shape (N, 3), eV/Å.

    Returns
    -------
    metrics
        ``members``; ``committee_mae``, the mean absolute error of the mean prediction, and ``member_mae``,
        that of a member, both meV/Å; ``spread``, the root mean square of :math:`\sigma_k`, meV/Å;
        ``spread_share``, the share of the squared error that differs from seed to seed; and
        ``spread_correlation``, the rank correlation over frames of spread and error.
    curves
        ``committee_spread`` and ``committee_error``, root mean squares of the spread and of the error of the
        mean, over the components of each frame, shape (S,), meV/Å.

    Examples
    --------
    Two members that are off by 0.1 eV/Å to either side, and one way:

    >>> from ase.calculators.singlepoint import SinglePointCalculator
    >>> atoms = Atoms("H")
    >>> atoms.calc = SinglePointCalculator(atoms, forces=[[0.0, 0.0, 0.0]])
    >>> def share(*values):
    ...     metrics, _ = compare([atoms], [[np.full((1, 3), value)] for value in values])
    ...     return next(metric.value for metric in metrics if metric.name == "spread_share")
    >>> share(0.1, -0.1), share(0.1, 0.1)
    (2.0, 0.0)
    """
    predicted = np.array([np.concatenate([part.ravel() for part in member]) for member in forces])
    truth = np.concatenate([atoms.get_forces().ravel() for atoms in frames])
    mean, variance = predicted.mean(0), predicted.var(0, ddof=1)
    ends = np.cumsum([3 * len(atoms) for atoms in frames])[:-1]
    by_frame = {
        "committee_spread": [np.sqrt(part.mean()) for part in np.split(variance, ends)],
        "committee_error": [np.sqrt(part.mean()) for part in np.split((mean - truth) ** 2, ends)],
    }
    curves = {name: EV_TO_MEV * np.array(values) for name, values in by_frame.items()}
    squares = ((predicted - truth) ** 2).mean()
    metrics = [
        Metric.of("members", float(len(forces))),
        Metric.of("committee_mae", EV_TO_MEV * np.abs(mean - truth).mean()),
        Metric.of("member_mae", EV_TO_MEV * np.abs(predicted - truth).mean()),
        Metric.of("spread", EV_TO_MEV * np.sqrt(variance.mean())),
        Metric.of("spread_share", variance.mean() / squares if squares else None),
        Metric.of("spread_correlation", _rank_correlation(*curves.values()), n=len(frames)),
    ]
    return metrics, curves


def told_apart(home: Record, away: Record) -> float:
    """Probability that the spread on a shifted frame exceeds that on a frame at home; a tie counts half.

    This is the area under the ROC curve of a detector of shifted frames that looks at the spread alone.

    Examples
    --------
    >>> from types import SimpleNamespace as Record
    >>> def record(*values):
    ...     return Record(curves={"committee_spread": np.array(values)})
    >>> told_apart(record(1.0, 2.0), record(2.0, 3.0))
    0.875
    """
    inside, outside = (record.curves["committee_spread"] for record in (home, away))
    return float(stats.mannwhitneyu(outside, inside).statistic / (len(inside) * len(outside)))


def _rank_correlation(spread, error):
    constant = len(spread) < 3 or np.ptp(spread) == 0 or np.ptp(error) == 0
    return None if constant else float(stats.spearmanr(spread, error).statistic)


def _training(config, seed):
    return Key("training", config.campaign, cards.dataset(config.dataset).name, config.model, seed)
