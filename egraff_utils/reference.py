"""What would the reference do? Oracles that are available at run time, and datasets generated with them."""

import hashlib
import importlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import BaseCalculator
from ase.constraints import FixCom
from ase.geometry import find_mic
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from filelock import FileLock
from tqdm.auto import tqdm

from egraff_utils import cards, paths
from egraff_utils.cards import DatasetCard, Oracle
from egraff_utils.provenance import digest

RESCALED = "rescaled"
"""Value of ``velocities`` in a recipe with which ASE's ``Stationary`` makes the start too hot by N / (N - 1).

The datasets of the project began so, and another draw would give them other frames, and every record on them
with it. It does no harm there: the stages discarded before their first split last ten relaxation times of the
thermostat or more, which leave exp(-10) of the excess, 0.003 K of 62 K for ethanol.
"""


def calculator(card: DatasetCard, atoms: Atoms | None = None) -> BaseCalculator:
    """ASE calculator that gives the reference energies (eV) and forces (eV/Å) of a dataset.

    GFN2-xTB [Bannwarth2019]_ through tblite for molecules, effective medium theory [Jacobsen1996]_ for
    metals, or any calculator that the card names.

    Parameters
    ----------
    card
        :class:`~egraff_utils.cards.DatasetCard` with an ``oracle``.
    atoms
        A structure, ``ase.Atoms``, on which the calculator is tried.

    Raises
    ------
    ValueError
        If the reference method of the dataset cannot be run: the card has no ``oracle``, there is no such
        module, class or argument, the object is not an ASE calculator with forces, or it fails on the
        structure.

    References
    ----------
    .. [Bannwarth2019] C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019).
    .. [Jacobsen1996] K. W. Jacobsen, P. Stoltze, J. K. Nørskov, Surf. Sci. 366, 394 (1996).
    """
    oracle = _oracle(card)
    made = make(oracle, f"the oracle of {card.name}")
    if atoms is not None:
        attempt(made, atoms, f"the oracle of {card.name}, {oracle.calculator},")
    return made


def _oracle(card: DatasetCard) -> Oracle:
    if card.oracle is None:
        raise ValueError(f"the reference method of {card.name} cannot be run here: its card has no oracle")
    return cards.oracle(card.oracle, where=f"of the card of {card.name}")


def make(oracle: Oracle, name: str) -> BaseCalculator:
    """Calculator of an :class:`~egraff_utils.cards.Oracle`; ``name`` starts the messages of errors.

    The class is checked before it is called, so that a card cannot call anything else.

    Raises
    ------
    ValueError
        As in :func:`calculator`.
    """
    module, _, maker = oracle.calculator.rpartition(".")
    try:
        make = getattr(importlib.import_module(module), maker)
    except ImportError as error:
        raise ValueError(f"{name}: cannot import {module} ({error}); is its package installed?") from error
    except AttributeError as error:
        raise ValueError(f"{name}: the module {module} has no {maker}") from error
    if not (isinstance(make, type) and issubclass(make, BaseCalculator)):
        raise ValueError(f"{name}: {oracle.calculator} is not the class of an ASE calculator")
    try:
        made = make(**oracle.arguments)
    except TypeError as error:
        raise ValueError(f"{name}: {maker} does not take {oracle.arguments}: {error}") from error
    if missing := {"energy", "forces"} - set(made.implemented_properties):
        raise ValueError(f"{name}: {oracle.calculator} gives no {' and no '.join(sorted(missing))}")
    return made


def attempt(made: BaseCalculator, atoms: Atoms, name: str) -> None:
    """Run one single-point calculation, so that a method that fails raises its error before anything else."""
    system = atoms.copy()
    system.calc = made
    try:
        values = [system.get_potential_energy(), *system.get_forces().flat]
    except Exception as error:  # every calculator has its own types of errors
        raise ValueError(f"{name} fails on {atoms.symbols}: {type(error).__name__}: {error}") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{name} gives an energy or a force of {atoms.symbols} that is not finite")


def specification(card: DatasetCard) -> dict[str, Any]:
    """Everything that determines a generated dataset, a dictionary."""
    conditions = {name: getattr(card, name) for name in ("oracle", "temperature", "timestep")}
    plan = {"velocities": "drawn", **card.generate}
    if plan["velocities"] == RESCALED:
        del plan["velocities"]  # the digests of datasets that began so do not have it
    return {**conditions, **plan}


def make_dataset(card: DatasetCard) -> Path:
    """Path of a generated dataset, which is simulated on first use and then kept.

    The frames come from one Langevin trajectory of the card's oracle: equilibration, then blocks of frames
    for ``train``, ``val`` and ``test`` with gaps between them. The same card, seed and package versions give
    the same numbers. Progress is shown. If two processes request a dataset at the same time, it is generated
    once.

    Parameters
    ----------
    card
        :class:`~egraff_utils.cards.DatasetCard` with ``generate``.

    Returns
    -------
    Path
        An npz file in ``paths.generated()`` with ``numbers``, ``cell`` (Å) and, per split, ``positions``
        (T, N, 3) Å, ``energy`` (T,) eV, ``forces`` (T, N, 3) eV/Å and ``velocities`` (T, N, 3) in ASE units.
        A JSON file beside it holds the parameters, the package versions and the digest of the frames; a file
        that no longer has it is set aside and generated anew.
    """
    parameters = specification(card)
    text = json.dumps(parameters, sort_keys=True)
    path = paths.generated() / f"{card.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.npz"
    if _intact(path):
        return path
    names = ("ase", "numpy", *packages(_oracle(card)))
    versions = {name: importlib.metadata.version(name) for name in names}
    facts = {"dataset": card.name, "parameters": parameters, "versions": versions}
    return made_once(path, lambda temporary: np.savez(temporary, **_simulate(card)), **facts)


def made_once(path: Path, make: Callable[[Path], None], **facts: Any) -> Path:
    """Path of a file of frames that is made on first use and then kept.

    Parameters
    ----------
    path
        Path of the file, an ``npz``.
    make
        Function that computes the frames and writes them to the path that it is given.
    facts
        What the JSON file beside it says in addition to ``frames``, the digest of the file. A file that no
        longer has this digest is set aside and made anew.
    """
    if _intact(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not _intact(path):
            with paths.written(path) as temporary:
                make(temporary)
                with paths.written(path.with_suffix(".json")) as beside:
                    beside.write_text(json.dumps(facts | {"frames": digest(temporary)}, indent=1) + "\n")
    return path


def _intact(path):
    files = [file for file in (path, path.with_suffix(".json")) if file.is_file()]
    return path in files and _compared(path, *map(paths.stamp, files))


@lru_cache(maxsize=256)  # a rollout asks several times, and hashing takes longer than reading
def _compared(path, *stamps):
    """Whether a file is as it was made; one that was changed is set aside."""
    if not paths.readable(path):
        return False
    try:
        expected = json.loads(path.with_suffix(".json").read_text()).get("frames")
    except (FileNotFoundError, ValueError):  # the frames themselves are whole
        return True
    if expected not in (None, digest(path)):
        paths.set_aside(path, "it was changed after it was made")
        return False
    return True


def packages(oracle: Oracle) -> list[str]:
    """Names of the installed packages from which an :class:`~egraff_utils.cards.Oracle` is imported."""
    return importlib.metadata.packages_distributions().get(oracle.calculator.partition(".")[0], [])


def _simulate(card):
    """Arrays of a generated dataset, obtained by running its trajectory."""
    plan = card.generate
    atoms = _start(plan)
    atoms.calc = calculator(card, atoms)
    rng = np.random.default_rng(plan["seed"])
    hottest = plan["stages"][0].get("temperature", card.temperature)
    MaxwellBoltzmannDistribution(atoms, temperature_K=hottest, rng=rng)
    if len(atoms) > 1:
        Stationary(atoms, preserve_temperature=plan.get("velocities") == RESCALED)
    atoms.set_constraint(FixCom())
    arrays = {"numbers": atoms.numbers, "cell": np.array(atoms.cell)}
    total = sum(stage["frames"] * stage["stride"] for stage in plan["stages"])
    with tqdm(total=total, desc=f"making {card.name}", unit="step") as progress:
        for stage in plan["stages"]:
            frames = _run_stage(atoms, card, stage, rng, progress)
            if "split" in stage:
                arrays |= {f"{stage['split']}_{name}": values for name, values in frames.items()}
    return arrays


def _start(plan):
    """First structure of a generated dataset, from a list of ``C 0.0 0.0 0.0`` (Å) or built by ASE."""
    if "structure" in plan:
        rows = [line.split() for line in plan["structure"]]
        positions = [[float(value) for value in row[1:]] for row in rows]
        return Atoms([row[0] for row in rows], positions, cell=plan["cell"])
    if "molecule" in plan:
        atoms = molecule(plan["molecule"])
        atoms.set_cell(plan["cell"])
        return atoms
    return bulk(plan["bulk"], a=plan["lattice_constant"], cubic=True).repeat(plan["repeat"])


def _run_stage(atoms, card, stage, rng, progress):
    """Run one stage and return its ``frames`` frames, ``stride`` steps apart; the friction is in 1/fs."""
    dynamics = Langevin(
        atoms,
        timestep=card.timestep * units.fs,
        temperature_K=stage.get("temperature", card.temperature),
        friction=stage["friction"] / units.fs,
        fixcm=False,  # a constraint fixes the centre of mass, without the bias of this deprecated option
        rng=rng,
    )
    frames = {"positions": [], "energy": [], "forces": [], "velocities": []}
    for _ in range(stage["frames"]):
        dynamics.run(stage["stride"])
        progress.update(stage["stride"])
        frames["positions"].append(atoms.get_positions())
        frames["energy"].append(atoms.get_potential_energy())
        frames["forces"].append(atoms.get_forces(apply_constraint=False))
        frames["velocities"].append(atoms.get_velocities())
    return {name: np.array(values) for name, values in frames.items()}


def velocities(frames: Sequence[Atoms], i: int, interval: float) -> np.ndarray:
    r"""Velocities of the reference at frame ``i`` of a time-ordered split.

    Stored velocities are returned if the frame has any. Otherwise they are central differences of the
    positions (by minimum image if periodic), one-sided at the two ends:

    .. math:: v(t_i) = \frac{x(t_{i+1}) - x(t_{i-1})}{t_{i+1} - t_{i-1}}

    Parameters
    ----------
    frames
        Consecutive frames, a list of ``ase.Atoms``. Some splits jump near their start; use the frames from
        ``card.first_contiguous`` onwards.
    i
        Index of the frame.
    interval
        Time between two frames, fs.

    Returns
    -------
    ndarray
        Velocities, shape ``(N, 3)``, Å per ASE time unit (multiply by ``ase.units.fs`` for Å/fs).

    Raises
    ------
    IndexError
        If there is no frame ``i``.
    ValueError
        If there is only one frame and it stores no velocities.

    Examples
    --------
    >>> from ase import Atoms
    >>> frames = [Atoms("H", [[0.1 * t, 0, 0]]) for t in range(3)]
    >>> velocities(frames, 1, 0.5) * units.fs
    array([[0.2, 0. , 0. ]])
    """
    if not 0 <= i < len(frames):
        raise IndexError(f"frame {i} of {len(frames)}")
    if frames[i].has("momenta"):
        return frames[i].get_velocities()
    before, after = max(i - 1, 0), min(i + 1, len(frames) - 1)
    if before == after:
        raise ValueError("one frame without stored velocities gives no velocity")
    step = frames[after].positions - frames[before].positions
    if frames[i].pbc.any():
        step, _ = find_mic(step, frames[i].cell, frames[i].pbc)
    return step / ((after - before) * interval * units.fs)
