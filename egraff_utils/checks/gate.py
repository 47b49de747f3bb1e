r"""May this force field be simulated? It must pass checks of physical laws before it is rolled out.

Every check gives one number, which is compared with a tolerance (:data:`CHECKS`). Most checks compare the
prediction for a frame with that for an equivalent form of the frame, called a guise. Their number is the
largest deviation in units of the force scale,

.. math:: \delta = \frac{\max(|F' - F|_\infty,\ |E' - E| / \text{Å})}{F_\mathrm{rms}},

where F and E are transformed to the guise, and :math:`F_\mathrm{rms}` is the root mean square of a force
component, eV/Å.
"""

import copy
import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

import ase
import numpy as np
import torch
from ase import units
from ase.geometry import wrap_positions
from scipy.spatial.transform import Rotation

from egraff_utils import cards, data, records, weights
from egraff_utils.calculated import Calculated
from egraff_utils.config import Config
from egraff_utils.graph import SkinList, build_graph
from egraff_utils.md.calculator import ReplicaCalculator, calculator_of
from egraff_utils.md.dynamics import Thermostat, simulate
from egraff_utils.md.temperature import degrees_of_freedom, draw_velocities
from egraff_utils.records import Metric
from egraff_utils.statistics import replica_interval
from egraff_utils.units import EV_TO_MEV

FAR = 100.0
"""Distance between copies or atoms that must not interact, Å."""
JUMP_STEPS = (1e-2, 1e-4, 1e-6)
"""Half the lengths of the steps across the cutoff, Å."""
REACH = 0.3
"""Largest distance from the cutoff of the pairs that are moved across it, Å."""
PAIRS = 6
"""Largest number of pairs that are moved across the cutoff."""
WINDOW = np.linspace(-0.01, 0.01, 20)
"""Distances from the cutoff at which the energy is plotted, Å; none of them is zero."""


class Check(NamedTuple):
    """What a check measures and how much it allows."""

    unit: str
    tolerance: float
    """Largest value that passes."""
    what: str
    why: str
    """Reason for the tolerance."""


_ROUNDING = "float32 leaves 1e-6 to 1e-5, force errors of good models are 1e-2"
CHECKS = {
    "finite": Check("1", 0.0, "frames whose energy or forces are not finite", "one is too many"),
    "gradient": Check(
        "1",
        1e-4,
        "forces against the central difference of the energy, in float64, relative to their length",
        "a step of 1e-4 Å leaves about 1e-6; direct-force models are off by 1e-2 and more",
    ),
    "rotation": Check("1", 1e-4, "frame turned at random", _ROUNDING),
    "reflection": Check("1", 1e-4, "frame inverted", _ROUNDING),
    "translation": Check("1", 1e-4, "frame moved at random", _ROUNDING),
    "permutation": Check("1", 1e-4, "atoms in another order", _ROUNDING),
    "images": Check("1", 1e-4, "atoms in other images, frame moved by a lattice vector", _ROUNDING),
    "edges": Check("1", 0.0, "edges that differ from a brute-force list over images", "one is too many"),
    "extensivity": Check("1", 1e-4, "two cells, or two molecules 100 Å apart, against twice one", _ROUNDING),
    "isolated": Check("1", 1e-4, "atoms 100 Å apart against single atoms", _ROUNDING),
    "jump": Check(
        "meV",
        0.01,
        "energy gained at once where an atom crosses the cutoff of another, in float64, worst pair",
        "rounding of float32 energies; a continuous energy leaves 1e-6",
    ),
    "drift": Check(
        "meV/atom/ps",
        1.0,
        "slope of the total energy in NVE",
        "heats a harmonic solid by 4 K per ps, one percent of the temperatures here",
    ),
}
"""Checks by the name of their metric, in the order in which they are made."""


@dataclass(frozen=True)
class GateConfig(Config):
    """One trained model that is checked."""

    kind = "gate"

    model: str
    dataset: str
    campaign: str = "demo"
    seed: int = 0
    """Seed of the training, of rotations and translations, and of the initial velocities."""
    split: str = "test"
    """Split of the frames. Of several compositions, the smallest of those with the most elements is used."""
    structures: int = 3
    """Number of frames that are rotated, translated and so on."""
    runs: int | None = None
    """Number of NVE runs, which share a batch; by default 5 for a molecule, 3 for a bulk system."""
    run_steps: int | None = None
    """Steps of each NVE run; by default 400 for a molecule, 200 for a bulk system."""
    temperature: float | None = None
    """Temperature of the initial velocities, K; by default that of the split."""
    timestep: float | None = None
    """Timestep of the NVE runs, fs; by default that of the split."""
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self):
        self.require_positive("structures", "runs", "run_steps", "temperature", "timestep")

    def parameters(self):
        """What determines the result, as stored in the record, together with the tolerances."""
        tolerances = {name: check.tolerance for name, check in CHECKS.items()}
        return super().parameters() | {"tolerances": tolerances}


def check(config, *, force_field=None):
    """Run all checks of a trained force field.

    Guises and NVE runs are evaluated in the precision of the model, as in rollouts; differences of energies
    (``gradient``, ``jump``) in float64.

    Parameters
    ----------
    config
        :class:`GateConfig`.
    force_field
        Force field to use in place of the trained weights.

    Returns
    -------
    Record
        Kind ``gate``. Metrics: those of :data:`CHECKS` that apply; without a verdict, ``jump_relative`` (jump
        over the force scale times 1 Å), ``force_jump`` (meV/Å), ``fluctuation`` (of the total energy about
        its slope, meV/atom), ``crossings`` (of the cutoff, 1/atom/ps) and ``force_scale`` (meV/Å);
        ``passed``, 1 or 0. The message names the checks that failed, ``provenance["skipped"]`` those that do
        not apply, with the reasons. Curves: ``jump_steps`` (K,) Å, ``jump_pairs`` (P, K) meV,
        ``jump_distance`` (P,) Å, the original distance of the pair, ``jump_symbols`` (P,),
        ``cutoff_distance`` (D,) Å and ``cutoff_energy`` (D,) meV of the first pair, ``time`` (T,) fs,
        ``energy_total`` (R, T) meV/atom relative to the start. A stored record is returned if weights, frames
        and tolerances are the same.

    Raises
    ------
    FileNotFoundError
        If there are no trained weights; the message names the command that trains.
    ValueError
        If a name is unknown, or forces vanish on the frames.
    """
    config, frames = _settled(config)
    digests = {
        "weights": weights.digest(config, force_field),
        "data": records.digest(*[array for a in frames for array in (a.numbers, a.positions)]),
        "frames": data.digest(config.dataset, (config.split,)),
    }
    return records.run(config, lambda: _checked(config, frames, force_field), **digests)


def _checked(config, frames, force_field):
    torch.set_num_threads(config.threads)
    force_field = (force_field or weights.load(config)).to(config.device)
    has_graph = not isinstance(force_field, Calculated)
    subject = Subject(
        calculator_of(force_field),
        calculator_of(in_double(force_field).to(config.device)),
        force_field.cutoff,
        (lambda n: calculator_of(force_field, replicas=n)) if has_graph else None,
    )
    metrics, curves, skipped = _measure(subject, frames, **_measured(config))
    metrics, message = _judged(metrics, config.parameters()["tolerances"])
    return records.Outcome(metrics, curves, message=message, provenance={"skipped": skipped})


def examine(
    calculator,
    atoms,
    *,
    cutoff=None,
    temperature=300.0,
    timestep=0.5,
    structures=3,
    runs=2,
    run_steps=200,
    step=1e-4,
    tolerances=None,
    seed=0,
):
    """Run all checks that apply to any ASE calculator; nothing is stored.

    Parameters
    ----------
    calculator
        ASE calculator with energy (eV) and forces (eV/Å).
    atoms
        ``ase.Atoms`` or a list of them, of one composition, away from a minimum.
    cutoff
        Cutoff of the potential, Å; by default no pair is moved across it.
    temperature, timestep, runs, run_steps
        Temperature (K), timestep (fs), number and length of the NVE runs, which start on ``atoms`` with new
        velocities.
    structures
        Number of frames that are rotated, translated and so on.
    step
        Step of the central difference, Å. A calculator in float32 needs 1e-2, and wider tolerances.
    tolerances
        Tolerances that replace the defaults, by the name of the check.
    seed
        Seed of rotations, translations and velocities.

    Returns
    -------
    Record
        Record as in :func:`check`, with its ``curves``; the dataset is the formula, the model the name of the
        calculator. The message names the checks that failed and those that were skipped.

    Raises
    ------
    ValueError
        If there is no frame, a tolerance does not have the name of a check, or forces vanish on the frames.
    TypeError
        If ``calculator`` is not an ASE calculator.
    """
    frames = [atoms] if isinstance(atoms, ase.Atoms) else list(atoms)
    _check_input(calculator, frames, tolerances)
    settings = {
        "temperature": temperature,
        "timestep": timestep,
        "structures": structures,
        "runs": runs,
        "run_steps": run_steps,
        "step": step,
        "seed": seed,
    }
    subject = Subject(calculator, calculator, cutoff, None)
    metrics, curves, skipped = _measure(subject, frames, **settings)
    limits = {name: check.tolerance for name, check in CHECKS.items()} | (tolerances or {})
    formula, name = frames[0].get_chemical_formula(), type(calculator).__name__
    parameters = settings | {"cutoff": cutoff, "tolerances": limits}
    metrics, message = _judged(metrics, limits)
    said = "skipped: " + ", ".join(f"{key} ({why})" for key, why in skipped.items())
    message = "; ".join([message, said] if message else [said])
    record = records.Record("gate", "own", formula, name, seed, parameters, metrics, message=message)
    record.__dict__["curves"] = curves
    return record


def failed(record):
    """Names of the checks that failed in a record, a list; a missing value counts as failed."""
    return _beyond(record.metrics, record.parameters["tolerances"])


def badge(record):
    """``pass``, or the names of the checks that failed.

    Examples
    --------
    >>> limits = {"tolerances": {"jump": 0.01, "drift": 1.0}}
    >>> found = [Metric("jump", 7.0, "meV"), Metric("drift", 0.2, "meV/atom/ps")]
    >>> badge(records.Record("gate", "demo", "ethanol", "mace", 0, limits, found))
    'jump'
    """
    return ", ".join(failed(record)) or "pass"


def _fails(metric, tolerance):
    return metric.value is None or abs(metric.value) > tolerance


def _judged(metrics, limits):
    """The metrics preceded by the verdict ``passed``, and the message of a record."""
    bad = _beyond(metrics, limits)
    return [Metric("passed", float(not bad), "1"), *metrics], ", ".join(bad)


def _beyond(metrics, limits):
    return [m.name for m in metrics if m.name in limits and _fails(m, limits[m.name])]


# -- what is examined -----------------------------------------------------------------------------------


class Subject(NamedTuple):
    """A potential in the forms that the checks need."""

    calculator: object
    """ASE calculator in the precision of simulations."""
    precise: object
    """ASE calculator in float64 where available, else the same one."""
    cutoff: float | None
    """Cutoff, Å."""
    replicas: object
    """Function that returns a calculator for n replicas; ``None`` if the potential has no batches."""


def in_double(force_field):
    """Copy of a force field with its network, including constants, in double precision.

    A calculator has the precision that it has, and is returned itself.
    """
    if isinstance(force_field, Calculated):
        return force_field
    return copy.deepcopy(force_field).double().eval()


def _settled(config):
    """The config with all fields set, and the frames."""
    card = cards.dataset(config.dataset)
    parts = {part: data.checked(card, (part,))[part] for part in card.parts(config.split)}
    split = min(parts, key=lambda part: _richness(parts[part][0]))
    temperature, timestep = card.conditions(split)
    defaults = {"temperature": temperature, "timestep": timestep}
    defaults |= {"runs": 5, "run_steps": 400} if card.system == "molecule" else {"runs": 3, "run_steps": 200}
    asked = {name: getattr(config, name) for name in defaults}
    settled = {name: defaults[name] if value is None else value for name, value in asked.items()}
    return replace(config, dataset=card.name, split=split, **settled), parts[split]


def _richness(atoms):
    return -len(set(atoms.numbers)), len(atoms)


def _measured(config):
    names = ("temperature", "timestep", "structures", "runs", "run_steps", "seed")
    return {name: getattr(config, name) for name in names}


def _check_input(calculator, frames, tolerances):
    if not hasattr(calculator, "get_potential_energy"):
        raise TypeError(f"{calculator!r} is no ASE calculator: it has no get_potential_energy")
    if not frames:
        raise ValueError("there is no frame to examine")
    for atoms in frames:
        if not np.array_equal(atoms.numbers, frames[0].numbers):
            formulas = frames[0].get_chemical_formula(), atoms.get_chemical_formula()
            raise ValueError(f"frames of {formulas[0]} and {formulas[1]}; give those of one composition")
    for name in tolerances or {}:
        if name not in CHECKS:
            raise cards.unknown("check", name, CHECKS)


def _measure(subject, frames, *, structures, seed, temperature, timestep, runs, run_steps, step=1e-4):
    """Metrics, curves, and the reasons for which checks were skipped, by check."""
    chosen = _spread(frames, structures)
    periodic, whole = chosen[0].pbc.any(), len(chosen[0]) > 1
    scale = force_scale(subject.calculator, chosen)
    found, skipped = {"finite": not_finite(subject.calculator, _spread(frames, 20))}, {}
    found["gradient"] = max(gradient_error(subject.precise, a, step=step, seed=seed) for a in chosen)
    guises = {
        "rotation": rotated,
        "reflection": inverted,
        "translation": translated,
        "permutation": permuted,
        "images": imaged,
        "extensivity": doubled,
    }
    for name, guise in guises.items():
        if name == "images" and not periodic:
            skipped[name] = "nothing is periodic"
            continue
        rng = np.random.default_rng([seed, len(name)])
        found[name] = max(deviation(subject.calculator, a, guise(a, rng), scale) for a in chosen)
    found["isolated"] = isolated_error(subject.calculator, chosen[0], scale)
    if subject.replicas is None:
        skipped["edges"] = "a calculator shows no graph"
    else:
        found["edges"] = max(edge_errors(a, subject.cutoff) for a in chosen)
    metrics = {name: Metric(name, float(value), CHECKS[name].unit) for name, value in found.items()}
    metrics["force_scale"] = Metric("force_scale", EV_TO_MEV * scale, "meV/Å")
    curves = {}
    if subject.cutoff is None or not whole:
        skipped["jump"] = "no cutoff is known" if whole else "there is one atom"
    else:
        jumps, curves = _jumps(subject, frames, scale)
        metrics |= jumps
    if whole:
        starts = [_start(a, temperature, seed, i) for i, a in enumerate(_repeated(frames, runs))]
        drift, more = _drift(subject, starts, timestep, run_steps)
        metrics |= drift
        curves |= more
    else:
        skipped["drift"] = "there is one atom"
    order = [*CHECKS, *(name for name in metrics if name not in CHECKS)]
    return [metrics[name] for name in order if name in metrics], curves, skipped


def _spread(frames, count):
    """``count`` equally spaced frames, or all if there are fewer."""
    places = np.linspace(0, len(frames) - 1, min(count, len(frames)))
    return [frames[i] for i in np.unique(places.astype(int))]


def _repeated(frames, count):
    """Exactly ``count`` frames, some of them repeated if there are fewer."""
    chosen = _spread(frames, count)
    return [chosen[i % len(chosen)] for i in range(count)]


# -- guises ---------------------------------------------------------------------------------------------


class Guise(NamedTuple):
    """An equivalent form of a frame, and how energy and forces transform."""

    atoms: ase.Atoms
    forces: object
    """Function from the forces on the frame, shape ``(N, 3)``, to those required on the guise, shape ``(N',
    3)``, eV/Å."""
    copies: int = 1
    """Ratio of the required energy to that of the frame."""


def turned(atoms, matrix):
    """Copy of a structure whose positions are multiplied by an orthogonal matrix, about the mean position."""
    copy = atoms.copy()
    middle = atoms.positions.mean(0)
    copy.positions = (atoms.positions - middle) @ np.asarray(matrix).T + middle
    copy.cell = np.asarray(atoms.cell) @ np.asarray(matrix).T
    return copy


def rotated(atoms, rng):
    """:class:`Guise` of a random rotation."""
    matrix = Rotation.random(rng=rng).as_matrix()
    return Guise(turned(atoms, matrix), lambda forces: forces @ matrix.T)


def inverted(atoms, rng=None):
    """:class:`Guise` of an inversion, which is a reflection combined with a rotation."""
    return Guise(turned(atoms, -np.eye(3)), lambda forces: -forces)


def translated(atoms, rng):
    """:class:`Guise` of a translation by up to 10 Å along every axis; atoms are not wrapped."""
    moved = atoms.copy()
    moved.positions += rng.uniform(-10, 10, 3)
    return Guise(moved, lambda forces: forces)


def permuted(atoms, rng):
    """:class:`Guise` of a random permutation of the atoms."""
    order = rng.permutation(len(atoms))
    return Guise(atoms[order], lambda forces: forces[order])


def imaged(atoms, rng):
    """:class:`Guise` of wrapped atoms, each of which is then moved by random lattice vectors."""
    moved = atoms.copy()
    moved.positions = wrap_positions(atoms.positions, atoms.cell, atoms.pbc)
    images = rng.integers(-1, 2, (len(atoms), 3)) * atoms.pbc + rng.integers(1, 3, 3) * atoms.pbc
    moved.positions += images @ np.asarray(atoms.cell)
    return Guise(moved, lambda forces: forces)


def doubled(atoms, rng=None):
    """:class:`Guise` of a cell repeated along its first periodic vector, or of two molecules far apart."""
    if atoms.pbc.any():
        twice = atoms.repeat(np.where(np.arange(3) == np.argmax(atoms.pbc), 2, 1))
    else:
        other = atoms.copy()
        other.positions += [FAR, 0, 0]
        twice = atoms + other
    return Guise(twice, lambda forces: np.tile(forces, (2, 1)), copies=2)


# -- checks ---------------------------------------------------------------------------------------------


def predict(calculator, atoms):
    """Energy, eV, and forces, shape ``(N, 3)``, eV/Å, of a structure."""
    atoms = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, calculator=calculator)
    return float(atoms.get_potential_energy()), np.array(atoms.get_forces(), dtype=float)


def force_scale(calculator, frames):
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


def not_finite(calculator, frames):
    """Number of frames with an energy or a force that is not finite."""
    found = [predict(calculator, atoms) for atoms in frames]
    return sum(not (np.isfinite(energy) and np.isfinite(forces).all()) for energy, forces in found)


def gradient_error(calculator, atoms, *, step=1e-4, directions=5, seed=0):
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


def deviation(calculator, atoms, guise, scale):
    """Largest deviation of forces and energy per copy in another guise, in units of ``scale``, eV/Å."""
    energy, forces = predict(calculator, atoms)
    other, found = predict(calculator, guise.atoms)
    apart = abs(other - guise.copies * energy) / guise.copies
    return np.maximum(np.abs(found - guise.forces(forces)).max(), apart) / scale


def isolated_error(calculator, atoms, scale):
    """Deviation of two distant atoms of each element from single atoms, in units of ``scale``, eV/Å."""
    numbers = np.repeat(np.unique(atoms.numbers), 2)
    places = FAR * np.arange(len(numbers))[:, None] * [1.0, 0, 0]
    alone = [predict(calculator, ase.Atoms([z])) for z in numbers]
    energy, forces = predict(calculator, ase.Atoms(numbers, places))
    apart = abs(energy - sum(e for e, _ in alone))
    return np.max([apart, np.abs(forces).max(), *(np.abs(f).max() for _, f in alone)]) / scale


def edge_errors(atoms, cutoff, graph=None):
    """Number of edges that are missing or superfluous, compared with a brute-force list over images.

    By default the graph is the one used in rollouts, that of :class:`~egraff_utils.graph.SkinList`.
    """
    if graph is None:
        graph = SkinList(atoms, cutoff).update(atoms.positions)
    centre, neighbour = graph.edge_index.cpu().numpy()
    vectors = graph.edge_vectors().double().cpu().numpy()
    found = _rows(centre, neighbour, vectors)
    return len(found ^ _rows(*brute_force_edges(atoms, cutoff))) + len(centre) - len(found)


def brute_force_edges(atoms, cutoff):
    """Centre (E,), neighbour (E,) and vector (E, 3), Å, of all pairs within the cutoff, images included."""
    cell, pbc = np.asarray(atoms.cell), atoms.pbc
    vectors = atoms.positions[None] - atoms.positions[:, None]
    reach = np.zeros(3, dtype=int)
    if pbc.any():
        inverse = np.linalg.inv(np.asarray(atoms.cell.complete()))
        spread = np.abs(vectors @ inverse).max((0, 1))
        reach = np.where(pbc, np.ceil(cutoff * np.linalg.norm(inverse, axis=0) + spread), 0).astype(int)
    found = []
    for image in itertools.product(*(range(-n, n + 1) for n in reach)):
        apart = vectors + image @ cell
        near = np.square(apart).sum(-1) < cutoff**2
        if not any(image):
            np.fill_diagonal(near, False)
        found.append((*np.nonzero(near), apart[near]))
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def _rows(centre, neighbour, vectors):
    rounded = np.rint(1e5 * vectors).astype(int)
    return set(map(tuple, np.column_stack([centre, neighbour, rounded]).tolist()))


# -- smoothness at the cutoff ---------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two atoms of a frame whose distance is close to the cutoff."""

    atoms: ase.Atoms
    centre: int
    neighbour: int
    vector: np.ndarray
    """From centre to neighbour, shape ``(3,)``, Å."""

    @property
    def distance(self):
        """Distance of the two atoms, Å."""
        return np.linalg.norm(self.vector)

    @property
    def symbols(self):
        """Symbols of the two elements, in alphabetic order."""
        return "-".join(sorted(self.atoms.symbols[[self.centre, self.neighbour]]))

    def at(self, distance):
        """The frame with the neighbour moved along the line of the pair to a distance, Å."""
        moved = self.atoms.copy()
        moved.positions[self.neighbour] += (distance / self.distance - 1) * self.vector
        return moved


def pairs_at_cutoff(frames, cutoff, *, most=PAIRS):
    """Pairs of atoms nearest to the cutoff, one for each pair of elements, a list of :class:`Pair`.

    The nearest comes first. If no pair is within :data:`REACH` of the cutoff, the nearest of all is returned.
    """
    every = [pair for atoms in frames for pair in _near(atoms, cutoff)]
    close = [pair for pair in every if abs(pair.distance - cutoff) < REACH]
    every = sorted(close or every, key=lambda pair: abs(pair.distance - cutoff))[: None if close else 1]
    first = {}
    for pair in every:
        first.setdefault(pair.symbols, pair)
    return list(first.values())[:most]


def _near(atoms, cutoff):
    """The pair nearest to the cutoff, for each pair of elements in a frame."""
    graph = build_graph(atoms, cutoff + REACH)
    centre, neighbour = graph.edge_index.numpy()
    vectors = graph.edge_vectors().numpy()
    kinds = np.sort(atoms.numbers[graph.edge_index.numpy()], axis=0)
    gap = np.where(centre == neighbour, np.inf, np.abs(np.linalg.norm(vectors, axis=1) - cutoff))
    found = {}
    for edge in np.argsort(gap, kind="stable"):
        if np.isfinite(gap[edge]):
            found.setdefault(tuple(kinds[:, edge]), Pair(atoms, centre[edge], neighbour[edge], vectors[edge]))
    return found.values()


def jump(calculator, pair, cutoff, half_step):
    r"""Jump of the energy and of the forces where a pair crosses the cutoff.

    .. math:: E(r_c + \delta) - E(r_c - \delta) + \delta\, (F_+ + F_-) \cdot u

    The last term, with the forces on the moved atom and the direction u of its motion, subtracts the change
    of a smooth energy, up to :math:`\delta^3`. The remainder is a jump if it does not shrink with the step.

    Parameters
    ----------
    calculator
        ASE calculator with energy (eV) and forces (eV/Å).
    pair
        :class:`Pair`.
    cutoff, half_step
        Cutoff :math:`r_c` and half step :math:`\delta`, Å.

    Returns
    -------
    tuple of float
        Jump of the energy, eV; largest change of a force component, eV/Å.
    """
    before, behind = (predict(calculator, pair.at(cutoff + sign * half_step)) for sign in (-1, 1))
    along = (before[1] + behind[1])[pair.neighbour] @ pair.vector / pair.distance
    return behind[0] - before[0] + half_step * along, np.abs(behind[1] - before[1]).max()


def _jumps(subject, frames, scale):
    """Metrics and curves of the smoothness at the cutoff."""
    cutoff = subject.cutoff
    pairs = pairs_at_cutoff(_spread(frames, 100 if len(frames[0]) < 50 else 10), cutoff)
    if not pairs:
        raise ValueError(f"no two atoms can be brought to the cutoff of {cutoff} Å in these frames")
    found = np.array([[jump(subject.precise, p, cutoff, d) for d in JUMP_STEPS] for p in pairs])
    energies, forces = EV_TO_MEV * found[..., 0], EV_TO_MEV * found[..., 1]
    worst = np.abs(energies[:, -1]).max()
    line = np.array([predict(subject.precise, pairs[0].at(cutoff + x))[0] for x in WINDOW])
    metrics = [
        Metric("jump", worst, "meV", n=len(pairs)),
        Metric("jump_relative", worst / (EV_TO_MEV * scale), "1"),
        Metric("force_jump", forces[:, -1].max(), "meV/Å"),
    ]
    curves = {
        "jump_steps": np.array(JUMP_STEPS),
        "jump_pairs": energies,
        "jump_distance": np.array([pair.distance for pair in pairs]),
        "jump_symbols": np.array([pair.symbols for pair in pairs]),
        "cutoff_distance": cutoff + WINDOW,
        "cutoff_energy": EV_TO_MEV * (line - line.mean()),
    }
    return {metric.name: metric for metric in metrics}, curves


# -- conservation of energy -----------------------------------------------------------------------------


def _start(atoms, temperature, seed, run):
    """A frame with thermal velocities and its centre of mass at rest."""
    start = atoms.copy()
    start.calc = None
    rng = np.random.default_rng([seed, run, 2])
    return draw_velocities(start, temperature, rng)


def nve(starts, calculators, *, timestep, steps):
    """Trajectory of replicas at constant energy (velocity Verlet).

    Parameters
    ----------
    starts
        Starting structures with momenta, R ``ase.Atoms``.
    calculators
        Function that returns a calculator for n replicas.
    timestep
        Timestep, fs.
    steps
        Number of steps.
    """
    free = Thermostat(temperature=0.0, timestep=timestep, friction=0.0)  # Langevin without friction
    return simulate(starts, calculators, thermostat=free, steps=steps)


def total_energy(trajectory, atoms):
    """Kinetic plus potential energy along a trajectory, shape ``(R, T)``, eV."""
    freedom = degrees_of_freedom(len(atoms))
    return trajectory.energy + 0.5 * freedom * units.kB * trajectory.temperature


def slopes(times, energy):
    """Least-squares slope of the energy of each run, and the scatter about it.

    Parameters
    ----------
    times
        Times, shape ``(T,)``.
    energy
        Energies, shape ``(R, T)``; a run that broke is not finite at its end.

    Returns
    -------
    tuple of ndarray
        Slopes, shape ``(R,)``, and standard deviations about the lines, shape ``(R,)``; nan where a run
        broke.

    Examples
    --------
    >>> slopes(np.array([0.0, 1.0, 2.0]), np.array([[1.0, 3.0, 5.0], [0.0, 1.0, 0.0]]))[0]
    array([2., 0.])
    """
    centred = times - times.mean()
    slope = energy @ centred / np.sum(centred**2)
    rest = energy - energy.mean(1, keepdims=True) - slope[:, None] * centred
    return slope, rest.std(1)


def _drift(subject, starts, timestep, steps):
    """Metrics and curves of the NVE runs."""
    atoms = starts[0]
    settings = {"timestep": timestep, "steps": steps}
    if subject.replicas is not None:
        parts = [nve(starts, subject.replicas, **settings)]
    else:
        parts = [nve([a], lambda n: ReplicaCalculator([subject.calculator]), **settings) for a in starts]
    times = timestep * np.arange(steps + 1)
    energy = np.full((len(starts), len(times)), np.nan)
    for run, row in enumerate(row for part in parts for row in total_energy(part, atoms)):
        energy[run, : len(row)] = EV_TO_MEV * row / len(atoms)
    energy = energy - energy[:, :1]
    slope, scatter = slopes(times / 1000, energy)
    metrics = [
        Metric("drift", slope.mean(), "meV/atom/ps", *replica_interval(slope[:, None]), len(slope)),
        Metric("fluctuation", scatter.mean(), "meV/atom", n=len(slope)),
    ]
    if subject.cutoff is not None:
        crossed = np.mean([_crossings(atoms, part, subject.cutoff) for part in parts])
        metrics.append(Metric("crossings", 1000 * crossed / (len(atoms) * times[-1]), "1/atom/ps"))
    return {metric.name: metric for metric in metrics}, {"time": times, "energy_total": energy}


def _crossings(atoms, trajectory, cutoff):
    """Number of times that a pair crossed the cutoff in a run, averaged over runs."""
    total = 0
    for positions in trajectory.positions:
        neighbors, before = SkinList(atoms, cutoff), None
        for frame in positions[np.isfinite(positions).all((1, 2))]:
            graph = neighbors.update(frame.astype(float))
            now = _pair_keys(graph, np.asarray(atoms.cell))
            total += 0 if before is None else len(np.setxor1d(now, before, assume_unique=True))
            before = now
    return total / 2 / len(trajectory.positions)


def _pair_keys(graph, cell):
    """One integer for each edge: centre, neighbour and image."""
    centre, neighbour = graph.edge_index.numpy()
    key = centre * len(graph.positions) + neighbour
    if not cell.any():
        return key
    images = np.rint(graph.shifts.numpy() @ np.linalg.pinv(cell)).astype(np.int64) + 50
    return key * 10**6 + images @ [10**4, 100, 1]
