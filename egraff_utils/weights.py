"""Where are the weights of a trained model? They are found, fingerprinted and loaded without the trainer."""

from __future__ import annotations

import shlex
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
        If there are no weights with a record, or they are not those of the record; the message names the
        command that trains.
    ValueError
        If the model or dataset is unknown.
    """
    from egraff_utils import models

    models.card(run.model)
    file = path(run)
    if reason := _unusable(file):
        raise FileNotFoundError(_untrained(_key(run), reason))
    return models.load(file)


def _unusable(file):
    """Reason why weights cannot be used, such as a record of other weights; empty if there is none."""
    if not file.is_file() and not file.with_suffix(".json").is_file():
        return f"there are no weights at {file}"
    try:
        record = records.sound(file.with_suffix(".json"))
    except FileNotFoundError:
        return f"{file} has no record; its training was killed"
    except records.DamagedError as error:
        return str(error)
    if record.files.get(".safetensors") is None:
        return f"there are no weights at {file} (the training says: {record.message})"
    return ""


def _key(run):
    name = cards.dataset(run.dataset).name
    return Key("training", run.campaign, name, run.model, run.seed)


def _untrained(key, reason):
    words = ["egraff", "train", key.model, key.dataset, "--campaign", key.campaign, "--seed", str(key.seed)]
    run = f"{key.model} is not trained on {key.dataset}, seed {key.seed}, in campaign {key.campaign}"
    return f"{run}: {reason}. Train it first: {shlex.join(words)}"
