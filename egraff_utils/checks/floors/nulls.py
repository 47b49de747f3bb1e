"""What do models without physics score? A frozen frame, an ideal gas, and an Einstein crystal."""

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms, units
from ase.geometry import find_mic

from egraff_utils import metrics, structure
from egraff_utils.checks.floors.sample import DRAWS, Extent, Sample, violations
from egraff_utils.md import averages

STAYS = 1 / 3
"""Largest root mean square displacement of an atom that stays at its site, as a fraction of the distance to
its nearest neighbour. Melting begins near 0.15 (Lindemann); a rotating methyl group reaches 0.6."""
GAS_FRAMES = 2000
"""Number of frames of an ideal gas from which its bond lengths and angles are taken."""


def frozen(sample: Sample, extent: Extent, *, draws: int = DRAWS, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores of a frame that does not move, for starts drawn at random."""
    rng, total = np.random.default_rng(seed), len(sample.energies)
    starts = rng.integers(total, size=(draws, extent.replicas))
    distributions = sample.distributions
    reference = _means(distributions)
    scores = [_scores({n: f[t] for n, f in distributions.items()}, reference) for t in range(total)]
    found = {f"draws_{name}": np.array([s[name] for s in scores])[starts].mean(1) for name in scores[0]}

    def pairs(start: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        ahead = np.arange(1, count + 1) if sample.ordered else rng.integers(1, total, size=(draws, count))
        return start[:, None], (start[:, None] + ahead) % total

    compared = [pairs(start, count) for start, count in zip(starts.T, extent.compared, strict=True)]
    found |= violations(sample.energies, sample.forces, compared)
    return found | {"draws_rmsd": np.zeros(draws)}


def recalled_errors(
    atoms: Sequence[Atoms], kept: Sequence[int] | np.ndarray, asked: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Force errors of a memory: it answers with the forces of the nearest of the frames that it kept.

    Frames are nearest by the mean distance that an atom has moved, by minimum image. What is small here is a
    small test error that needs no physics.

    Parameters
    ----------
    atoms
        ``list[ase.Atoms]`` of one composition and cell, with forces (eV/Å).
    kept, asked
        Indices of the frames that are known, and of those that are asked for.

    Returns
    -------
    ndarray
        Mean absolute error of the force components of every frame asked for, eV/Å.

    Examples
    --------
    >>> from ase import Atoms
    >>> from ase.calculators.singlepoint import SinglePointCalculator
    >>> def frame(x):
    ...     atoms = Atoms("H", [[x, 0, 0]], cell=[9, 9, 9], pbc=True)
    ...     atoms.calc = SinglePointCalculator(atoms, forces=[[3 * x, 0, 0]])
    ...     return atoms
    >>> recalled_errors([frame(0.0), frame(4.0), frame(1.0)], [0, 1], [2])
    array([1.])
    """
    first, kept = atoms[0], np.asarray(kept)
    x, forces = (np.array([getattr(a, f"get_{name}")() for a in atoms]) for name in ("positions", "forces"))
    errors = []
    for frame in asked:
        apart = find_mic((x[kept] - x[frame]).reshape(-1, 3), first.cell, first.pbc)[1]
        nearest = kept[apart.reshape(len(kept), -1).mean(1).argmin()]
        errors.append(np.abs(forces[nearest] - forces[frame]).mean())
    return np.array(errors)


def ideal_gas(sample: Sample, extent: Extent, *, draws: int = DRAWS, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores of atoms anywhere in the cell, with the mean energy, no forces, and g(r) without noise.

    Bond lengths and angles are those of the same pairs and triples of atoms, over ``GAS_FRAMES`` draws.
    """
    atoms = sample.atoms
    anywhere = np.random.default_rng(seed + 1).random((GAS_FRAMES, len(atoms), 3)) @ atoms.cell.array
    g = {"rdf": ideal_gas_rdf(atoms, sample.rdf.shape[1])} | _means(sample.bonded(anywhere))
    scores = _scores(g, _means(sample.distributions))
    found = {f"draws_{name}": np.full(draws, value) for name, value in scores.items()}
    rng, energy = np.random.default_rng(seed), sample.energies
    log = np.log(
        np.maximum(metrics.energy_violation_root(np.full(len(energy), energy.mean()), energy), 1e-300)
    )
    of_replica = [np.exp(log[rng.integers(len(log), size=(draws, n))].mean(1)) for n in extent.compared]
    found |= {"draws_ev_root": np.mean(of_replica, axis=0), "draws_fv": np.ones(draws)}
    moved = np.diff(rng.random((2, draws, extent.replicas, len(atoms), 3)), axis=0)[0] @ atoms.cell.array
    return found | {"draws_rmsd": np.sqrt(np.square(moved).sum(-1).mean(-1)).mean(-1)}


def ideal_gas_rdf(atoms: Atoms, bins: int, *, directions: int = 4000) -> np.ndarray:
    r"""g(r) of atoms without interaction, anywhere in the cell, with the normalisation of the package.

    It is :math:`(N - 1) / N` in a periodic cell. In a cell that is not periodic, two atoms whose distance
    vector has the fractional coordinates s leave only the fraction :math:`\prod_k (1 - |s_k|)` of the cell
    for the first of them.

    Parameters
    ----------
    atoms
        ``ase.Atoms`` that gives cell, periodicity and number of atoms.
    bins
        Number of bins up to the range of the published evaluation.
    directions
        Number of directions over which a vector of given length is averaged.

    Returns
    -------
    ndarray
        g(r), shape ``(B,)``, dimensionless.

    Examples
    --------
    >>> from ase import Atoms
    >>> ideal_gas_rdf(Atoms("Ar4", cell=[21, 21, 21], pbc=True), 2)
    array([0.75, 0.75])
    """
    pairs = (len(atoms) - 1) / len(atoms)
    if atoms.pbc.all():
        return np.full(bins, pairs)
    height = np.linspace(-1, 1, 2 * directions + 1)[1::2]
    turn = np.pi * (1 + np.sqrt(5)) * np.arange(directions)
    flat = np.sqrt(1 - height**2)
    vectors = np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=1)
    width = structure.as_coded_r_max(atoms) / bins
    r = (np.arange(bins) + 0.5) * width
    scaled = np.abs(vectors @ np.linalg.inv(atoms.cell.array)) * ~atoms.pbc
    room = np.maximum(1 - r[:, None, None] * scaled, 0).prod(-1)
    return pairs * room.mean(1)


def einstein(
    sample: Sample,
    extent: Extent,
    atoms: Atoms,
    sites: np.ndarray,
    widths: np.ndarray,
    temperature: float,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Scores of atoms in harmonic wells; ``widths`` (N,) are standard deviations along an axis, Å."""
    rng, size = np.random.default_rng(seed), len(atoms)
    frames = int(np.clip(4_000_000 // size**2, 50, extent.frames))
    box = {"cell": atoms.cell.array, "pbc": atoms.pbc, "r_max": structure.as_coded_r_max(atoms)}
    reference, rows = _means(sample.distributions), []
    stiffness = (temperature * units.kB / widths**2)[:, None]
    for _ in range(2 * extent.replicas):
        moved = rng.normal(size=(frames, size, 3)) * widths[:, None]
        g = {"rdf": structure.radial_distributions(sites + moved, atoms.numbers, **box).total}
        excess = 0.5 * (stiffness * moved**2).sum((1, 2)) - 1.5 * size * units.kB * temperature
        picks = rng.integers(len(sample.energies), size=frames)
        pair = metrics.energy_violation_root(sample.energies.mean() + excess, sample.energies[picks])
        force = metrics.force_violation(-stiffness * moved, sample.forces[picks])
        rmsd = np.sqrt(np.square(moved[1:] - moved[0]).sum(-1).mean(-1)).mean()
        scores = _scores(g | _means(sample.bonded(sites + moved)), reference)
        rows.append([*scores.values(), metrics.geometric_mean(pair), metrics.geometric_mean(force), rmsd])
    picked = np.array(rows)[rng.integers(len(rows), size=(draws, extent.replicas))].mean(1)
    names = [*scores, "ev_root", "fv", "rmsd"]
    return {f"draws_{name}": values for name, values in zip(names, picked.T, strict=True)}


def _means(distributions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: frames.mean(0) for name, frames in distributions.items()}


def _scores(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of structure of distributions ``{name: (B,)}``, ``{metric: value}``."""
    return {
        metric: compare(found[name], expected)
        for name, expected in reference.items()
        for metric, compare in averages.STRUCTURE[name].items()
    }


def displacements(frames: Sequence[Atoms]) -> tuple[np.ndarray, np.ndarray] | None:
    """Sites of atoms and the widths of their distributions; None if an atom does not stay at its site.

    Frames of a molecule are superposed first (Kabsch 1976). For a periodic system, the motion of the centre
    is removed and displacements are taken by minimum image.

    Parameters
    ----------
    frames
        ``list[ase.Atoms]`` of one composition and cell.

    Returns
    -------
    sites : ndarray
        Mean positions, shape ``(N, 3)``, Å.
    widths : ndarray
        Standard deviation along an axis, shape ``(N,)``, Å.
    """
    first = frames[0]
    positions = np.stack([atoms.positions for atoms in frames])
    periodic, sites = first.pbc.any(), positions[0]
    for _ in range(3):
        moved = _strayed(positions, sites, first) if periodic else _superposed(positions, sites) - sites
        sites, moved = sites + moved.mean(0), moved - moved.mean(0)
    widths = np.sqrt(np.square(moved).mean((0, 2)))
    apart = first.get_all_distances(mic=bool(periodic)) + np.diag(np.full(len(first), np.inf))
    if not (widths > 0).all() or (np.sqrt(3) * widths > STAYS * apart.min(1)).any():
        return None
    return sites, widths


def _strayed(positions: np.ndarray, sites: np.ndarray, atoms: Atoms) -> np.ndarray:
    """Displacements from the sites by minimum image, shape (F, N, 3), without their mean over atoms."""
    moved = find_mic((positions - sites).reshape(-1, 3), atoms.cell, atoms.pbc)[0].reshape(positions.shape)
    return moved - moved.mean(1, keepdims=True)


def _superposed(positions: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Positions (F, N, 3) after translation and rotation onto one frame (N, 3)."""
    centred = positions - positions.mean(1, keepdims=True)
    target = onto - onto.mean(0)
    left, _, right = np.linalg.svd(centred.transpose(0, 2, 1) @ target)
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    return centred @ left @ right + onto.mean(0)
