"""Can a force field be learnt from these frames? Training with Lightning, resumable, within a budget."""

import logging
import math
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from ase import Atoms

from egraff_utils import accuracy, calculated, cards, data, models, paths, records
from egraff_utils.config import Config
from egraff_utils.graph import build_graph
from egraff_utils.hyperparameters import TrainingHyperparameters, changed
from egraff_utils.train import compiled
from egraff_utils.train.batches import Batches
from egraff_utils.train.callbacks import Checkpoint, Watch, WeightAverage
from egraff_utils.train.learner import Learner, NonFiniteLossError

__all__ = [
    "Batches",
    "Learner",
    "TrainConfig",
    "Watch",
    "WeightAverage",
    "fit",
    "fit_reference",
    "learn",
    "new_learner",
]

SHIFT_FRAMES = 100
"""Largest number of training frames to whose energies those of a network with weights are shifted."""
COMPILED_FROM, COMPILED_FROM_STEPS = 300.0, 5000
"""Budgets, s and steps, above which the training step is compiled; compiling takes one to five minutes."""


@dataclass(frozen=True)
class TrainConfig(Config):
    """One training: an architecture, a dataset and a budget."""

    kind = "training"
    WORKING_FIELDS = ("campaign", "device", "threads", "progress", "compile")

    model: str
    dataset: str
    campaign: str = "demo"
    preset: str = "small"
    seed: int = 0
    max_seconds: float | None = None
    """Limit of the time spent in the training loop, validation included, s. On a CPU it is the processor time
    per thread, so that other programs do not shorten a training; on a GPU it is the wall time."""
    max_steps: int | None = None
    max_epochs: int | None = None
    """Number of epochs, in place of the one in the model card."""
    network: dict = field(default_factory=dict)
    """Hyperparameters of the network that replace those of the preset."""
    training: dict = field(default_factory=dict)
    """Training hyperparameters that replace those of the preset."""
    device: str = "cpu"
    threads: int = 1
    progress: bool = True
    compile: bool | None = None
    """Whether the training step is compiled (:mod:`egraff_utils.train.compiled`); with ``None`` it is if the
    budget is long enough to repay it."""

    def __post_init__(self) -> None:
        self.require_positive("max_seconds")
        self.require_positive("max_steps", "max_epochs", "threads", whole=True)

    def parameters(self) -> dict:
        """What determines the result, as stored in the record.

        These are the fields, and hashes of the data, the hyperparameters and the network that the names in
        the fields stand for. A calculator, which is not trained, has no preset and no limits.
        """
        if cards.is_calculator(self.model):
            return self._calculator_parameters()
        card, dataset = models.card(self.model), cards.dataset(self.dataset)
        network = card.network(self.preset, **self.network)
        training = changed(card.training(self.preset, **self.training))
        inputs = {
            "data": data.digest(dataset),
            "hyperparameters": records.digest(network, training),
            "network": models.version(self.model),
        }
        return super().parameters() | {"model": self.key.model, "dataset": dataset.name, "inputs": inputs}

    def _calculator_parameters(self) -> dict:
        key, subject = self.key, calculated.of(self.model, self.dataset)
        inputs: dict[str, str | int] = {
            "data": data.digest(self.card),
            "calculator": records.digest(subject.specification()),
        }
        if subject.frames:
            inputs["frames"] = subject.frames
        return {"model": key.model, "dataset": key.dataset, "seed": self.seed, "inputs": inputs}


def fit(config: TrainConfig) -> records.Record:
    """Train a force field and test it, or return the stored record of the same parameters.

    For a model that is a calculator, only its errors are computed (:func:`egraff_utils.accuracy.judge`).

    The weights with the lowest validation loss are written beside the record as ``.safetensors`` and tested
    once. A run that was killed continues from its last checkpoint. An existing record with other parameters
    is moved aside rather than overwritten, and is moved back when it is requested
    (:func:`records.put_aside`).

    Parameters
    ----------
    config
        :class:`TrainConfig`.

    Returns
    -------
    Record
        Kind ``training``. Metrics: ``force_mae`` (meV/Å), ``energy_mae`` (meV), ``energy_mae_per_atom``
        (meV/atom) on the test split, ``zero_force_mae`` (meV/Å, the error of zero forces), ``steps``,
        ``epochs``, ``seconds``, ``seconds_per_epoch`` and ``parameters``. Curves: ``step``, ``seconds``,
        ``train_loss``, ``val_loss``, ``val_force_mae``, ``val_energy_mae``. If the stress is trained
        (``virial_weight``), also ``stress_mae`` and ``zero_stress_mae`` (meV/Å^3); of a network that came
        with weights also ``force_slope``. The status is ``failed`` if the loss became non-finite; the message
        then gives the step.

    Raises
    ------
    ValueError
        If the model, dataset, preset or a hyperparameter is unknown, or a split cannot be used for training
        (:func:`data.check_splits`; :func:`data.check_stress` if the stress is trained).
    """
    make = accuracy.judge if cards.is_calculator(config.model) else _fitted
    return records.run(config, lambda: make(config))


def _fitted(config: TrainConfig) -> records.Outcome:
    card = models.card(config.model)
    hyperparameters = card.training(config.preset, **config.training)
    if card.pretrained:
        card.check_covers(config.card)
    splits = data.checked(config.dataset, ("train", "val", "test"))
    if hyperparameters.virial_weight:
        data.check_stress(config.dataset, splits)
    train, validation, test = splits.values()
    learner = new_learner(config, hyperparameters, train)
    status, message = learn(learner, config, config.parameters(), train, validation)
    metrics, curves = _costs(learner), learner.history_arrays()
    if learner.best is not None:
        learner.force_field.load_state_dict(learner.best)
        models.round_large(learner.force_field, getattr(torch, hyperparameters.kept_as))
        energies, forces = accuracy.predict(learner.force_field, test)
        found, on_frames = accuracy.compare(test, energies, forces)
        found += [accuracy.slope(test, forces)] if card.pretrained else []
        if hyperparameters.virial_weight:
            found += accuracy.stress_errors(learner.force_field, test)
        metrics, curves = found + metrics, curves | on_frames

    def save(path: Path) -> dict:
        if status != "complete":
            return {"weights": None}
        models.save(learner.force_field, path.with_suffix(".safetensors"))
        return {"weights": records.digest(path.with_suffix(".safetensors"))}

    made = {"data": data_digest(train + validation + test), "hyperparameters": asdict(hyperparameters)}
    return records.Outcome(
        metrics, curves, status, message, provenance=made, save=save, checkpoint=_checkpoint_path(config)
    )


def fit_reference(
    frames: Sequence[Atoms], prior: Mapping[int, float] | None = None
) -> tuple[dict[int, float], float]:
    """Reference energy of each element and force scale of a training set, in float64.

    The energies are the prior plus the least-squares fit of the total energies that has the smallest norm.
    With a single composition the fit spreads the mean residual energy over the elements.

    Parameters
    ----------
    frames
        ``list[ase.Atoms]`` with energy (eV) and forces (eV/Å).
    prior
        ``{atomic number: energy}``, eV; a missing element counts as zero.

    Returns
    -------
    energies : dict[int, float]
        Reference energies, eV, by atomic number.
    scale : float
        Root mean square of the force components, eV/Å.
    """
    elements, counts = calculated.compositions(frames)
    first = np.array([(prior or {}).get(z, 0.0) for z in elements])
    correction = calculated.fit_shifts(frames, counts @ first)
    forces = np.concatenate([atoms.get_forces() for atoms in frames])
    energies = {z: energy + correction[z] for z, energy in zip(elements, first, strict=True)}
    return energies, float(np.sqrt(np.mean(forces**2)))


def new_learner(config: TrainConfig, hyperparameters: TrainingHyperparameters, train: list[Atoms]) -> Learner:
    """Learner of a new force field: weights drawn with the seed, elements and scales of these frames.

    A network that comes with weights keeps them and its scale, and its energies get a shift per element.
    """
    card, own = cards.dataset(config.dataset), models.card(config.model)
    elements = np.unique(np.concatenate([atoms.numbers for atoms in train]))
    torch.manual_seed(config.seed)
    cutoff = own.network(config.preset, **config.network)["cutoff"]
    neighbors = np.mean([_mean_neighbors(atoms, cutoff) for atoms in train[:: max(1, len(train) // 50)]])
    network = {"average_neighbors": round(float(neighbors), 3), **config.network}
    force_field = models.build(config.key.model, config.preset, elements, **network)
    fitted = (
        fit_shifts(force_field, train) if own.pretrained else fit_reference(train, card.reference_energies)
    )
    force_field.set_reference(*fitted)
    limits: dict[str, Any] = {"max_seconds": config.max_seconds, "max_steps": config.max_steps}
    epochs = config.max_epochs or hyperparameters.max_epochs
    return Learner(force_field.to(config.device), hyperparameters, max_epochs=epochs, **limits)


def fit_shifts(force_field: models.ForceField, frames: list[Atoms]) -> tuple[dict[int, float], float]:
    """Reference energies of a network with weights, ``{atomic number: eV}``, and its scale, which is one.

    The energies are fitted to those of 100 evenly spaced frames at most, after those of the network
    (:func:`egraff_utils.calculated.fit_shifts`).
    """
    frames = data.thinned(frames, SHIFT_FRAMES)
    energies = accuracy.predict(force_field, frames)[0]
    force_field.train()
    return calculated.fit_shifts(frames, energies), 1.0


def _mean_neighbors(atoms: Atoms, cutoff: float) -> float:
    return build_graph(atoms, cutoff).edge_index.shape[1] / len(atoms)


def learn(
    learner: Learner,
    config: TrainConfig,
    parameters: dict,
    train: Sequence[Atoms],
    validation: Sequence[Atoms],
) -> tuple[str, str]:
    """Train until the budget ends; a compiled step that the learner already has is used.

    Parameters
    ----------
    learner
        :class:`Learner`; afterwards it holds the best weights, the history and the number of ``steps``.
    config
        :class:`TrainConfig`.
    parameters
        Parameters that a checkpoint must share to be resumed.
    train, validation
        ``list[ase.Atoms]`` with energy (eV) and forces (eV/Å).

    Returns
    -------
    status, message : str
        Status and message of the record.

    Raises
    ------
    KeyboardInterrupt
        If the training was interrupted; the last checkpoint remains.
    """
    torch.set_num_threads(config.threads)
    # Radial functions far from their centre give numbers below 1e-38, with which CPUs calculate slowly.
    torch.set_flush_denormal(True)
    size, cutoff = learner.hyper.batch_size, learner.force_field.cutoff
    common: dict[str, Any] = {
        "cutoff": cutoff,
        "device": config.device,
        "virials": learner.hyper.virial_weight > 0,
    }
    steps_done = lambda: learner.global_step  # noqa: E731
    loader = Batches(train, size, seed=config.seed, steps_done=steps_done, **common)
    batches = Batches(validation, max(size, 10), **common)
    learner.batches_per_epoch = len(loader)
    learner.compiled = learner.compiled or _compiled(config, learner, loader)
    watch = Watch(progress=config.progress)
    watch.bar.set_description(f"{config.model} on {cards.dataset(config.dataset).name}")
    decay = learner.hyper.ema_decay
    average = [WeightAverage(decay)] if decay else []
    callbacks = [watch, *average, Checkpoint(_checkpoint_path(config), parameters)]
    with _quiet():
        trainer = _trainer(config, learner, callbacks)
        try:
            checkpoint = _usable_checkpoint(config, parameters)
            trainer.fit(learner, loader, batches, ckpt_path=checkpoint, weights_only=True)
        except NonFiniteLossError as error:
            return "failed", str(error)
        finally:
            learner.steps = trainer.global_step
            watch.bar.close()
    if trainer.interrupted:
        raise KeyboardInterrupt
    return "complete", ""


def _compiled(config: TrainConfig, learner: Learner, loader: Batches) -> compiled.Step | None:
    """Training step compiled for the shape of the batches; ``None`` if compiling fails or is not worth it."""
    long = (config.max_seconds or math.inf) > COMPILED_FROM and (
        config.max_steps or math.inf
    ) > COMPILED_FROM_STEPS
    if not (long if config.compile is None else config.compile):
        return None
    virials = learner.hyper.virial_weight > 0
    step = compiled.Step(learner.force_field.train(), learner.mean_errors, loader.shape(), virials=virials)
    try:
        step.compile(next(iter(loader)))
    except Exception as error:  # the compiler raises errors of many types
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        print(
            f"{config.model}: training is not compiled ({reason}); it continues in eager mode",
            file=sys.stderr,
        )
        return None
    return step


def _trainer(config: TrainConfig, learner: Learner, callbacks: list[lightning.Callback]) -> lightning.Trainer:
    gpu = str(config.device).startswith("cuda")
    return lightning.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        max_epochs=-1,
        callbacks=callbacks,
        gradient_clip_val=learner.hyper.clip_norm,
        num_sanity_val_steps=0,
        inference_mode=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without Lightning's announcements of hardware and its advice on worker processes."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            log.setLevel(level)


def _checkpoint_path(config: TrainConfig) -> Path:
    parameters = config.parameters()
    name = f"{config.key.path.stem}-{records.digest(parameters)[:8]}.ckpt"
    return paths.runs() / config.campaign / "checkpoints" / name


def _usable_checkpoint(config: TrainConfig, parameters: dict) -> Path | None:
    """Path of the checkpoint of a run with the same parameters, else ``None``.

    A checkpoint that is truncated or changed is set aside, and training starts anew. It is a zip archive,
    whose check sums torch writes but does not compare.
    """
    path = _checkpoint_path(config)
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if changed := archive.testzip():
                raise ValueError(f"its part {changed} has changed")
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises errors of many types
        paths.set_aside(path, f"{type(error).__name__}: {error}")
        return None
    return path if stored.get("parameters") == parameters else None


def _costs(learner: Learner) -> list[records.Metric]:
    metric = records.Metric.of
    epochs = max(learner.steps / learner.batches_per_epoch, 1e-9)
    seconds = learner.history[-1]["seconds"] if learner.history else learner.seconds
    return [
        metric("steps", learner.steps),
        metric("epochs", epochs),
        metric("seconds", seconds),
        metric("seconds_per_epoch", seconds / epochs),
        metric("compile_seconds", learner.compiled.seconds if learner.compiled else 0.0),
        metric("parameters", learner.force_field.num_parameters()),
    ]


def data_digest(frames: Sequence[Atoms]) -> str:
    """Hash of the positions, forces and energies of frames."""
    arrays = [array for a in frames for array in (a.positions, a.get_forces(), a.get_potential_energy())]
    return records.digest(*arrays)
