"""What happens in a step? The loss, the rate and the history of a training, as a Lightning module."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from egraff_utils import records
from egraff_utils.graph import AtomicGraph
from egraff_utils.hyperparameters import TrainingHyperparameters
from egraff_utils.models import ForceField
from egraff_utils.train import optimizers
from egraff_utils.train.compiled import Batch, Step

FINITE_CHECK_INTERVAL = 20  # steps; reading the loss on the host stalls a GPU

Term = TypeVar("Term", Tensor, float)


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number."""


class Learner(lightning.LightningModule):
    """Loss, optimiser and schedule of one force field."""

    steps: int

    def __init__(
        self,
        force_field: ForceField,
        hyperparameters: TrainingHyperparameters,
        *,
        max_seconds: float | None = None,
        max_steps: int | None = None,
        max_epochs: int | None = None,
    ) -> None:
        super().__init__()
        on_gpu = force_field.scale.is_cuda
        self.clock = records.clock("cuda" if on_gpu else "cpu")
        self.force_field = force_field
        self.hyper = hyperparameters
        self.limits = {"seconds": max_seconds, "steps": max_steps, "epochs": max_epochs}
        self.batches_per_epoch: int = None  # type: ignore[assignment]  # until a training sets it
        self.stage = 1
        self.seconds_before = 0.0
        self.started: float | None = None
        self.best: dict[str, Tensor] | None = None
        self.best_loss = math.inf
        self.history: list[dict[str, float]] = []
        self.smoothed_energy_loss: Tensor | None = None
        self.compiled: Step | None = None
        self.gradients: Sequence[Tensor] | None = None

    # progress

    @property
    def seconds(self) -> float:
        """Time in the training loop so far, over all restarts, s."""
        return self.seconds_before + (self.clock() - self.started if self.started else 0.0)

    @property
    def epochs(self) -> float:
        """Passes over the training set so far, a real number."""
        return self.global_step / self.batches_per_epoch

    @property
    def budget_used(self) -> float:
        """Fraction of the budget used, the largest over its limits."""
        spent = {"seconds": self.seconds, "steps": self.global_step, "epochs": self.epochs}
        return max(spent[name] / limit for name, limit in self.limits.items() if limit)

    # optimisation

    def configure_optimizers(self) -> OptimizerLRScheduler:
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

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        second = self.hyper.second_stage
        if self.stage == 1 and second and self.budget_used >= second.start:
            self.stage, self.best_loss = 2, math.inf
        rate = self._learning_rate()
        if rate is not None:
            for group in self.optimizers().optimizer.param_groups:
                group["lr"] = rate

    def _learning_rate(self) -> float | None:
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

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = self.compiled
        if step and step.shape.holds(batch.graph):
            *errors, self.gradients = step(batch, self._factors())
            loss = self._loss(*errors)
        else:
            loss, self.gradients = self.loss(batch, self._predict(batch.graph)), None
        if batch_idx % FINITE_CHECK_INTERVAL == 0:
            self._check(loss)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Fill the gradients of the weights.

        The weights are passed as ``inputs``, as autograd would otherwise compute the gradients with respect
        to the edge vectors too.
        """
        if self.gradients is None:
            loss.backward(inputs=[p for p in self.force_field.parameters() if p.requires_grad])
            return
        for weight, gradient in zip(self.compiled.weights.values(), self.gradients, strict=True):
            weight.grad = gradient

    def _predict(self, graph: AtomicGraph) -> tuple[Tensor, ...]:
        return (self.force_field.with_virials if self.hyper.virial_weight else self.force_field)(graph)

    def loss(self, batch: Batch, prediction: Sequence[Tensor]) -> Tensor:
        """Weighted energy, force and virial errors of a training batch, a scalar."""
        return self._loss(*self.mean_errors(batch, prediction))

    def _loss(self, energy_error: Tensor, *others: Tensor) -> Tensor:
        alpha, before = self.hyper.energy_loss_ema, self.smoothed_energy_loss
        if alpha is not None:
            if before is not None:
                energy_error = alpha * energy_error + (1 - alpha) * before
            self.smoothed_energy_loss = energy_error.detach()
        return self._weighted(energy_error, *others)

    def _weighted(self, *errors: Term) -> Term:
        """Sum of the terms of the loss, weighted as in the current stage."""
        terms = (weight * error for weight, error in zip(self._weights(), errors, strict=True))
        return sum(terms)  # type: ignore[return-value]  # there is a term at least

    def _factors(self) -> tuple[float, ...]:
        """Factors that multiply the gradients of the mean errors in the gradient of the loss."""
        energy, *others = self._weights()
        share = self.hyper.energy_loss_ema if self.smoothed_energy_loss is not None else 1.0
        return share * energy, *others

    def _weights(self) -> tuple[float, ...]:
        stage = self.hyper.second_stage if self.stage == 2 else self.hyper
        virial = [self.hyper.virial_weight] if self.hyper.virial_weight else []
        return stage.energy_weight, stage.force_weight, *virial

    def mean_errors(
        self, batch: Batch, prediction: Sequence[Tensor], real: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Mean errors of energies, of forces and, if they are trained, of virials, the terms of the loss.

        Structures are left out where ``real``, shape ``(S,)``, is zero.
        """
        energies, forces, *virials = self._errors(batch, prediction)
        if real is None:
            return tuple(errors.mean() for errors in (energies, forces, *virials))
        atoms = real[batch.graph.structure].to(forces.dtype)
        means = [energies @ real / real.sum(), forces.view(len(atoms), -1).mean(1) @ atoms / atoms.sum()]
        return *means, *(errors.view(len(real), -1).mean(1) @ real / real.sum() for errors in virials)

    def _errors(self, batch: Batch, prediction: Sequence[Tensor]) -> list[Tensor]:
        """Errors whose means are the terms of the loss.

        The energy errors have shape ``(S,)``. The force errors have one value per component, shape ``(N,
        3)``, or for ``l2mae`` one per atom, shape ``(N,)``; those of virials per atom have shape ``(S, 9)``
        or ``(S,)``.
        """
        energy, forces, *virials = prediction
        errors = [energy - batch.energy, forces - batch.forces]
        if self.hyper.energy_per_atom or virials:
            structure, one = batch.graph.structure, torch.ones_like(batch.energy)
            atoms = torch.zeros_like(one).index_add(0, structure, one[structure])
            atoms = atoms.clamp(min=1)  # a ghost structure may be empty
            errors[0] = errors[0] / atoms if self.hyper.energy_per_atom else errors[0]
            errors += [(found - batch.virials).flatten(1) / atoms[:, None] for found in virials]
        if self.hyper.loss == "mse":
            return [error.square() for error in errors]
        if self.hyper.loss == "mae":
            return [error.abs() for error in errors]
        return [errors[0].abs(), *(torch.linalg.vector_norm(error, dim=1) for error in errors[1:])]

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise NonFiniteLossError(f"the loss became {loss.item()} at step {self.global_step}")

    # validation; runs on the averaged weights

    def on_validation_epoch_start(self) -> None:
        self.learnt = [p for p in self.force_field.parameters() if p.requires_grad]
        self.force_field.requires_grad_(False)  # with frozen weights the faster form of the network is used

    def on_validation_epoch_end(self) -> None:
        for weight in self.learnt:
            weight.requires_grad_()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor | int]:
        """Sums and counts over a batch; :meth:`validation_loss` divides their totals after the last batch."""
        energy, forces, *virials = self._predict(batch.graph)
        energy_errors, force_errors, *virial_errors = self._errors(batch, (energy, forces, *virials))
        return {
            "energy_errors": energy_errors.sum(),
            "force_errors": force_errors.sum(dtype=torch.float64),
            "force_terms": force_errors.numel(),
            "virial_errors": sum(errors.sum() for errors in virial_errors),
            "virial_terms": sum(errors.numel() for errors in virial_errors),
            "force": (forces - batch.forces).abs().sum(),
            "energy": (energy - batch.energy).abs().sum(),
            "structures": batch.graph.num_structures,
            "components": batch.forces.numel(),
        }

    def validation_loss(self, totals: Mapping[str, float]) -> float:
        """Loss of a set from the totals over its batches; it does not depend on how frames are batched."""
        terms = [
            totals[f"{name}_errors"] / totals["structures" if name == "energy" else f"{name}_terms"]
            for name in ("energy", "force", *["virial"] * bool(self.hyper.virial_weight))
        ]
        return self._weighted(*terms)

    # state

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["learner"] = {
            "stage": self.stage,
            "seconds": self.seconds,
            "best": self.best,
            "best_loss": self.best_loss,
            "history": self.history,
            "smoothed_energy_loss": self.smoothed_energy_loss,
        }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        state = checkpoint["learner"]
        self.stage, self.best, self.best_loss = state["stage"], state["best"], state["best_loss"]
        self.history, self.seconds_before = state["history"], state["seconds"]
        self.smoothed_energy_loss = state["smoothed_energy_loss"]

    def history_arrays(self) -> dict[str, np.ndarray]:
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
