"""What does a campaign run? One YAML file in ``params/`` is expanded to the parameters of notebooks."""

from dataclasses import dataclass, field
from pathlib import Path

from egraff_utils import cards, paths
from egraff_utils.config import AS_CODED, Kind

FOLDERS = {"corrected": "rollout", AS_CODED: str(Kind("rollout", AS_CODED))}
"""Protocol -> folder of its executed notebooks in ``runs/<campaign>/``."""
CELL = "{dataset}-{model}-s{seed}.ipynb"
"""Name of the executed notebook of a cell."""
TASKS = ("ood", "checks")
"""Folders of the notebooks of tasks, which use a trained model; also keys of a campaign."""


@dataclass(frozen=True)
class TrainingBudget:
    """Limits of a training, the first of which ends it; ``None`` is no limit (the model's epochs remain)."""

    max_seconds: float | None = None
    max_steps: int | None = None
    max_epochs: int | None = None


@dataclass(frozen=True)
class RolloutBudget:
    """Length of the rollouts."""

    replicas: int = 5
    steps: int = 1000
    max_seconds: float | None = None
    """Time per rollout, s, counted as that of a training."""
    version: int = 2
    """What starts and stored curves mean, see ``VERSION`` of :mod:`egraff_utils.md.rollout`. Rollouts of
    version 1 are read, but no longer run."""
    protocols: tuple[str, ...] = ("corrected",)

    def __post_init__(self):
        object.__setattr__(self, "protocols", tuple(self.protocols))
        for protocol in self.protocols:
            if protocol not in FOLDERS:
                raise cards.unknown("protocol", protocol, FOLDERS)


@dataclass(frozen=True)
class Campaign:
    """A matrix of datasets, models and seeds with their budgets."""

    name: str
    description: str
    datasets: tuple[str, ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    preset: str = "small"
    training: TrainingBudget = field(default_factory=TrainingBudget)
    rollout: RolloutBudget = field(default_factory=RolloutBudget)
    ood: dict = field(default_factory=dict)
    """``{task: [datasets]}``: notebooks in ``notebooks/ood/`` that are run for models trained on these
    datasets; their rollouts are as long as those of the dataset."""
    checks: dict = field(default_factory=dict)
    """``{task: [datasets]}``: notebooks in ``notebooks/checks/``, likewise."""
    ood_frames: int = 200
    """Largest number of frames of every composition for static errors out of distribution."""
    device: str = "cpu"
    threads: int = 1
    """Number of threads of one run."""
    jobs: int = 2
    """Number of runs at a time."""
    budget: str | None = None
    """Time for the whole campaign, such as ``25m``. If it is given, the campaign is planned before its first
    run, and the plan sets the lengths of trainings and rollouts (:mod:`egraff_utils.running.plan`)."""
    overrides: dict = field(default_factory=dict)
    """``{dataset: {training: {...}, rollout: {...}, seeds: [...]}}``: budgets and seeds of datasets for which
    they differ."""

    def __post_init__(self):
        for name in ("datasets", "models", "seeds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        budgets = {"training": TrainingBudget, "rollout": RolloutBudget}
        for name, cls in budgets.items():
            if isinstance(getattr(self, name), dict):
                budget = cards.from_mapping(cls, getattr(self, name), where=f"{name} of campaign {self.name}")
                object.__setattr__(self, name, budget)
        for dataset in self.datasets:
            cards.dataset(dataset)
        for _, task, datasets in self._tasks():
            for dataset in datasets:
                if dataset not in self.datasets:
                    raise cards.unknown(f"dataset of the task {task} of {self.name}", dataset, self.datasets)
        for dataset, parts in self.overrides.items():
            if dataset not in self.datasets:
                raise cards.unknown(
                    f"dataset in the overrides of campaign {self.name}", dataset, self.datasets
                )
            for part in parts:
                if part not in [*budgets, "seeds"]:
                    raise cards.unknown(f"key in the overrides of {dataset}", part, [*budgets, "seeds"])
                if part in budgets:
                    self._budget(part, dataset)

    def cells(self):
        """All (dataset, model, seed) of the campaign, a list."""
        return [(d, m, s) for d in self.datasets for m in self.models for s in self._seeds(d)]

    def _seeds(self, dataset):
        return self.overrides.get(dataset, {}).get("seeds", self.seeds)

    def task_cells(self):
        """All (folder, task, dataset, model, seed) of the tasks that use a trained model."""
        return [
            (folder, task, *cell)
            for folder, task, names in self._tasks()
            for cell in self.cells()
            if cell[0] in names
        ]

    def _tasks(self):
        """(folder in ``notebooks/``, task, datasets) of every task, a list."""
        return [(folder, task, names) for folder in TASKS for task, names in getattr(self, folder).items()]

    def training_parameters(self, dataset, model, seed):
        """Parameters of a training notebook, which knows its own model."""
        budget = self._budget("training", dataset)
        return self._common(seed) | {
            "dataset": dataset,
            "preset": self.preset,
            "max_seconds": budget.max_seconds,
            "max_steps": budget.max_steps,
            "max_epochs": budget.max_epochs,
        }

    def rollout_parameters(self, dataset, model, seed, protocol):
        """Parameters of a rollout notebook, which knows its own dataset."""
        budget = self._budget("rollout", dataset)
        training = self.training_parameters(dataset, model, seed)
        training.pop("dataset")
        limits = {f"train_{key}": training.pop(key) for key in ("max_seconds", "max_steps", "max_epochs")}
        return {
            **training,
            **limits,
            "model": model,
            "protocol": protocol,
            "replicas": budget.replicas,
            "steps": budget.steps,
            "max_seconds": budget.max_seconds,
            "version": budget.version,
        }

    def task_parameters(self, dataset, model, seed):
        """Parameters of a task's notebook, which uses a trained model."""
        parameters = self.rollout_parameters(dataset, model, seed, "corrected")
        del parameters["protocol"]
        return {"dataset": dataset, "frames": self.ood_frames, **parameters}

    def protocols(self, dataset):
        """Rollout protocols of a dataset."""
        return self._budget("rollout", dataset).protocols

    def _common(self, seed):
        return {"campaign": self.name, "seed": seed, "device": self.device, "threads": self.threads}

    def _budget(self, part, dataset):
        changes = self.overrides.get(dataset, {}).get(part, {})
        budget = getattr(self, part)
        mapping = {f: getattr(budget, f) for f in budget.__dataclass_fields__} | changes
        return cards.from_mapping(type(budget), mapping, where=f"{part} overrides of {dataset}")


def names():
    """Names of the campaigns in ``params/``."""
    return sorted(p.stem for p in (paths.ROOT / "params").glob("*.yml") if p.stem != "book")


def load(name, *, planned=True):
    """The campaign with this name in ``params/``, or in the YAML file at this path.

    Parameters
    ----------
    name
        Name or path.
    planned
        Whether the times are those of the campaign's plan, if there is one (:func:`plan_path`).

    Raises
    ------
    ValueError
        If there is no such campaign, or the file holds an unknown key, dataset, protocol or model.
    """
    path = Path(name) if str(name).endswith((".yml", ".yaml")) else paths.ROOT / "params" / f"{name}.yml"
    if not path.is_file():
        raise cards.unknown("campaign", name, names())
    mapping = {"name": path.stem, **cards.read_yaml(path)}
    if planned and plan_path(mapping["name"]).is_file():
        mapping |= _planned(mapping, cards.read_yaml(plan_path(mapping["name"])))
    return cards.from_mapping(Campaign, mapping, where=f"campaign {path.name}")


def plan_path(name):
    """Path of the plan, whose budgets fit a given time, ``results/<campaign>/plan.yml``.

    It is stored with the records, so that it is moved and committed together with them.
    """
    return paths.results() / name / "plan.yml"


def _planned(mapping, plan):
    """Mapping of a campaign with the number of jobs and the overrides of a plan."""
    overrides = {dataset: dict(parts) for dataset, parts in mapping.get("overrides", {}).items()}
    for dataset in set(plan["budgets"]) & set(mapping["datasets"]):
        parts = overrides.setdefault(dataset, {})
        for part, limits in plan["budgets"][dataset].items():
            parts[part] = {**parts.get(part, {}), **limits}
    return {"jobs": plan["jobs"], "overrides": overrides}
