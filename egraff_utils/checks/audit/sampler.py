"""Were frames sampled with the method that labels them? Two thermometers, read with labels and a candidate.

In the canonical ensemble of a potential, the virial temperature of its own forces is that of the thermostat,
and in a nearly harmonic molecule so is the spread of its own energies. Forces of another potential fail the
first, whose mean is linear in every force error; energies of another potential may well pass the second.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import cards, data, records, reference
from egraff_utils.checks.audit.motion import standard_error, virial_temperature
from egraff_utils.config import Key
from egraff_utils.records import Metric

KIND = "sampler"


def spread_temperature(energies: Sequence[float] | np.ndarray, atoms: int) -> float:
    r"""Temperature at which a harmonic molecule would have this spread of potential energies, K.

    :math:`T = \sigma_E \sqrt{2 / (3N - 6)} / k_B`, since each of the :math:`3N - 6` vibrations contributes
    :math:`(k_B T)^2 / 2` to the variance.

    Parameters
    ----------
    energies
        Potential energies, shape ``(T,)``, eV.
    atoms
        Number of atoms.

    Examples
    --------
    >>> round(spread_temperature([0.0, 0.1], 9))
    179
    """
    return float(np.std(energies) * np.sqrt(2 / (3 * atoms - 6)) / units.kB)


def compare(
    dataset: str | Path,
    splits: Sequence[str],
    *,
    oracle: str | dict = "gfn2",
    most: int | None = None,
    campaign: str = "demo",
    seed: int = 0,
) -> records.Record:
    """Temperatures of splits by their labels and by a candidate for the method that sampled them.

    Parameters
    ----------
    dataset
        Name of a dataset of molecules, or path of a card.
    splits
        Names of splits with energies and forces.
    oracle
        Candidate, an entry as under ``oracle`` in a card.
    most
        Largest number of frames of every file of a split, evenly spread over them; by default all.
    campaign, seed
        Campaign of the record and seed in its key.

    Returns
    -------
    Record
        Kind ``sampler``, model ``reference``. Metrics for each split: ``virial_labels_<split>``,
        ``virial_candidate_<split>`` with 95 % intervals, ``spread_labels_<split>`` and
        ``spread_candidate_<split>``, K. Curves: ``labels_<split>`` and ``candidate_<split>``, energies
        relative to their mean, shape ``(n,)``, eV.

    Raises
    ------
    ValueError
        If the candidate is unknown or fails on a frame, or the dataset is periodic.
    """
    card = dataclasses.replace(cards.dataset(dataset), oracle=oracle)
    named = cards.oracle(oracle, where="of the candidate")
    parameters: dict[str, Any] = {"oracle": named.calculator, "arguments": named.arguments, "frames": most}
    parameters["splits"] = list(splits)
    return records.stored_or_made(
        Key(KIND, campaign, card.name, "reference", seed),
        parameters,
        lambda: _measured(card, {split: data.thinned(data.load(dataset, split), most) for split in splits}),
        data=data.digest(dataset, tuple(splits)),
    )


def _measured(card: cards.DatasetCard, frames: Mapping[str, Sequence[Atoms]]) -> records.Outcome:
    """Outcome with both thermometers of every split."""
    metrics, curves = [], {}
    for split, labelled in frames.items():
        for side, part in (("labels", labelled), ("candidate", _relabelled(card, labelled))):
            kelvin = virial_temperature(part)
            mean, error = kelvin.mean(), 1.96 * standard_error(kelvin)
            energies = np.array([atoms.get_potential_energy() for atoms in part])
            metrics += [
                Metric(f"virial_{side}_{split}", mean, "K", mean - error, mean + error, len(part)),
                Metric(
                    f"spread_{side}_{split}", spread_temperature(energies, len(part[0])), "K", n=len(part)
                ),
            ]
            curves[f"{side}_{split}"] = (energies - energies.mean()).astype(np.float32)
    return records.Outcome(metrics, curves)


def _relabelled(card: cards.DatasetCard, frames: Sequence[Atoms]) -> list[Atoms]:
    """Copies of frames with energies and forces of the card's oracle."""
    calculator, found = reference.calculator(card, frames[0]), []
    for atoms in frames:
        copy = atoms.copy()
        copy.calc = calculator
        values = {"energy": copy.get_potential_energy(), "forces": copy.get_forces()}
        copy.calc = SinglePointCalculator(copy, **values)
        found.append(copy)
    return found
