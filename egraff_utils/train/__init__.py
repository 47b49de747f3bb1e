"""Can a force field be learnt from these frames? Training with Lightning, resumable, within a budget."""

import logging
import math
import sys
import time
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import lightning
import numpy as np
import torch
from tqdm import tqdm

from egraff_utils import accuracy, calculated, cards, data, models, paths, records
from egraff_utils.config import Config
from egraff_utils.graph import build_graph, collate
from egraff_utils.train import compiled, optimizers
from egraff_utils.train.compiled import Batch
from egraff_utils.units import EV_TO_MEV

CHECKPOINT_INTERVAL = 20.0  # s
COMPILED_FROM, COMPILED_FROM_STEPS = 300.0, 5000
"""Budgets, s and steps, above which the training step is compiled; compiling takes one to five minutes."""
FINITE_CHECK_INTERVAL = 20  # steps; reading the loss on the host stalls a GPU


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

    def parameters(self):
        """What determines the result, as stored in the record.

        These are the fields, and hashes of the data, the hyperparameters and the network that the names in
        the fields stand for. A calculator, which is not trained, has no preset and no limits.
        """
        if cards.is_calculator(self.model):
            return self._calculator_parameters()
        card, dataset = models.card(self.model), cards.dataset(self.dataset)
        network = card.network(self.preset, **self.network)
        training = cards.changed(card.training(self.preset, **self.training))
        inputs = {
            "data": data.digest(dataset),
            "hyperparameters": records.digest(network, training),
            "network": models.version(self.model),
        }
        return super().parameters() | {"dataset": dataset.name, "inputs": inputs}

    def _calculator_parameters(self):
        key, subject = self.key, calculated.of(self.model, self.dataset)
        inputs = {"data": data.digest(self.card), "calculator": records.digest(subject.specification())}
        return {"model": key.model, "dataset": key.dataset, "seed": self.seed, "inputs": inputs}


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number."""


def fit(config):
    """Train a force field and test it, or return the stored record of the same parameters.

    Of a model that is a calculator only the errors are taken (:func:`egraff_utils.accuracy.judge`).

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
        ``train_loss``, ``val_loss``, ``val_force_mae``, ``val_energy_mae``. The status is ``failed`` if the
        loss became non-finite; the message then gives the step.

    Raises
    ------
    ValueError
        If the model, dataset, preset or a hyperparameter is unknown, or a split cannot be used for training
        (:func:`data.check_splits`).
    """
    make = accuracy.judge if cards.is_calculator(config.model) else _fitted
    return records.run(config, lambda: make(config))


def _fitted(config):
    hyperparameters = models.card(config.model).training(config.preset, **config.training)
    train, validation, test = data.checked(config.dataset, ("train", "val", "test")).values()
    learner = new_learner(config, hyperparameters, train)
    status, message = learn(learner, config, config.parameters(), train, validation)
    metrics, curves = _costs(learner), learner.history_arrays()
    if learner.best is not None:
        learner.force_field.load_state_dict(learner.best)
        models.round_large(learner.force_field, getattr(torch, hyperparameters.kept_as))
        found, on_frames = accuracy.compare(test, *accuracy.predict(learner.force_field, test))
        metrics, curves = found + metrics, curves | on_frames

    def save(path):
        if status != "complete":
            return {"weights": None}
        models.save(learner.force_field, path.with_suffix(".safetensors"))
        return {"weights": records.digest(path.with_suffix(".safetensors"))}

    made = {"data": data_digest(train + validation + test), "hyperparameters": asdict(hyperparameters)}
    return records.Outcome(
        metrics, curves, status, message, provenance=made, save=save, checkpoint=_checkpoint_path(config)
    )


# -- fitting the scales ---------------------------------------------------------------------------------


def fit_reference(frames, prior=None):
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
    elements = sorted({int(z) for atoms in frames for z in atoms.numbers})
    first = np.array([(prior or {}).get(z, 0.0) for z in elements])
    counts = np.array([[np.sum(atoms.numbers == z) for z in elements] for atoms in frames], dtype=float)
    energy = np.array([atoms.get_potential_energy() for atoms in frames])
    correction = np.linalg.lstsq(counts, energy - counts @ first, rcond=None)[0]
    forces = np.concatenate([atoms.get_forces() for atoms in frames])
    return dict(zip(elements, first + correction, strict=True)), float(np.sqrt(np.mean(forces**2)))


# -- data on the device ---------------------------------------------------------------------------------


class Batches:
    """Batches of one split; their graphs are built once.

    With a seed, the order of epoch k is the k-th permutation of that seed. Iteration starts at the batch that
    follows ``steps_done()`` steps, so a resumed run sees the same batches as an uninterrupted one.
    """

    def __init__(self, frames, size, *, cutoff, device, seed=None, steps_done=lambda: 0):
        self.samples = [_sample(atoms, cutoff, device) for atoms in frames]
        self.size, self.seed, self.steps_done = min(size, len(frames)), seed, steps_done
        self.sizes = np.array([compiled.sizes(sample.graph) for sample in self.samples])

    def __len__(self):
        return math.ceil(len(self.samples) / self.size)

    def __iter__(self):
        epoch, first = divmod(self.steps_done(), len(self)) if self.seed is not None else (0, 0)
        order = self._order(epoch) if self.seed is not None else np.arange(len(self.samples))
        for k in range(first, len(self)):
            yield _join([self.samples[i] for i in order[k * self.size : (k + 1) * self.size]])

    def _order(self, epoch):
        """Order of the samples in an epoch.

        If their numbers of atoms differ, every batch takes one sample from each size class, so that all
        batches have about the same number of edges.
        """
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.samples))
        _, atoms, pairs = self.sizes.T
        if np.ptp(atoms) == 0:
            return order
        last, others = np.split(order, [len(order) % self.size])
        classes = others[np.argsort(pairs[others], kind="stable")].reshape(self.size, -1)
        return np.concatenate([random.permutation(random.permuted(classes, axis=1).T).ravel(), last])

    def shape(self):
        """:class:`~egraff_utils.train.compiled.Shape` of the largest batch of any epoch, ghost included."""
        _, atoms, pairs = self.sizes.T
        step = len(pairs) // self.size if np.ptp(atoms) else 1  # from one size class to the next
        largest = self.size, atoms.max() * self.size, np.sort(pairs)[::-step][: self.size].sum()
        same = np.ptp(self.sizes, axis=0).max() == 0 and len(self.samples) % self.size == 0
        return compiled.Shape(*(int(n) + (not same and k < 2) for k, n in enumerate(largest)))

    def state_dict(self):
        """Empty, as the step count gives the position; Lightning expects this method of resumable loaders."""
        return {}

    def load_state_dict(self, state):
        """Nothing to restore, see :meth:`state_dict`."""


def _sample(atoms, cutoff, device):
    graph = build_graph(atoms, cutoff, dtype=torch.float32).to(device)
    energy = torch.tensor([atoms.get_potential_energy()], dtype=torch.float64, device=device)
    return Batch(graph, energy, torch.tensor(atoms.get_forces(), dtype=torch.float32, device=device))


def _join(samples):
    graphs, energies, forces = zip(*samples, strict=True)
    return Batch(collate(graphs), torch.cat(energies), torch.cat(forces))


# -- the Lightning module -------------------------------------------------------------------------------


class Learner(lightning.LightningModule):
    """Loss, optimiser and schedule of one force field."""

    def __init__(self, force_field, hyperparameters, *, max_seconds=None, max_steps=None, max_epochs=None):
        super().__init__()
        on_gpu = force_field.scale.is_cuda
        self.clock = records.clock("cuda" if on_gpu else "cpu")
        self.force_field = force_field
        self.hyper = hyperparameters
        self.limits = {"seconds": max_seconds, "steps": max_steps, "epochs": max_epochs}
        self.batches_per_epoch = None
        self.stage = 1
        self.seconds_before = 0.0
        self.started = None
        self.best, self.best_loss = None, math.inf
        self.history = []
        self.smoothed_energy_loss = None
        self.compiled, self.gradients = None, None

    # progress

    @property
    def seconds(self):
        """Time in the training loop so far, over all restarts, s."""
        return self.seconds_before + (self.clock() - self.started if self.started else 0.0)

    @property
    def epochs(self):
        """Passes over the training set so far, a real number."""
        return self.global_step / self.batches_per_epoch

    @property
    def budget_used(self):
        """Fraction of the budget used, the largest over its limits."""
        spent = {"seconds": self.seconds, "steps": self.global_step, "epochs": self.epochs}
        return max(spent[name] / limit for name, limit in self.limits.items() if limit)

    # optimisation

    def configure_optimizers(self):
        optimizer = optimizers.make(self.force_field.network, self.hyper)
        if self.hyper.scheduler != "plateau":
            return optimizer
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=self.hyper.plateau_factor,
            patience=self.hyper.plateau_patience,
            min_lr=self.hyper.min_learning_rate,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    def on_train_batch_start(self, batch, batch_idx):
        second = self.hyper.second_stage
        if self.stage == 1 and second and self.budget_used >= second.start:
            self.stage, self.best_loss = 2, math.inf
        rate = self._learning_rate()
        if rate is not None:
            for group in self.optimizers().optimizer.param_groups:
                group["lr"] = rate

    def _learning_rate(self):
        """Learning rate of this step, or ``None`` where the plateau scheduler decides."""
        if self.stage == 2:
            return self.hyper.second_stage.learning_rate
        base, step = self.hyper.learning_rate, self.global_step
        warmup = max(self.hyper.warmup_steps, self.hyper.warmup_epochs * self.batches_per_epoch)
        if step < warmup:
            return base * (step + 1) / warmup
        if self.hyper.scheduler == "cosine":
            low = self.hyper.min_learning_rate
            return low + (base - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, self.budget_used)))
        return base if self.hyper.scheduler == "none" or step == warmup else None

    def training_step(self, batch, batch_idx):
        step = self.compiled
        if step and step.shape.holds(batch.graph):
            *errors, self.gradients = step(batch, self._factors())
            loss = self._loss(*errors)
        else:
            loss, self.gradients = self.loss(batch, self.force_field(batch.graph)), None
        if batch_idx % FINITE_CHECK_INTERVAL == 0:
            self._check(loss)
        return loss

    def backward(self, loss):
        """Fill the gradients of the weights.

        The weights are passed as ``inputs``, as autograd would otherwise compute the gradients with respect
        to the edge vectors too.
        """
        if self.gradients is None:
            loss.backward(inputs=[p for p in self.force_field.parameters() if p.requires_grad])
            return
        for weight, gradient in zip(self.compiled.weights.values(), self.gradients, strict=True):
            weight.grad = gradient

    def loss(self, batch, prediction):
        """Weighted energy and force errors of a training batch, a scalar."""
        return self._loss(*self.mean_errors(batch, prediction))

    def _loss(self, energy_error, force_error):
        alpha, before = self.hyper.energy_loss_ema, self.smoothed_energy_loss
        if alpha is not None:
            if before is not None:
                energy_error = alpha * energy_error + (1 - alpha) * before
            self.smoothed_energy_loss = energy_error.detach()
        return self._weighted(energy_error, force_error)

    def _weighted(self, energy_error, force_error):
        """Sum of the two terms of the loss, weighted as in the current stage."""
        weights = self._stage_weights()
        return weights.energy_weight * energy_error + weights.force_weight * force_error

    def _factors(self):
        """Factors that multiply the gradients of the two mean errors in the gradient of the loss."""
        weights, smoothed = self._stage_weights(), self.smoothed_energy_loss is not None
        share = self.hyper.energy_loss_ema if smoothed else 1.0
        return share * weights.energy_weight, weights.force_weight

    def _stage_weights(self):
        return self.hyper.second_stage if self.stage == 2 else self.hyper

    def mean_errors(self, batch, prediction, real=None):
        """Mean errors of energies and of forces, the two terms of the loss.

        Structures are left out where ``real``, shape ``(S,)``, is zero.
        """
        energies, forces = self._errors(batch, prediction)
        if real is None:
            return energies.mean(), forces.mean()
        atoms = real[batch.graph.structure].to(forces.dtype)
        return energies @ real / real.sum(), forces.view(len(atoms), -1).mean(1) @ atoms / atoms.sum()

    def _errors(self, batch, prediction):
        """Errors whose means are the terms of the loss.

        The energy errors have shape ``(S,)``. The force errors have one value per component, shape ``(N,
        3)``, or for ``l2mae`` one per atom, shape ``(N,)``.
        """
        energy_error, force_error = prediction.energy - batch.energy, prediction.forces - batch.forces
        if self.hyper.energy_per_atom:
            structure, one = batch.graph.structure, torch.ones_like(batch.energy)
            atoms = torch.zeros_like(one).index_add(0, structure, one[structure])
            energy_error = energy_error / atoms.clamp(min=1)  # a ghost structure may be empty
        if self.hyper.loss == "mse":
            return energy_error.square(), force_error.square()
        if self.hyper.loss == "mae":
            return energy_error.abs(), force_error.abs()
        return energy_error.abs(), torch.linalg.vector_norm(force_error, dim=1)

    def _check(self, loss):
        if not torch.isfinite(loss):
            raise NonFiniteLossError(f"the loss became {loss.item()} at step {self.global_step}")

    # validation; runs on the averaged weights

    def on_validation_epoch_start(self):
        self.learnt = [p for p in self.force_field.parameters() if p.requires_grad]
        self.force_field.requires_grad_(False)  # with frozen weights the faster form of the network is used

    def on_validation_epoch_end(self):
        for weight in self.learnt:
            weight.requires_grad_()

    def validation_step(self, batch, batch_idx):
        """Sums and counts over a batch; :meth:`validation_loss` divides their totals after the last batch."""
        prediction = self.force_field(batch.graph)
        energy_errors, force_errors = self._errors(batch, prediction)
        return {
            "energy_errors": energy_errors.sum(),
            "force_errors": force_errors.sum(dtype=torch.float64),
            "force_terms": force_errors.numel(),
            "force": (prediction.forces - batch.forces).abs().sum(),
            "energy": (prediction.energy - batch.energy).abs().sum(),
            "structures": batch.graph.num_structures,
            "components": batch.forces.numel(),
        }

    def validation_loss(self, totals):
        """Loss of a set from the totals over its batches; it does not depend on how frames are batched."""
        energy_loss = totals["energy_errors"] / totals["structures"]
        return self._weighted(energy_loss, totals["force_errors"] / totals["force_terms"])

    # state

    def on_save_checkpoint(self, checkpoint):
        checkpoint["learner"] = {
            "stage": self.stage,
            "seconds": self.seconds,
            "best": self.best,
            "best_loss": self.best_loss,
            "history": self.history,
            "smoothed_energy_loss": self.smoothed_energy_loss,
        }

    def on_load_checkpoint(self, checkpoint):
        state = checkpoint["learner"]
        self.stage, self.best, self.best_loss = state["stage"], state["best"], state["best_loss"]
        self.history, self.seconds_before = state["history"], state["seconds"]
        self.smoothed_energy_loss = state["smoothed_energy_loss"]

    def history_arrays(self):
        """Learning curves, one array per column."""
        columns = (
            "step",
            "seconds",
            "learning_rate",
            "train_loss",
            "val_loss",
            "val_force_mae",
            "val_energy_mae",
        )
        return {c: np.array([row[c] for row in self.history], dtype=float) for c in columns}


class Watch(lightning.Callback):
    """Callback that records learning curves, keeps the best weights and stops at the end of the budget.

    It stands before :class:`WeightAverage` in the list of callbacks, so that it sees the averaged weights at
    the end of a validation.
    """

    def __init__(self, *, progress):
        self.bar = tqdm(total=100, disable=not progress, file=sys.stderr, mininterval=1.0)
        self.bar.bar_format = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}{postfix}"
        self.losses, self.totals = [], {}

    def state_dict(self):
        return {"losses": torch.stack(self.losses) if self.losses else torch.empty(0)}

    def load_state_dict(self, state):
        self.losses = list(state["losses"])

    def on_train_start(self, trainer, learner):
        learner.started = learner.clock()
        self.losses = [loss.to(learner.device) for loss in self.losses]

    def on_train_batch_end(self, trainer, learner, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].detach())
        used = learner.budget_used
        self.bar.update(min(100.0, 100 * used) - self.bar.n)
        if used >= 1:
            trainer.should_stop = True

    def on_validation_epoch_start(self, trainer, learner):
        self.totals = {}

    def on_validation_batch_end(self, trainer, learner, outputs, batch, batch_idx, dataloader_idx=0):
        for name, value in outputs.items():
            self.totals[name] = self.totals.get(name, 0) + value

    def on_validation_epoch_end(self, trainer, learner):
        totals = {name: float(value) for name, value in self.totals.items()}
        loss = learner.validation_loss(totals)
        row = {
            "step": learner.global_step,
            "seconds": learner.seconds,
            "learning_rate": learner.optimizers().optimizer.param_groups[0]["lr"],
            "train_loss": float(torch.stack(self.losses).mean()) if self.losses else math.nan,
            "val_loss": loss,
            "val_force_mae": totals["force"] / totals["components"] * EV_TO_MEV,
            "val_energy_mae": totals["energy"] / totals["structures"] * EV_TO_MEV,
        }
        self.losses = []
        learner.history.append(row)
        learner._check(torch.tensor(loss))
        learner.log("val_loss", loss)
        self.bar.set_postfix_str(f"validation force MAE {row['val_force_mae']:.0f} meV/Å", refresh=False)
        if loss < learner.best_loss:
            learner.best_loss = loss
            learner.best = {k: v.detach().clone() for k, v in learner.force_field.state_dict().items()}
        if self._exhausted(learner):
            trainer.should_stop = True

    def _exhausted(self, learner):
        losses = [row["val_loss"] for row in learner.history]
        patience, floor = learner.hyper.early_stopping_patience, learner.hyper.stop_learning_rate
        stale = len(losses) - 1 - int(np.argmin(losses))
        settled = floor is not None and learner.history[-1]["learning_rate"] < floor
        return settled or (patience is not None and stale >= patience)


class Checkpoint(lightning.Callback):
    """Callback that writes a checkpoint at regular intervals, atomically.

    It stands after :class:`WeightAverage` in the list of callbacks, so that a checkpoint holds the average of
    its own step.
    """

    def __init__(self, path, parameters):
        self.path, self.parameters = path, parameters
        self.last = time.perf_counter()

    def on_train_batch_end(self, trainer, learner, outputs, batch, batch_idx):
        if time.perf_counter() - self.last < CHECKPOINT_INTERVAL:
            return
        with paths.written(self.path) as temporary:
            trainer.save_checkpoint(temporary)
        self.last = time.perf_counter()

    def on_save_checkpoint(self, trainer, learner, checkpoint):
        checkpoint["parameters"] = self.parameters


class WeightAverage(lightning.Callback):
    """Exponential moving average of the parameters, which replaces them during validation.

    The decay grows with the number of updates n as ``min(decay, (1 + n) / (10 + n))``, as in torch-ema, which
    the published trainings of NequIP and MACE use. Lightning's own callback cannot be used: it averages a
    copy of the module, and a copy of e3nn's generated code has other buffers than the original.
    """

    def __init__(self, decay):
        self.decay, self.updates, self.average, self.current = decay, 0, None, None

    def on_train_start(self, trainer, learner):
        self.current = list(learner.parameters())  # listed once, since listing takes a millisecond
        stored = self.current if self.average is None else self.average
        self.average = [
            value.detach().to(p.device, copy=True) for value, p in zip(stored, self.current, strict=True)
        ]

    @torch.no_grad()
    def on_train_batch_end(self, trainer, learner, outputs, batch, batch_idx):
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        torch._foreach_lerp_(self.average, self.current, 1 - kept)
        self.updates += 1

    def on_validation_epoch_start(self, trainer, learner):
        self._swap()

    def on_validation_epoch_end(self, trainer, learner):
        self._swap()

    @torch.no_grad()
    def _swap(self):
        for parameter, average in zip(self.current, self.average, strict=True):
            last = parameter.clone()
            parameter.copy_(average)
            average.copy_(last)

    def state_dict(self):
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state):
        self.updates, self.average = state["updates"], state["average"]


# -- one run --------------------------------------------------------------------------------------------


def new_learner(config, hyperparameters, train):
    """Learner of a new force field: weights drawn with the seed, elements and scales of these frames."""
    card = cards.dataset(config.dataset)
    elements = np.unique(np.concatenate([atoms.numbers for atoms in train]))
    torch.manual_seed(config.seed)
    cutoff = models.card(config.model).network(config.preset, **config.network)["cutoff"]
    neighbors = np.mean([_mean_neighbors(atoms, cutoff) for atoms in train[:: max(1, len(train) // 50)]])
    network = {"average_neighbors": round(float(neighbors), 3), **config.network}
    force_field = models.build(config.model, config.preset, elements, **network)
    force_field.set_reference(*fit_reference(train, card.reference_energies))
    limits = {"max_seconds": config.max_seconds, "max_steps": config.max_steps}
    epochs = config.max_epochs or hyperparameters.max_epochs
    return Learner(force_field.to(config.device), hyperparameters, max_epochs=epochs, **limits)


def _mean_neighbors(atoms, cutoff):
    return build_graph(atoms, cutoff).edge_index.shape[1] / len(atoms)


def learn(learner, config, parameters, train, validation):
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
    common = {"cutoff": cutoff, "device": config.device}
    steps_done = lambda: learner.global_step  # noqa: E731
    loader = Batches(train, size, seed=config.seed, steps_done=steps_done, **common)
    validation = Batches(validation, max(size, 10), **common)
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
            trainer.fit(learner, loader, validation, ckpt_path=checkpoint, weights_only=True)
        except NonFiniteLossError as error:
            return "failed", str(error)
        finally:
            learner.steps = trainer.global_step
            watch.bar.close()
    if trainer.interrupted:
        raise KeyboardInterrupt
    return "complete", ""


def _compiled(config, learner, loader):
    """Training step compiled for the shape of the batches; ``None`` if compiling fails or is not worth it."""
    long = (config.max_seconds or math.inf) > COMPILED_FROM and (
        config.max_steps or math.inf
    ) > COMPILED_FROM_STEPS
    if not (long if config.compile is None else config.compile):
        return None
    step = compiled.Step(learner.force_field.train(), learner.mean_errors, loader.shape())
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


def _trainer(config, learner, callbacks):
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
def _quiet():
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


def _checkpoint_path(config):
    parameters = config.parameters()
    name = f"{parameters['dataset']}-{config.model}-s{config.seed}-{records.digest(parameters)[:8]}.ckpt"
    return paths.runs() / config.campaign / "checkpoints" / name


def _usable_checkpoint(config, parameters):
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


def _costs(learner):
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


def data_digest(frames):
    """Hash of the positions, forces and energies of frames."""
    arrays = [array for a in frames for array in (a.positions, a.get_forces(), a.get_potential_energy())]
    return records.digest(*arrays)
