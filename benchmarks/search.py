"""Which size, optimiser and rate learn most in equal time? Trainings are compared by validation errors only.

    python -m benchmarks.search size --models mace --datasets ethanol aspirin
    python -m benchmarks.search recipe
    python -m benchmarks.search rate

Every candidate starts from the same weights and is trained for the same time by the trainer of the campaigns;
the test set is never read. A record is written after every candidate, so a search that was stopped can
continue.
"""

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from egraff_utils import data, models, paper, records
from egraff_utils.config import Key
from egraff_utils.records import Metric, Record

CAMPAIGN = "search"
PROBE_SECONDS, RATE_SECONDS, SIZE_SECONDS = 30.0, 300.0, 600.0
RECIPE_SECONDS = {"ethanol": 45.0, "lips": 120.0}
RATES = {"muon": (0.001, 0.003, 0.01, 0.03, 0.1), "adam": (0.002, 0.008, 0.03), "soap": (0.003, 0.01, 0.03)}


def run(
    kind: str,
    dataset: str,
    model: str,
    *,
    preset: str,
    network: dict,
    candidates: Mapping[str, dict],
    seconds: float,
) -> Record:
    """Record of a search, whose curves have one entry per candidate.

    Parameters
    ----------
    kind
        Kind of the record, ``search_...``.
    dataset, model, preset, network
        Dataset, architecture and preset of the training; ``network`` replaces hyperparameters of the preset.
    candidates
        Label -> training hyperparameters that replace those of preset ``day``.
    seconds
        Time of every training, s.

    Returns
    -------
    Record
        Curves ``label``, ``force_mae`` (meV/Å), ``energy_mae`` (meV), ``loss`` (on the validation set, at the
        lowest loss), ``steps``, ``milliseconds`` (per step), all with shape ``(C,)``; metric
        ``best_force_mae``.
    """
    parameters = {"preset": preset, "network": network, "seconds": seconds}
    stored = records.find(Key(kind, CAMPAIGN, dataset, model), parameters)
    rows = _rows(stored) if stored else []
    done = {row["label"] for row in rows}
    trial = None
    for label, training in candidates.items():
        if label in done:
            continue
        trial = trial or _Trial(dataset, model, preset, network, seconds)
        started = time.time()
        rows.append({"label": label, **trial.train(training)})
        print(f"{dataset} {model}: {rows[-1]}", flush=True)
        stored = _write(kind, dataset, model, parameters, rows, started)
    return stored  # type: ignore[return-value]  # there is a candidate


def best(record: Record, among: Iterable[str] | None = None) -> str:
    """Label of the candidate with the lowest validation error of the forces, among all or some."""
    errors = dict(zip(record.curves["label"].tolist(), record.curves["force_mae"].tolist(), strict=True))
    return min(among or errors, key=lambda label: np.nan_to_num(errors[label], nan=np.inf))


class _Trial:
    """Trainings of one network from the same weights, compiled once for each batch size and loss."""

    def __init__(self, dataset, model, preset, network, seconds) -> None:
        from egraff_utils import train

        self.options: dict[str, Any] = {
            "preset": preset,
            "network": network,
            "campaign": CAMPAIGN,
            "max_seconds": seconds,
        }
        self.options |= {"progress": False, "compile": True}
        self.dataset, self.model = dataset, model
        self.frames = [data.load(dataset, split) for split in ("train", "val")]
        hyper = models.card(model).training("day")
        first = train.new_learner(self._config({}), hyper, self.frames[0])
        self.force_field = first.force_field
        self.steps: dict[tuple, Any] = {}
        self.weights = {k: v.clone() for k, v in self.force_field.state_dict().items()}

    def _config(self, training):
        from egraff_utils import train

        return train.TrainConfig(self.model, self.dataset, training=training, **self.options)

    def train(self, training: dict) -> dict[str, float]:
        """Train one candidate and return its row."""
        from egraff_utils import train

        soap = training["optimizer"] == "soap"  # the trainer does not have this optimiser
        training = training | {"optimizer": "adam"} if soap else training
        config, hyper = self._config(training), models.card(self.model).training("day", **training)
        self.force_field.load_state_dict(self.weights)
        self.force_field.train().requires_grad_(True)
        kind = _with_soap(train.Learner) if soap else train.Learner
        learner = kind(self.force_field, hyper, max_seconds=config.max_seconds, max_epochs=10**6)
        key = hyper.batch_size, hyper.loss, hyper.energy_per_atom
        learner.compiled = self.steps.get(key)
        checkpoint = train._checkpoint_path(config)  # of the same name for SOAP and Adam
        checkpoint.unlink(missing_ok=True)
        status, _ = train.learn(learner, config, config.parameters(), *self.frames)
        checkpoint.unlink(missing_ok=True)
        self.steps[key] = learner.compiled
        history = learner.history_arrays()
        if status != "complete" or not len(history["val_loss"]):
            return dict.fromkeys(("force_mae", "energy_mae", "loss", "milliseconds"), np.nan) | {"steps": 0}
        least = history["val_loss"].argmin()
        return {
            "force_mae": float(history["val_force_mae"][least]),
            "energy_mae": float(history["val_energy_mae"][least]),
            "loss": float(history["val_loss"][least]),
            "steps": learner.steps,
            "milliseconds": 1000 * float(history["seconds"][-1] / history["step"][-1]),
        }


def _with_soap(learner):
    """Subclass of a learner with the optimiser SOAP (Vyas et al., arXiv:2409.11321) of pytorch_optimizer."""
    from pytorch_optimizer import SOAP

    class WithSoap(learner):
        def configure_optimizers(self):
            return SOAP(self.force_field.network.parameters(), lr=self.hyper.learning_rate, weight_decay=0.0)

    return WithSoap


def _rows(record):
    curves = {name: values.tolist() for name, values in record.curves.items()}
    return [dict(zip(curves, row, strict=True)) for row in zip(*curves.values(), strict=True)]


def _write(kind, dataset, model, parameters, rows, started):
    curves = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    metrics = [Metric("best_force_mae", np.nanmin(curves["force_mae"]), "meV/Å", n=len(rows))]
    made = records.provenance(started)
    record = records.Record(kind, CAMPAIGN, dataset, model, 0, parameters, metrics, provenance=made)
    records.write(record, curves)
    return record


# -- what is searched ------------------------------------------------------------------------------------


SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "paper_narrow": {
        "nequip": {"num_features": 8},
        "allegro": {"num_scalar_features": 64, "num_tensor_features": 32, "two_body_width": 256}
        | {"latent_width": 512, "readout_width": 64},
        "botnet": {},
        "mace": {},
        "equiformer": {"channels": [32, 16, 8], "head_channels": [8, 4, 2]}
        | {"feed_forward_channels": [96, 48, 24], "features": 128},
        "torchmd_net": {},
    },
    "equal_dynamics": {
        "nequip": {"num_features": 64, "num_layers": 3, "parity": False, "l_max": 1},
        "allegro": {"num_scalar_features": 64, "num_tensor_features": 16, "two_body_width": 128}
        | {"latent_width": 128, "readout_width": 32},
        "botnet": {"num_interactions": 3, "hidden_l_max": 1, "l_max": 2, "num_channels": 64},
        "mace": {"hidden_l_max": 1, "l_max": 3},
        "equiformer": {"channels": [32, 16], "head_channels": [8, 4], "feed_forward_channels": [64, 32]}
        | {"features": 64, "blocks": 2, "parity": True},
        "torchmd_net": {"embedding_dimension": 64, "num_layers": 3},
    },
}
"""Rule -> model -> changes to the paper's network.

``paper_narrow`` keeps the paper's depth and degrees and reduces all widths by one factor until a compiled
training step on five ethanol molecules costs no more than that of MACE at the paper's size.
``equal_dynamics`` sets depth, degrees and width such that energies and forces of five ethanol molecules cost
3.5 to 6 ms with frozen weights (:func:`measure_costs`), and 12 ms for Equiformer, which has no faster form
for them.
"""


PLAIN: dict[str, Any] = {"amsgrad": False, "weight_decay": 0.0}


def rates(*optimizers: str) -> dict[str, dict[str, Any]]:
    """Candidates with every optimiser at its rates."""
    return {
        f"{name} {rate:g}": {"optimizer": name, "learning_rate": rate, **PLAIN}
        for name in optimizers
        for rate in RATES[name]
    }


def around(training: dict) -> dict[str, dict[str, Any]]:
    """Candidates with one change each to a recipe."""
    changes: dict[str, dict[str, Any]] = {
        "batch 2": {"batch_size": 2},
        "batch 10": {"batch_size": 10},
        "no average": {"ema_decay": None},
        "average 0.999": {"ema_decay": 0.999},
        "constant rate": {"scheduler": "none"},
        "warm-up": {"warmup_steps": 100},
        "rate / 2": {"learning_rate": training["learning_rate"] / 2},
    }
    return {label: training | change for label, change in changes.items()}


def search_sizes(datasets: Sequence[str], model_names: Sequence[str]) -> Iterator[Record]:
    """Yield records for every rule in :data:`SIZES`: short trainings for Muon's rate, then a long one."""
    for dataset in datasets:
        for model in model_names:
            for rule, networks in SIZES.items():
                common: dict[str, Any] = {"preset": "paper", "network": networks[model]}
                candidates = rates("muon")
                probed = run(
                    f"search_rate_{rule}",
                    dataset,
                    model,
                    **common,
                    candidates=candidates,
                    seconds=PROBE_SECONDS,
                )
                label = best(probed)
                chosen = {label: candidates[label]}
                yield run(
                    f"search_size_{rule}", dataset, model, **common, candidates=chosen, seconds=SIZE_SECONDS
                )


def search_recipe(datasets: Sequence[str], model_names: Sequence[str]) -> Iterator[Record]:
    """Yield records for the campaign's size: all optimisers at all rates, then single changes to the best.

    If the best rate of an optimiser is the highest that was tried, a higher one is tried too.
    """
    for dataset in datasets:
        for model in model_names:
            common: dict[str, Any] = {"preset": "day", "network": {}, "seconds": RECIPE_SECONDS[dataset]}
            candidates = rates(*RATES)
            record = run("search_recipe", dataset, model, **common, candidates=candidates)
            while beyond := _beyond(record, candidates):
                candidates |= beyond
                record = run("search_recipe", dataset, model, **common, candidates=candidates)
            changed = around(candidates[best(record, candidates)])
            yield run("search_recipe", dataset, model, **common, candidates=changed)


def _beyond(record, candidates):
    """Candidates at three times the highest rate of an optimiser, if that rate is its best."""
    found = {}
    for name in RATES:
        of_one = {label: c["learning_rate"] for label, c in candidates.items() if c["optimizer"] == name}
        label = best(record, of_one)
        if of_one[label] == max(of_one.values()):
            rate = float(f"{3 * of_one[label]:.1g}")
            found[f"{name} {rate:g}"] = candidates[label] | {"learning_rate": rate}
    return found


def search_rate(datasets: Sequence[str], model_names: Sequence[str]) -> Iterator[Record]:
    """Yield records of five minutes of Muon at the best rate of short trainings, its half and quarter.

    The rate of preset ``day`` is chosen from them, see ``egraff_utils.report.recipe``.
    """
    for dataset in datasets:
        for model in model_names:
            common: dict[str, Any] = {"preset": "day", "network": {}}
            short = records.load(Key("search_recipe", CAMPAIGN, dataset, model).path)
            tried = [label for label in short.curves["label"].tolist() if label.startswith("muon ")]
            highest = float(best(short, tried).removeprefix("muon "))
            slower = {
                f"muon {rate:g}": {"optimizer": "muon", "learning_rate": rate, **PLAIN}
                for rate in (highest, highest / 2, highest / 4)
            }
            yield run("search_rate", dataset, model, **common, candidates=slower, seconds=RATE_SECONDS)


def measure_costs(datasets: Sequence[str], model_names: Sequence[str]) -> Iterator[Record]:
    """Yield records with the time of energies and forces of five frames with frozen weights, by size."""
    import torch

    from egraff_utils import train
    from egraff_utils.graph import build_graph

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for dataset in datasets:
        frames = data.load(dataset, "train")
        for model in model_names:
            started, metrics = time.time(), []
            for rule, networks in SIZES.items():
                config = train.TrainConfig(model, dataset, preset="paper", network=networks[model])
                field = train.new_learner(config, models.card(model).training("paper"), frames).force_field
                field.eval().requires_grad_(False)
                graph = build_graph(frames[:5], field.cutoff, dtype=torch.float32)
                metrics.append(Metric(rule, 1000 * _least(lambda: field(graph)), "ms"))  # noqa: B023
            made = records.provenance(started)
            record = records.Record("search_cost", CAMPAIGN, dataset, model, 0, {}, metrics, provenance=made)
            records.write(record)
            yield record


def _least(call, *, seconds=2.0):
    """Shortest processor time of a call, s, over calls within ``seconds``, after three untimed calls."""
    for _ in range(3):
        call()
    ends, least = time.process_time() + seconds, np.inf
    while (began := time.process_time()) < ends:
        call()
        least = min(least, time.process_time() - began)
    return least


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a search and print its records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.split("\n")[0])
    searches = {"size": search_sizes, "recipe": search_recipe, "rate": search_rate, "cost": measure_costs}
    parser.add_argument("what", choices=searches)
    parser.add_argument("--models", nargs="+", default=list(paper.HYPERPARAMETERS), choices=models.NAMES)
    parser.add_argument("--datasets", nargs="+", default=["ethanol"])
    chosen = parser.parse_args(arguments)
    for record in searches[chosen.what](chosen.datasets, chosen.models):
        print(record, flush=True)


if __name__ == "__main__":
    main()
