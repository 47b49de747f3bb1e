"""What is a dataset, what is a model? Frozen cards read from the YAML files in ``cards/``."""

import dataclasses
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "cards"


def unknown(kind, name, known):
    """Error for a name that is not among the known ones, with the nearest of them.

    >>> unknown("model", "mase", ["mace", "nequip"])
    ValueError("unknown model 'mase'; did you mean 'mace'? Known: mace, nequip")
    """
    near = get_close_matches(str(name), list(known), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return ValueError(f"unknown {kind} '{name}'{hint} Known: {', '.join(sorted(known))}")


def from_mapping(cls, mapping, *, where):
    """Instance of a dataclass from a mapping that may hold none but its fields.

    Raises
    ------
    ValueError
        If a key is not a field, naming it, or a required field is missing.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in mapping:
        if key not in fields:
            raise unknown(f"key in {where}", key, fields)
    required = [
        f.name
        for f in fields.values()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in mapping]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return cls(**mapping)


@dataclass(frozen=True)
class SecondStage:
    """Second stage of training ("SWA" in mace): other weights and learning rate, averaged parameters."""

    start: float = 0.75
    """Fraction of the budget after which it begins."""
    learning_rate: float = 0.001
    energy_weight: float = 1000.0
    force_weight: float = 1.0


@dataclass(frozen=True)
class TrainingHyperparameters:
    """How a model is trained; the defaults are those of most tables."""

    batch_size: int = 5
    """Structures per step."""
    learning_rate: float = 0.01
    optimizer: str = "adam"
    """``adam`` or ``adamw``."""
    amsgrad: bool = True
    weight_decay: float = 0.0
    loss: str = "mse"
    """``mse``, ``mae``, or ``l2mae`` (mean norm of the force error)."""
    energy_weight: float = 1.0
    force_weight: float = 1.0
    energy_per_atom: bool = True
    """Whether the energy error is divided by the number of atoms before it enters the loss."""
    energy_loss_ema: float | None = None
    """Weight of the newest value in the running mean of the energy loss (TorchMD-NET's alpha)."""
    ema_decay: float | None = 0.99
    """Decay of the moving average of the parameters, which is what is validated and kept."""
    clip_norm: float | None = 10.0
    scheduler: str = "plateau"
    """``plateau``, ``cosine`` or ``none``."""
    plateau_factor: float = 0.8
    plateau_patience: int = 50
    """Epochs without improvement of the validation loss."""
    min_learning_rate: float = 0.0
    """Lower bound of the learning rate."""
    stop_learning_rate: float | None = None
    """Training ends once the learning rate is below this."""
    warmup_epochs: int = 0
    warmup_steps: int = 0
    early_stopping_patience: int | None = None
    """Epochs without improvement after which training ends."""
    max_epochs: int = 1500
    second_stage: SecondStage | None = None

    def __post_init__(self):
        for name, allowed in {
            "optimizer": ("adam", "adamw"),
            "loss": ("mse", "mae", "l2mae"),
            "scheduler": ("plateau", "cosine", "none"),
        }.items():
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), allowed)
        if isinstance(self.second_stage, dict):
            stage = from_mapping(SecondStage, self.second_stage, where="second_stage")
            object.__setattr__(self, "second_stage", stage)


@dataclass(frozen=True)
class ModelCard:
    """An architecture: where it comes from and its hyperparameters at every preset."""

    name: str
    title: str
    citation: str
    """Key in ``book/references.bib``."""
    table: int
    """Table of the paper that lists its hyperparameters."""
    package: str
    parameters_paper: int
    """Trainable parameters at preset ``paper`` for the elements H, C, O."""
    presets: dict[str, dict[str, dict[str, Any]]]
    notes: list[str] = field(default_factory=list)
    """Where today's names differ from the table's."""

    def network(self, preset, **overrides):
        """Keywords of ``build_network`` at a preset, with overrides."""
        return {**self._preset(preset)["network"], **overrides}

    def training(self, preset, **overrides):
        """:class:`TrainingHyperparameters` at a preset, with overrides."""
        mapping = {**self._preset(preset)["training"], **overrides}
        where = f"training parameters of {self.name}"
        return from_mapping(TrainingHyperparameters, mapping, where=where)

    def _preset(self, preset):
        if preset not in self.presets:
            raise unknown(f"preset of {self.name}", preset, self.presets)
        return self.presets[preset]


def read_yaml(path):
    """Content of a YAML file."""
    return yaml.safe_load(Path(path).read_text())


def models():
    """Names of the models that have a card."""
    return sorted(path.stem for path in (FOLDER / "models").glob("*.yml"))


@cache
def model(name):
    """:class:`ModelCard` of a model.

    Raises
    ------
    ValueError
        If there is no card of this name; the message names the nearest.
    """
    if name not in models():
        raise unknown("model", name, models())
    return from_mapping(ModelCard, read_yaml(FOLDER / "models" / f"{name}.yml"), where=f"card of {name}")
