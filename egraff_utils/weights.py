"""Where are the weights of a trained model? They are found, fingerprinted and loaded without the trainer.

A model that is a calculator has none; its card and the shifts of its energies take their place.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from egraff_utils import calculated, cards, data, records
from egraff_utils.calculated import Calculated
from egraff_utils.config import Config, Key

if TYPE_CHECKING:  # which load torch
    from egraff_utils.models import ForceField


def path(run: Config | Key) -> Path:
    """Path of the weights of a run, an object with ``campaign``, ``dataset``, ``model`` and ``seed``."""
    return _key(run).path.with_suffix(".safetensors")


def seeds(run: Config | Key) -> list[int]:
    """Seeds of which there are weights for the model and dataset of a run, in order."""
    stem = path(run).stem.removesuffix(f"-s{run.seed}")
    found = path(run).parent.glob(f"{stem}-s*.safetensors")
    return sorted(int(file.stem.rpartition("-s")[2]) for file in found)


def digest(run: Config | Key, force_field: ForceField | Calculated | None = None) -> str | None:
    """Digest of a force field or, by default, of a run's weights; ``None`` if these are not available.

    That of a calculator is of its class, arguments, version and shifts.

    Raises
    ------
    ValueError
        If a calculator cannot be used on the dataset, or has changed since its errors were taken.
    """
    if force_field is None and cards.is_calculator(run.model):
        try:
            force_field = _calculator(run)
        except FileNotFoundError:
            return None
    if isinstance(force_field, Calculated):
        return force_field.digest()
    if force_field is not None:
        state = force_field.state_dict()
        return records.digest(sorted(state), *[value.detach().cpu().numpy() for value in state.values()])
    file = path(run)
    return records.digest(file) if file.is_file() else None


def load(run: Config | Key) -> ForceField | Calculated:
    """The trained force field of a run, or the calculator that takes its place.

    Raises
    ------
    FileNotFoundError
        If there are no weights with a record, they are not those of the record, or the frames that they were
        trained on have changed since; the message names the command that trains.
    ValueError
        If the model or dataset is unknown, or a calculator cannot be used on the dataset, or has changed
        since its errors were taken.
    """
    if cards.is_calculator(run.model):
        return _calculator(run)
    from egraff_utils import models

    models.card(run.model)
    file = path(run)
    if reason := _unusable(file) or _outdated(run):
        raise FileNotFoundError(_untrained(_key(run), reason))
    return models.load(file)


def _calculator(run):
    """:class:`Calculated` with the shifts of its record; that of the reference itself has none."""
    found = calculated.of(run.model, run.dataset)
    if run.model == cards.REFERENCE:
        return found
    key, current = _key(run), records.digest(found.specification())
    try:
        record = records.sound(key.path)
    except FileNotFoundError:
        raise FileNotFoundError(_untrained(key, "its errors have not been taken")) from None
    if record.parameters["inputs"]["calculator"] != current:
        raise ValueError(_untrained(key, "its card or its package has changed since"))
    found.shifts = {int(number): shift for number, shift in record.provenance["shifts"].items()}
    return found


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


def _outdated(run):
    """Reason why weights are not those of the frames of today; empty if they are, or it is not known."""
    inputs = records.load(_key(run).path).parameters.get("inputs", {})
    try:
        same = inputs.get("data") in (None, data.digest(run.dataset))
    except (ValueError, OSError):  # frames that are not at hand
        return ""
    return "" if same else "the frames of its dataset, or their card, have changed since"


def _key(run):
    name = cards.dataset(run.dataset).name
    return Key("training", run.campaign, name, cards.model_name(run.model), run.seed)


def _untrained(key, reason):
    spelled = cards.model_spelling(key.model), cards.dataset_spelling(key.dataset)
    words = ["egraff", "train", *spelled, "--campaign", key.campaign, "--seed", str(key.seed)]
    run = f"{key.model} is not trained on {key.dataset}, seed {key.seed}, in campaign {key.campaign}"
    return f"{run}: {reason}. Train it first: {shlex.join(words)}"
