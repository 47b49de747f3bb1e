"""How is a model trained? Its training hyperparameters, with the defaults of most tables of the paper."""

import dataclasses
from typing import Any, Literal

from egraff_utils.schema import AtLeastOne, Count, Number, checked


@checked()
class SecondStage:
    """Second stage of training ("SWA" in mace), with other loss weights and another learning rate."""

    start: Number = 0.75
    """Fraction of the budget after which the stage begins."""
    learning_rate: Number = 0.001
    """Learning rate of this stage."""
    energy_weight: Number = 1000.0
    """Weight of the energy errors in the loss."""
    force_weight: Number = 1.0
    """Weight of the force errors in the loss."""


@checked()
class TrainingHyperparameters:
    """Training hyperparameters of a model; the defaults are those of most tables of the paper."""

    batch_size: AtLeastOne = 5
    """Structures per step."""
    learning_rate: Number = 0.01
    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    """Optimiser, see :mod:`egraff_utils.train.optimizers`."""
    momentum: Number = 0.95
    """Decay of the running mean of the gradients of matrices, used by ``muon`` only."""
    amsgrad: bool = True
    weight_decay: Number = 0.0
    loss: Literal["mse", "mae", "l2mae"] = "mse"
    """Errors that are averaged; ``l2mae`` is the mean norm of the force error per atom."""
    energy_weight: Number = 1.0
    force_weight: Number = 1.0
    virial_weight: Number = 0.0
    """Weight of the virial errors in the loss, in both stages. The virial, here the derivative of the
    energy by a strain, is divided by the number of atoms, eV; with 0 the stress is not trained."""
    energy_per_atom: bool = True
    """Whether the energy error is divided by the number of atoms before it enters the loss."""
    energy_loss_ema: Number | None = None
    """Weight of the newest value in the running mean of the energy loss (TorchMD-NET's alpha)."""
    ema_decay: Number | None = 0.99
    """Decay of the moving average of the parameters; the averaged parameters are validated and kept."""
    clip_norm: Number | None = 10.0
    scheduler: Literal["plateau", "cosine", "none"] = "plateau"
    """How the learning rate falls."""
    plateau_factor: Number = 0.8
    plateau_patience: Count = 50
    """Epochs without improvement of the validation loss after which the learning rate is reduced."""
    min_learning_rate: Number = 0.0
    """Lower bound of the learning rate."""
    stop_learning_rate: Number | None = None
    """Training ends once the learning rate is below this value."""
    warmup_epochs: Count = 0
    warmup_steps: Count = 0
    early_stopping_patience: AtLeastOne | None = None
    """Epochs without improvement after which training ends."""
    max_epochs: AtLeastOne = 1500
    second_stage: SecondStage | None = None
    kept_as: Literal["float32", "float16"] = "float32"
    """Precision in which large parameters are kept: they are rounded before the
    test (:func:`~egraff_utils.models.round_large`)."""


def changed(instance: TrainingHyperparameters | SecondStage) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults, a dictionary.

    It does not change when a field with a default is added to the class later.

    >>> changed(TrainingHyperparameters(batch_size=5, loss="mae", second_stage=SecondStage(start=0.5)))
    {'loss': 'mae', 'second_stage': {'start': 0.5}}
    """
    values = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}
    return {
        name: changed(value) if isinstance(value, SecondStage) else value
        for name, value in values.items()
        if value != instance.__dataclass_fields__[name].default
    }
