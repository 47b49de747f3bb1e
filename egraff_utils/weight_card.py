"""What should be known of a file of weights? A model card in the format of Hugging Face, from its record."""

from __future__ import annotations

import yaml
from ase.data import chemical_symbols

from egraff_utils import campaign as campaigns
from egraff_utils import cards, files, quantities, records, weights
from egraff_utils.config import Key

METRICS = ("force_mae", "energy_mae", "energy_mae_per_atom", "stress_mae")
"""Errors that a card shows, where the record has them."""
LICENCE = "mit"
"""Licence of the weights of the campaigns of the project, as of its code; that of others is theirs to say."""


def text(campaign: str, dataset: str, model: str, seed: int = 0) -> str:
    """Model card of the weights of a training, markdown with the metadata that Hugging Face reads.

    Every value is that of the record, of the cards of dataset and model, or of the file of weights.

    Parameters
    ----------
    campaign, dataset, model, seed
        What the training is stored under.

    Raises
    ------
    ValueError
        If there is no such record, or it has no weights; the message says how they are made.
    """
    card = cards.dataset(dataset)
    key = Key("training", campaign, card.name, cards.model_name(model), seed)
    command = f"egraff train {model} {dataset} --campaign {campaign} --seed {seed}"
    try:
        record = records.sound(key.path)
    except FileNotFoundError:
        raise ValueError(f"there is no record {key.path}; train the model: {command}") from None
    except records.DamagedError as error:
        raise ValueError(f"{error}; train the model again: {command}") from None
    if not weights.path(key).is_file():
        raise ValueError(f"{key.path} has no weights beside it; name a model that was trained")
    return f"---\n{_metadata(record, card)}---\n\n{_body(record, card)}"


def _metadata(record, card):
    errors = [record.metric(name) for name in METRICS if name in {m.name for m in record.metrics}]
    results = [
        {"type": m.name, "name": quantities.of(m.name).title, "value": m.value, "unit": m.unit}
        for m in errors
    ]
    task = {"type": "graph-ml", "name": "energies and forces of atoms"}
    where = {"name": card.title, "type": card.name, "split": "test"}
    index = {"name": _title(record), "results": [{"task": task, "dataset": where, "metrics": results}]}
    found = {
        "license": LICENCE if record.campaign in campaigns.names() else "other",
        "library_name": "egraff-utils",
        "tags": ["force-field", "molecular-dynamics", record.model],
        "datasets": [card.name],
        "metrics": [m.name for m in errors],
        "model-index": [index],
    }
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def _title(record):
    return f"{cards.model(record.model).title} on {cards.dataset(record.dataset).title}, seed {record.seed}"


def _body(record, card):
    file = weights.path(record.key)
    build, made = cards.read_yaml(file.with_suffix(".build.json")), record.provenance
    symbols = ", ".join(chemical_symbols[number] for number in card.elements)
    temperature, _ = card.conditions("train")
    limits = {"max_seconds": "s", "max_steps": "steps", "max_epochs": "epochs"}
    asked = [f"{record.parameters[k]:g} {unit}" for k, unit in limits.items() if record.parameters.get(k)]
    about = {
        "Architecture": f"{cards.model(record.model).title}, preset {record.parameters['preset']}, "
        f"{record['parameters']:,.0f} parameters",
        "Elements": symbols,
        "Type of numbers": build["dtype"].removeprefix("torch."),
        "Training set": f"{card.title}, split `train`, {card.split('train').frames or 'all'} frames, "
        f"{temperature:g} K",
        "Licence of the data": card.licence or "not stated",
        "Budget": f"at most {' or '.join(asked)}" if asked else "the epochs of the preset",
        "Spent": f"{record['steps']:,.0f} steps, {record['epochs']:.3g} epochs, {record['seconds']:.0f} s on "
        f"{made.get('hardware', 'unknown hardware')}, {made.get('device', 'cpu')}",
        "Code": f"commit {made.get('commit', 'unknown')}, "
        + ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items()),
        "Weights": f"`{file.name}`, {files.file_hash(file)}",
    }
    return f"""# {_title(record)}

{_table(("property", "value"), about.items())}

## Errors on the test set

{_table(("metric", "value", "95 % interval", "frames"), _errors(record))}

Intervals are over blocks of frames. Predicting no force has the force error `zero_force_mae`.

## Use

With the weights and `{file.with_suffix(".build.json").name}` in one folder:

```python
from egraff_utils import calculator, models

calc = calculator.ForceFieldCalculator(models.load("{file.name}"))
```

## Limits

It takes every structure of {symbols} and answers; only the training set,
{card.system} at {temperature:g} K, says whether the answer means something. It takes
over the errors of the method that labelled the frames. The errors above do not settle whether a simulation
can be trusted: check the physics with
`egraff gate {record.model} {record.dataset} --campaign {record.campaign}
--seed {record.seed}`, and let it run.
"""


def _errors(record):
    for m in record.metrics:
        if m.name in (*METRICS, "zero_force_mae", "zero_stress_mae"):
            value = f"{quantities.shown(m.value)} {m.unit}"
            yield f"`{m.name}`", value, quantities.interval_text(m) or "–", m.n or "–"


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
