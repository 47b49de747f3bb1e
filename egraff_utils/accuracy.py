"""How far are predictions from the reference? Errors of energies and forces, also on shifted frames."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from egraff_utils import calculated, cards, data, records, statistics, weights
from egraff_utils.calculated import Calculated
from egraff_utils.config import Config, Kind
from egraff_utils.graph import build_graph
from egraff_utils.models import ForceField
from egraff_utils.records import Metric, Record
from egraff_utils.units import EV_TO_MEV


def predict(
    force_field: ForceField | Calculated, frames: Sequence[Atoms], *, batch_size: int = 10
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Predicted energies, shape ``(S,)``, eV, and forces, list of ``(N, 3)``, eV/Å, of a list of frames."""
    if isinstance(force_field, Calculated):
        return force_field.predict(frames)
    force_field.eval()
    device, energies, forces = force_field.scale.device, [], []
    for k in range(0, len(frames), batch_size):
        part = frames[k : k + batch_size]
        prediction = force_field(build_graph(part, force_field.cutoff).to(device, dtype=force_field.dtype))
        energies.append(prediction.energy.cpu().numpy())
        sizes = [len(atoms) for atoms in part]
        forces += [f.numpy() for f in torch.split(prediction.forces.cpu(), sizes)]
    return np.concatenate(energies), forces


def compare(
    frames: Sequence[Atoms], energies: np.ndarray, forces: Sequence[np.ndarray]
) -> tuple[list[Metric], dict[str, np.ndarray]]:
    """Metrics and curves of the errors of predictions with respect to the reference.

    Parameters
    ----------
    frames
        ``list[ase.Atoms]`` with energy (eV) and, where available, forces (eV/Å).
    energies
        Predicted energies, shape ``(F,)``, eV.
    forces
        Predicted forces, list of ``(N, 3)``, eV/Å.

    Returns
    -------
    metrics, curves
        ``force_mae`` and ``zero_force_mae`` (meV/Å, where the frames have forces), ``energy_mae`` (meV),
        ``energy_mae_per_atom`` (meV/atom), ``energy_offset`` (mean of predicted minus reference, meV) and
        ``energy_mae_shifted`` (meV, with the mean of every composition removed), with 95 % intervals over
        blocks of frames. Curves ``energy``, ``energy_reference`` (F,) eV, ``composition`` (F,) and
        ``force_error`` (F,) meV/Å, mean over the components of a frame.
    """
    truth = np.array([atoms.get_potential_energy() for atoms in frames])
    composition = np.array([atoms.get_chemical_formula() for atoms in frames])
    sizes = np.array([len(atoms) for atoms in frames])
    error = (energies - truth) * EV_TO_MEV
    shifted = error.copy()
    for name in np.unique(composition):
        shifted[composition == name] -= error[composition == name].mean()
    metrics = [
        _mean("energy_mae", np.abs(error), composition),
        _mean("energy_mae_per_atom", np.abs(error) / sizes, composition),
        _mean("energy_offset", error, composition),
        _mean("energy_mae_shifted", np.abs(shifted), composition),
    ]
    curves = {"energy": energies, "energy_reference": truth, "composition": composition}
    true_forces = _forces(frames)
    if true_forces is None:
        return metrics, curves
    pairs = list(zip(forces, true_forces, strict=True))
    curves["force_error"] = np.array([np.abs(f - t).mean() for f, t in pairs]) * EV_TO_MEV
    zero = np.concatenate([t.ravel() for _, t in pairs])
    mae = np.concatenate([np.abs(f - t).ravel() for f, t in pairs]).mean() * EV_TO_MEV
    of_forces = [
        Metric.of("force_mae", mae, *interval(curves["force_error"], composition), len(frames)),
        Metric.of("zero_force_mae", np.abs(zero).mean() * EV_TO_MEV),
    ]
    return of_forces + metrics, curves


def stress_errors(force_field: ForceField, frames: Sequence[Atoms]) -> list[Metric]:
    """Metrics ``stress_mae`` and ``zero_stress_mae``, meV/Å^3, over the components and frames, a list.

    Parameters
    ----------
    force_field
        :class:`~egraff_utils.models.ForceField`.
    frames
        ``list[ase.Atoms]`` with stress (eV/Å^3) or virial (:func:`~egraff_utils.data.strain_derivative`).
    """
    stresses = [data.strain_derivative(atoms) / atoms.get_volume() for atoms in frames]
    truth = np.array(stresses).reshape(-1, 9)
    found = np.array([_stress(force_field, atoms) for atoms in frames]).reshape(-1, 9)
    composition = np.array([atoms.get_chemical_formula() for atoms in frames])
    return [
        _mean("stress_mae", np.abs(found - truth).mean(1) * EV_TO_MEV, composition),
        Metric.of("zero_stress_mae", np.abs(truth).mean() * EV_TO_MEV),
    ]


def _stress(force_field, atoms):
    graph = build_graph(atoms, force_field.cutoff, dtype=force_field.dtype).to(force_field.known.device)
    return force_field.with_virials(graph)[2][0].detach().cpu().numpy() / atoms.get_volume()


def _forces(frames):
    try:
        return [atoms.get_forces() for atoms in frames]
    except PropertyNotImplementedError:
        return None


def interval(values: np.ndarray, composition: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean over frames, from blocks in time within every composition.

    Compositions count as independent of each other.

    Parameters
    ----------
    values, composition
        Value and name of the composition of every frame, shape ``(F,)``; frames of one composition are in
        their order in time.

    Returns
    -------
    low, high
        Ends of the interval in the unit of the values; NaN where a composition has fewer than two frames.

    Examples
    --------
    >>> interval(np.array([1.0, 1.0, 5.0, 5.0]), np.array(["Li", "Li", "S", "S"]))
    (3.0, 3.0)
    """
    mean, below, above = np.mean(values), 0.0, 0.0
    for name in np.unique(composition):
        own = values[composition == name]
        low, high = statistics.block_bootstrap_interval(own)
        share = len(own) / len(values)
        below += (share * (own.mean() - low)) ** 2
        above += (share * (high - own.mean())) ** 2
    return float(mean - np.sqrt(below)), float(mean + np.sqrt(above))


def _mean(name, values, composition):
    return Metric.of(name, values.mean(), *interval(values, composition), len(values))


@dataclass(frozen=True)
class TransferConfig(Config):
    """One trained model and the shifted frames on which its errors are taken."""

    model: str
    dataset: str
    """Dataset that the model was trained on."""
    campaign: str = "demo"
    seed: int = 0
    """Seed of the training."""
    split: str = "test"
    target: str | None = None
    """Dataset that the split belongs to, if it is not the one trained on."""
    frames: int | None = None
    """Largest number of frames of every composition, equally spaced; ``None`` takes all."""
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        self.require_positive("frames", "threads", whole=True)

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """:class:`~egraff_utils.config.Kind` ``errors`` with the name of the shift."""
        return Kind("errors", shift=cards.shift(self.split, self.target) or "test")


def errors(config: TransferConfig, *, force_field: ForceField | None = None) -> Record:
    """Errors of a trained force field on a shifted set of frames.

    The energy zero of a model is fitted to its training set. On other molecules or compositions the raw
    energy error is mostly a constant, which does not affect simulations. It is therefore reported separately,
    and the error is reported again with the mean of each composition removed.

    Parameters
    ----------
    config
        :class:`TransferConfig`.
    force_field
        Force field to use in place of the trained weights.

    Returns
    -------
    Record
        Kind ``errors_<shift>``, with the metrics and curves of `compare`. A stored record is returned
        if it was made with the same weights and frames.

    Raises
    ------
    FileNotFoundError
        If there are no trained weights; the message names the command that trains.
    ValueError
        If the frames hold an element that the model was not trained on, or a name is unknown.
    """
    card = cards.dataset(config.target or config.dataset)
    frames = data.checked(card, (config.split,), forces=False)[config.split]
    frames = data.thinned(frames, config.frames)
    config = replace(config, target=config.target and card.name)
    digests = {
        "frames": data.digest(card, (config.split,)),
        "weights": weights.digest(config, force_field),
        "data": records.digest(*[array for a in frames for array in (a.positions, a.get_potential_energy())]),
    }

    def make():
        torch.set_num_threads(config.threads)
        trained = (force_field or weights.load(config)).to(config.device)
        return records.Outcome(*compare(frames, *predict(trained, frames)))

    return records.run(config, make, **digests)


def judge(config: Config) -> records.Outcome:
    """Errors of a model that is a calculator, in the form of a training of no step.

    Parameters
    ----------
    config
        Configuration with ``model``, ``dataset`` and ``card``.

    Returns
    -------
    Outcome
        Metrics and curves of :func:`compare` on the test split, the slope of :func:`force_slope`, ``steps``,
        ``epochs``, ``seconds`` and ``parameters``, which are zero, and the validation errors as a learning
        curve of one point. Where the card limits the ``frames``, they are evenly spaced ones. The
        provenance has ``shifts``, the energy that is added for an atom of each element, eV, fitted to the
        training split (:func:`~egraff_utils.calculated.fit_shifts`), and ``calculator``, what determined the
        numbers.

    Raises
    ------
    ValueError
        Before any work, if the calculator cannot be used on the dataset.
    """
    subject = calculated.of(config.model, config.dataset)
    subject.make()
    parts = data.checked(config.dataset, ("train", "val", "test")).values()
    train, validation, test = (data.thinned(part, subject.frames) for part in parts)
    subject.check(train[0])
    if config.model != cards.REFERENCE:
        subject.shifts = calculated.fit_shifts(train, subject.predict(train)[0])
    energies, forces = subject.predict(test)
    metrics, curves = compare(test, energies, forces)
    metrics.append(slope(test, forces))
    by_name = {metric.name: metric.value for metric in compare(validation, *subject.predict(validation))[0]}
    metrics += [Metric.of(name, 0.0) for name in ("steps", "epochs", "seconds", "parameters")]
    curves |= {name: np.zeros(1) for name in ("step", "seconds")}
    curves |= {f"val_{name}": np.array([by_name[name]]) for name in ("force_mae", "energy_mae")}
    shifts = {str(number): shift for number, shift in subject.shifts.items()}
    made = {"shifts": shifts, "calculator": subject.specification()}
    return records.Outcome(metrics, curves, provenance=made)


def slope(frames: Sequence[Atoms], forces: Sequence[np.ndarray]) -> Metric:
    """Metric ``force_slope`` of :func:`force_slope`."""
    return Metric("force_slope", force_slope(frames, forces), "1", n=len(frames))


def force_slope(frames: Sequence[Atoms], forces: Sequence[np.ndarray]) -> float:
    """Slope of a straight line through predicted force components over those of the labels, dimensionless.

    Below one, the potential is too soft, as universal potentials were found to be [Deng2025]_. The line has
    an intercept.

    References
    ----------
    .. [Deng2025] B. Deng et al., npj Comput. Mater. 11, 9 (2025).

    Examples
    --------
    >>> from ase.calculators.singlepoint import SinglePointCalculator
    >>> pulled = Atoms("H2", [[0, 0, 0], [1, 0, 0]])
    >>> pulled.calc = SinglePointCalculator(pulled, forces=[[0.2, 0, 0], [-0.2, 0, 0]])
    >>> round(force_slope([pulled], [np.array([[0.1, 0, 0], [-0.1, 0, 0]])]), 3)
    0.5
    """
    labels = np.concatenate([atoms.get_forces().ravel() for atoms in frames])
    return float(np.polyfit(labels, np.concatenate([part.ravel() for part in forces]), 1)[0])
