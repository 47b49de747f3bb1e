"""Where are the weights of a trained model? They are found, fingerprinted and loaded without the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from egraff_utils import cards, records
from egraff_utils.config import Config, Key

if TYPE_CHECKING:  # which load torch
    from egraff_utils.models import ForceField


def path(run: Config | Key) -> Path:
    """Path of the weights of a run, an object with ``campaign``, ``dataset``, ``model`` and ``seed``."""
    return _key(run).path.with_suffix(".safetensors")


def digest(run: Config | Key, force_field: ForceField | None = None) -> str | None:
    """Digest of a force field or, by default, of a run's weights; ``None`` if these are not available."""
    if force_field is not None:
        state = force_field.state_dict()
        return records.digest(sorted(state), *[value.detach().cpu().numpy() for value in state.values()])
    file = path(run)
    return records.digest(file) if file.is_file() else None


def load(run: Config | Key) -> ForceField:
    """The trained force field of a run.

    Raises
    ------
    FileNotFoundError
        If there are no weights; the message names the command that trains.
    ValueError
        If the model or dataset is unknown.
    """
    from egraff_utils import models

    models.card(run.model)
    file = path(run)
    if not file.is_file():
        raise FileNotFoundError(_untrained(_key(run), file))
    return models.load(file)


def _key(run):
    name = cards.dataset(run.dataset).name
    return Key("training", run.campaign, name, run.model, run.seed)


def _untrained(key, file):
    training = file.with_suffix(".json")
    reason = f"there are no weights at {file}"
    if training.is_file() and (message := records.load(training).message):
        reason += f" (the training says: {message})"
    output = f"runs/{key.campaign}/training/{key.path.stem}.ipynb"
    values = {"campaign": key.campaign, "dataset": key.dataset, "seed": key.seed}
    options = " ".join(f"-p {name} {value}" for name, value in values.items())
    return (
        f"{key.model} is not trained on {key.dataset}, seed {key.seed}, in campaign "
        f"{key.campaign}: {reason}. Train it first:\n  "
        f"python -m egraff_utils run notebooks/training/{key.model}.ipynb {output} {options}"
    )
