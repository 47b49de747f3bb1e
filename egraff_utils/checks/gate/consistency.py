"""Are energy and forces of a frame consistent with each other, and equal in all its guises?"""

from collections.abc import Sequence

import ase
import numpy as np
from ase.calculators.calculator import Calculator

from egraff_utils.checks.gate.guises import FAR, Guise


def predict(calculator: Calculator, atoms: ase.Atoms) -> tuple[float, np.ndarray]:
    """Energy, eV, and forces, shape ``(N, 3)``, eV/Å, of a structure."""
    atoms = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, calculator=calculator)
    return float(atoms.get_potential_energy()), np.array(atoms.get_forces(), dtype=float)


def force_scale(calculator: Calculator, frames: Sequence[ase.Atoms]) -> float:
    """Root mean square of a force component over some frames, eV/Å.

    Raises
    ------
    ValueError
        If it is below 1e-3 eV/Å, as errors of forces cannot be measured near a minimum.
    """
    forces = np.concatenate([predict(calculator, atoms)[1].ravel() for atoms in frames])
    scale = np.sqrt(np.square(forces).mean())
    if scale < 1e-3:
        raise ValueError(
            f"forces vanish on these frames ({scale:.1g} eV/Å); displace atoms, as by rattle(0.1)"
        )
    return scale


def not_finite(calculator: Calculator, frames: Sequence[ase.Atoms]) -> int:
    """Number of frames with an energy or a force that is not finite."""
    found = [predict(calculator, atoms) for atoms in frames]
    return sum(not (np.isfinite(energy) and np.isfinite(forces).all()) for energy, forces in found)


def gradient_error(
    calculator: Calculator, atoms: ase.Atoms, *, step: float = 1e-4, directions: int = 5, seed: int = 0
) -> float:
    r"""Deviation of the forces from minus the gradient, relative to their length; median over directions.

    .. math:: \frac{|(E(x + h d) - E(x - h d)) / 2h + F \cdot d|}{|F|}

    where d is standard normal. The median ignores a direction in which a pair happens to cross a cutoff at
    which the energy jumps, as jumps are a separate check.
    """
    forces = predict(calculator, atoms)[1]
    rng, errors = np.random.default_rng(seed), []
    for direction in rng.normal(size=(directions, *forces.shape)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions = atoms.positions + sign * step * direction
            energies.append(predict(calculator, moved)[0])
        slope = (energies[0] - energies[1]) / (2 * step)
        errors.append(abs(slope + np.sum(forces * direction)) / np.linalg.norm(forces))
    return np.median(errors)


def deviation(calculator: Calculator, atoms: ase.Atoms, guise: Guise, scale: float) -> float:
    """Largest deviation of forces and energy per copy in another guise, in units of ``scale``, eV/Å."""
    energy, forces = predict(calculator, atoms)
    other, found = predict(calculator, guise.atoms)
    apart = abs(other - guise.copies * energy) / guise.copies
    return np.maximum(np.abs(found - guise.forces(forces)).max(), apart) / scale


def isolated_error(calculator: Calculator, atoms: ase.Atoms, scale: float) -> float:
    """Deviation of two distant atoms of each element from single atoms, in units of ``scale``, eV/Å."""
    numbers = np.repeat(np.unique(atoms.numbers), 2)
    places = FAR * np.arange(len(numbers))[:, None] * [1.0, 0, 0]
    alone = [predict(calculator, ase.Atoms([z])) for z in numbers]
    energy, forces = predict(calculator, ase.Atoms(numbers, places))
    apart = abs(energy - sum(e for e, _ in alone))
    return np.max([apart, np.abs(forces).max(), *(np.abs(f).max() for _, f in alone)]) / scale
