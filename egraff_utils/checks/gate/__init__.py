r"""May this force field be simulated? It must pass checks of physical laws before it is rolled out.

Every check gives one number, which is compared with a tolerance (:data:`CHECKS`). Most checks compare the
prediction for a frame with that for an equivalent form of the frame, called a guise. Their number is the
largest deviation in units of the force scale,

.. math:: \delta = \frac{\max(|F' - F|_\infty,\ |E' - E| / \text{Å})}{F_\mathrm{rms}},

where F and E are transformed to the guise, and :math:`F_\mathrm{rms}` is the root mean square of a force
component, eV/Å.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator

from egraff_utils import cards, data, records, weights
from egraff_utils.calculated import Calculated
from egraff_utils.checks.gate.conservation import drift
from egraff_utils.checks.gate.consistency import (
    deviation,
    force_scale,
    gradient_error,
    isolated_error,
    not_finite,
)
from egraff_utils.checks.gate.edges import edge_errors
from egraff_utils.checks.gate.guises import GUISES
from egraff_utils.checks.gate.smoothness import jumps
from egraff_utils.config import Config
from egraff_utils.md.calculator import calculator_of, difference
from egraff_utils.md.frames import check_alike
from egraff_utils.md.temperature import draw_velocities
from egraff_utils.models import ForceField
from egraff_utils.records import Metric
from egraff_utils.units import EV_TO_MEV


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

    def __post_init__(self) -> None:
        self.require_positive("structures", "runs", "run_steps", "threads", whole=True)
        self.require_positive("temperature", "timestep")

    def parameters(self) -> dict:
        """What determines the result, as stored in the record, together with the tolerances."""
        tolerances = {name: check.tolerance for name, check in CHECKS.items()}
        return super().parameters() | {"tolerances": tolerances}


def check(config: GateConfig, *, force_field: ForceField | Calculated | None = None) -> records.Record:
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


def _checked(
    config: GateConfig, frames: Sequence[ase.Atoms], force_field: ForceField | Calculated | None
) -> records.Outcome:
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
    calculator: Calculator,
    atoms: ase.Atoms | Sequence[ase.Atoms],
    *,
    cutoff: float | None = None,
    temperature: float = 300.0,
    timestep: float = 0.5,
    structures: int = 3,
    runs: int = 2,
    run_steps: int = 200,
    step: float = 1e-4,
    tolerances: dict[str, float] | None = None,
    seed: int = 0,
) -> records.Record:
    """Run all checks that apply to any ASE calculator; nothing is stored.

    Parameters
    ----------
    calculator
        ASE calculator with energy (eV) and forces (eV/Å).
    atoms
        ``ase.Atoms`` or a list of them, of one composition, cell, periodicity and masses, away from a
        minimum.
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
        If there is no frame, frames are not copies of one system, a tolerance does not have the name of a
        check, or forces vanish on the frames.
    TypeError
        If ``calculator`` is not an ASE calculator.
    """
    frames = [atoms] if isinstance(atoms, ase.Atoms) else list(atoms)
    _check_input(calculator, frames, tolerances)
    settings: dict[str, Any] = {
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


def failed(record: records.Record) -> list[str]:
    """Names of the checks that failed in a record, a list; a missing value counts as failed."""
    return _beyond(record.metrics, record.parameters["tolerances"])


def badge(record: records.Record) -> str:
    """``pass``, or the names of the checks that failed.

    Examples
    --------
    >>> limits = {"tolerances": {"jump": 0.01, "drift": 1.0}}
    >>> found = [Metric("jump", 7.0, "meV"), Metric("drift", 0.2, "meV/atom/ps")]
    >>> badge(records.Record("gate", "demo", "ethanol", "mace", 0, limits, found))
    'jump'
    """
    return ", ".join(failed(record)) or "pass"


def _fails(metric: Metric, tolerance: float) -> bool:
    return metric.value is None or abs(metric.value) > tolerance


def _judged(metrics: Sequence[Metric], limits: Mapping[str, float]) -> tuple[list[Metric], str]:
    """The metrics preceded by the verdict ``passed``, and the message of a record."""
    bad = _beyond(metrics, limits)
    return [Metric("passed", float(not bad), "1"), *metrics], ", ".join(bad)


def _beyond(metrics: Sequence[Metric], limits: Mapping[str, float]) -> list[str]:
    return [m.name for m in metrics if m.name in limits and _fails(m, limits[m.name])]


class Subject(NamedTuple):
    """A potential in the forms that the checks need."""

    calculator: Calculator
    """ASE calculator in the precision of simulations."""
    precise: Calculator
    """ASE calculator in float64 where available, else the same one."""
    cutoff: float | None
    """Cutoff, Å."""
    replicas: Callable[[int], Calculator] | None
    """Function that returns a calculator for n replicas; ``None`` if the potential has no batches."""


def in_double(force_field: ForceField | Calculated) -> ForceField | Calculated:
    """Copy of a force field with its network, including constants, in double precision.

    A calculator has the precision that it has, and is returned itself.
    """
    if isinstance(force_field, Calculated):
        return force_field
    return copy.deepcopy(force_field).double().eval()


def _settled(config: GateConfig) -> tuple[GateConfig, list[ase.Atoms]]:
    """The config with all fields set, and the frames."""
    card = cards.dataset(config.dataset)
    parts = {part: data.checked(card, (part,))[part] for part in card.parts(config.split)}
    split = min(parts, key=lambda part: _richness(parts[part][0]))
    check_alike(parts[split], f"{card.name}/{split}")
    temperature, timestep = card.conditions(split)
    defaults = {"temperature": temperature, "timestep": timestep}
    defaults |= {"runs": 5, "run_steps": 400} if card.system == "molecule" else {"runs": 3, "run_steps": 200}
    asked = {name: getattr(config, name) for name in defaults}
    settled: dict[str, Any] = {
        name: defaults[name] if value is None else value for name, value in asked.items()
    }
    return replace(config, dataset=card.name, split=split, **settled), parts[split]


def _richness(atoms: ase.Atoms) -> tuple[int, int]:
    return -len(set(atoms.numbers)), len(atoms)


def _measured(config: GateConfig) -> dict[str, Any]:
    names = ("temperature", "timestep", "structures", "runs", "run_steps", "seed")
    return {name: getattr(config, name) for name in names}


def _check_input(
    calculator: Calculator, frames: Sequence[ase.Atoms], tolerances: Mapping[str, float] | None
) -> None:
    if not hasattr(calculator, "get_potential_energy"):
        raise TypeError(f"{calculator!r} is no ASE calculator: it has no get_potential_energy")
    if not frames:
        raise ValueError("there is no frame to examine")
    for index, atoms in enumerate(frames):
        if unlike := difference(atoms, frames[0]):
            raise ValueError(
                f"frame {index} {unlike} like frame 0; give frames of one composition, cell, periodicity "
                "and masses, whose runs are compared"
            )
    for name in tolerances or {}:
        if name not in CHECKS:
            raise cards.unknown("check", name, CHECKS)


def _measure(
    subject: Subject,
    frames: Sequence[ase.Atoms],
    *,
    structures: int,
    seed: int,
    temperature: float,
    timestep: float,
    runs: int,
    run_steps: int,
    step: float = 1e-4,
) -> tuple[list[Metric], dict[str, np.ndarray], dict[str, str]]:
    """Metrics, curves, and the reasons for which checks were skipped, by check."""
    chosen = _spread(frames, structures)
    scale, skipped = force_scale(subject.calculator, chosen), _skipped(subject, chosen[0])
    found: dict[str, float] = {"finite": not_finite(subject.calculator, _spread(frames, 20))}
    found["gradient"] = max(gradient_error(subject.precise, a, step=step, seed=seed) for a in chosen)
    for name in (name for name in GUISES if name not in skipped):
        rng = np.random.default_rng([seed, len(name)])
        found[name] = max(deviation(subject.calculator, a, GUISES[name](a, rng), scale) for a in chosen)
    found["isolated"] = isolated_error(subject.calculator, chosen[0], scale)
    if "edges" not in skipped:
        found["edges"] = max(edge_errors(a, subject.cutoff) for a in chosen)  # type: ignore[arg-type]
    metrics = {name: Metric(name, float(value), CHECKS[name].unit) for name, value in found.items()}
    metrics["force_scale"] = Metric("force_scale", EV_TO_MEV * scale, "meV/Å")
    curves: dict[str, np.ndarray] = {}
    if "jump" not in skipped:
        more, curves = jumps(subject, _spread(frames, 100 if len(frames[0]) < 50 else 10), scale)
        metrics |= more
    if "drift" not in skipped:
        starts = [_start(a, temperature, seed, i) for i, a in enumerate(_repeated(frames, runs))]
        more, energies = drift(subject, starts, timestep=timestep, steps=run_steps)
        metrics |= more
        curves |= energies
    order = [*CHECKS, *(name for name in metrics if name not in CHECKS)]
    return [metrics[name] for name in order if name in metrics], curves, skipped


def _skipped(subject: Subject, atoms: ase.Atoms) -> dict[str, str]:
    """Reasons for which checks do not apply, by check."""
    reasons = {}
    if not atoms.pbc.any():
        reasons["images"] = "nothing is periodic"
    if subject.replicas is None:
        reasons["edges"] = "a calculator shows no graph"
    if len(atoms) < 2:
        reasons |= dict.fromkeys(("jump", "drift"), "there is one atom")
    elif subject.cutoff is None:
        reasons["jump"] = "no cutoff is known"
    return reasons


def _start(atoms: ase.Atoms, temperature: float, seed: int, run: int) -> ase.Atoms:
    """A frame with thermal velocities and its centre of mass at rest."""
    return draw_velocities(atoms.copy(), temperature, np.random.default_rng([seed, run, 2]))


def _spread(frames: Sequence[ase.Atoms], count: int) -> list[ase.Atoms]:
    """``count`` equally spaced frames, or all if there are fewer."""
    places = np.linspace(0, len(frames) - 1, min(count, len(frames)))
    return [frames[i] for i in np.unique(places.astype(int))]


def _repeated(frames: Sequence[ase.Atoms], count: int) -> list[ase.Atoms]:
    """Exactly ``count`` frames, some of them repeated if there are fewer."""
    chosen = _spread(frames, count)
    return [chosen[i % len(chosen)] for i in range(count)]
