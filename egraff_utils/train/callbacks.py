"""What happens beside the steps? Learning curves and the best weights, checkpoints, averages of weights."""

# Hooks of Lightning get any module and any outputs; these only those of a Learner.
# mypy: disable-error-code="override"

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import lightning
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from egraff_utils import paths
from egraff_utils.train.compiled import Batch
from egraff_utils.train.learner import Learner
from egraff_utils.units import EV_TO_MEV

CHECKPOINT_INTERVAL = 20.0  # s


class Watch(lightning.Callback):
    """Callback that records learning curves, keeps the best weights and stops at the end of the budget.

    It stands before :class:`WeightAverage` in the list of callbacks, so that it sees the averaged weights at
    the end of a validation.
    """

    def __init__(self, *, progress: bool) -> None:
        self.bar = tqdm(total=100, disable=not progress, file=sys.stderr, mininterval=1.0)
        self.bar.bar_format = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}{postfix}"
        self.losses: list[Tensor] = []
        self.totals: dict[str, Tensor | int] = {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": torch.stack(self.losses) if self.losses else torch.empty(0)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.losses = list(state["losses"])

    def on_train_start(self, trainer: lightning.Trainer, learner: Learner) -> None:
        learner.started = learner.clock()
        self.losses = [loss.to(learner.device) for loss in self.losses]

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        learner: Learner,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        batch_idx: int,
    ) -> None:
        self.losses.append(outputs["loss"].detach())
        used = learner.budget_used
        self.bar.update(min(100.0, 100 * used) - self.bar.n)
        if used >= 1:
            trainer.should_stop = True

    def on_validation_epoch_start(self, trainer: lightning.Trainer, learner: Learner) -> None:
        self.totals = {}

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        learner: Learner,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for name, value in outputs.items():
            self.totals[name] = self.totals.get(name, 0) + value

    def on_validation_epoch_end(self, trainer: lightning.Trainer, learner: Learner) -> None:
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

    def _exhausted(self, learner: Learner) -> bool:
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

    def __init__(self, path: Path, parameters: dict) -> None:
        self.path, self.parameters = path, parameters
        self.last = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        learner: Learner,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        batch_idx: int,
    ) -> None:
        if trainer.should_stop or time.perf_counter() - self.last < CHECKPOINT_INTERVAL:
            return  # a run that went on from its end would make a step too many
        with paths.written(self.path) as temporary:
            trainer.save_checkpoint(temporary)
        self.last = time.perf_counter()

    def on_save_checkpoint(self, trainer: lightning.Trainer, learner: Learner, checkpoint: dict) -> None:
        checkpoint["parameters"] = self.parameters


class WeightAverage(lightning.Callback):
    """Exponential moving average of the parameters, which replaces them during validation.

    The decay grows with the number of updates n as ``min(decay, (1 + n) / (10 + n))``, as in torch-ema, which
    the published trainings of NequIP and MACE use. Lightning's own callback cannot be used: it averages a
    copy of the module, and a copy of e3nn's generated code has other buffers than the original.
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.average: list[Tensor] | None = None
        self.current: list[torch.nn.Parameter] | None = None

    def on_train_start(self, trainer: lightning.Trainer, learner: Learner) -> None:
        self.current = list(learner.parameters())  # listed once, since listing takes a millisecond
        stored = self.current if self.average is None else self.average
        self.average = [
            value.detach().to(p.device, copy=True) for value, p in zip(stored, self.current, strict=True)
        ]

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        learner: Learner,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        batch_idx: int,
    ) -> None:
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        torch._foreach_lerp_(self.average, self.current, 1 - kept)  # type: ignore[arg-type]  # set at the start
        self.updates += 1

    def on_validation_epoch_start(self, trainer: lightning.Trainer, learner: Learner) -> None:
        self._swap()

    def on_validation_epoch_end(self, trainer: lightning.Trainer, learner: Learner) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        pairs = zip(self.current, self.average, strict=True)  # type: ignore[arg-type]  # set at the start
        for parameter, average in pairs:
            last = parameter.clone()
            parameter.copy_(average)
            average.copy_(last)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.updates, self.average = state["updates"], state["average"]
