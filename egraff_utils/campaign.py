"""What does a campaign run? One YAML file in ``params/`` is expanded to the parameters of notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict

from pydantic import AfterValidator, BeforeValidator, Field

from egraff_utils import cards, config, paths, schema
from egraff_utils.config import AS_CODED, Kind
from egraff_utils.schema import AtLeastOne, Distinct, Name, Positive, Seed, Value, checked
from egraff_utils.units import check_time

if TYPE_CHECKING:
    from egraff_utils.records import Record

FOLDERS = {"corrected": "rollout", AS_CODED: str(Kind("rollout", AS_CODED))}
"""Protocol -> folder of its executed notebooks in ``runs/<campaign>/``."""
KEYS = "% keys, by python -m egraff_utils.campaign"
"""Line of a page before and after the table of all keys."""
CELL = "{dataset}-{model}-s{seed}.ipynb"
"""Name of the executed notebook of a cell."""
CELL_PARTS = ("dataset", "model", "seed")
"""What a cell is named by."""
TASKS = ("ood", "checks")
"""Folders of the notebooks of tasks, which use a trained model; also keys of a campaign."""


@checked()
class TrainingBudget:
    """Limits of a training, the first of which ends it; ``None`` is no limit (the model's epochs remain)."""

    max_seconds: Positive | None = None
    """Time in the training loop, s."""
    max_steps: AtLeastOne | None = None
    """Steps of the optimiser."""
    max_epochs: AtLeastOne | None = None
    """Passes over the training set."""


@checked()
class RolloutBudget:
    """Length of the rollouts."""

    replicas: AtLeastOne = 5
    """Simulations, each from another start."""
    steps: AtLeastOne = 1000
    """MD steps of each."""
    max_seconds: Positive | None = None
    """Time per rollout, s, counted as that of a training."""
    keep: Literal["xyz", "traj"] | None = None
    """Format in which trajectories are kept in ``runs/<campaign>/trajectories/``, extended xyz or that of
    ASE; by default they are not kept."""
    protocols: Annotated[tuple[Literal["corrected", "as_coded"], ...], Distinct] = ("corrected",)
    """How they are run, see :mod:`egraff_utils.md.rollout`."""


@checked()
class Override:
    """Budgets and seeds of one dataset, as far as they differ from those of the campaign."""

    training: dict[str, Value] = field(default_factory=dict)
    """Keys of the training budget."""
    rollout: dict[str, Value] = field(default_factory=dict)
    """Keys of the rollout budget."""
    seeds: Annotated[tuple[Seed, ...], Distinct] | None = None
    """Seeds, in place of those of the campaign."""
    further_steps: dict[str, AtLeastOne] = field(default_factory=dict)
    """Model -> steps of its trainings with seeds after the first one, in place of the limits: those of the
    first, so that seeds are alike though a machine or the code became faster in between."""


class Shift(TypedDict):
    """Frames other than the test set of the dataset that a model is trained on."""

    split: str
    target: str | None
    """Dataset that the split belongs to, if it is another one."""


@checked()
class Task:
    """A task out of distribution: that of a notebook, or one of your own, which names a target or a split."""

    datasets: Annotated[tuple[str, ...], Field(min_length=1), Distinct]
    """Datasets whose models it takes."""
    target: str | None = None
    """Dataset that the models are put to: its name, or the path of its card, relative to this file."""
    split: Name | None = None
    """Split of the target, or of the dataset that the model is trained on; by default ``test``."""

    @property
    def own(self) -> bool:
        """Whether the task has no notebook of its own but a target or a split."""
        return self.target is not None or self.split is not None

    @property
    def shifted(self) -> Shift:
        """Its parameters for a notebook and for :func:`~egraff_utils.config.check_shift`."""
        return {"split": self.split or "test", "target": self.target}


def _task(value):
    """A task from YAML, of which a list of datasets is the short form."""
    return {"datasets": value} if isinstance(value, list | tuple) else value


@checked()
class Campaign:
    """A matrix of datasets, models and seeds with their budgets."""

    name: Name
    """Name, by default that of the file."""
    description: str
    """What it is for."""
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of datasets; of one of your own the path of its card, relative to this file. Elsewhere in
    the file it goes by the name in its card."""
    models: Annotated[tuple[str, ...], Field(min_length=1), Distinct]
    """Names of models; of a calculator also the path of its card, relative to this file."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), Distinct] = (0,)
    """Seeds, one training of every model and dataset each."""
    preset: Name = "small"
    """Size of the networks, a preset of the models' cards."""
    training: TrainingBudget = field(default_factory=TrainingBudget)
    """Limits of every training."""
    rollout: RolloutBudget = field(default_factory=RolloutBudget)
    """Lengths of every rollout."""
    reference: bool = False
    """Whether the reference method of every dataset that has one is run too, as the model ``reference``: what
    the true force field would score with noise of its own."""
    ood: dict[Name, Annotated[Task, BeforeValidator(_task)]] = field(default_factory=dict)
    """``{task: [datasets]}``: notebooks in ``notebooks/ood/`` that are run for models trained on these
    datasets; their rollouts are as long as those of the dataset. A task of your own has any name and, in
    place of the list, the keys ``datasets`` and ``target`` or ``split``."""
    checks: dict[Name, Annotated[tuple[str, ...], Distinct]] = field(default_factory=dict)
    """``{task: [datasets]}``: notebooks in ``notebooks/checks/``, likewise."""
    ood_frames: AtLeastOne = 200
    """Largest number of frames of every composition for static errors out of distribution."""
    device: Annotated[str, AfterValidator(schema.check_device)] = "cpu"
    """``cpu``, ``cuda`` or, of several, such as ``cuda:1``."""
    threads: AtLeastOne = 1
    """Number of threads of one run."""
    jobs: AtLeastOne = 2
    """Number of runs at a time."""
    budget: Annotated[str, AfterValidator(check_time)] | None = None
    """Time for the whole campaign, such as ``25m``. If it is given, the campaign is planned before its first
    run, and the plan sets the lengths of trainings and rollouts (:mod:`egraff_utils.running.plan`)."""
    overrides: dict[str, Override] = field(default_factory=dict)
    """``{dataset: {training: {...}, rollout: {...}, seeds: [...]}}``: budgets and seeds of datasets for which
    they differ."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "datasets", tuple(cards.dataset(name).name for name in self.datasets))
        if twice := [name for name in self.datasets if self.datasets.count(name) > 1]:
            raise ValueError(f"campaign {self.name} has two datasets of the name {twice[0]}")
        object.__setattr__(self, "models", tuple(map(_checked_name, self.models)))
        built = {model for model in self.models if cards.model_builder(model)}
        for model in {*self.calculators, *(m for m in built if cards.model(m).pretrained)} - {
            cards.REFERENCE
        }:
            for dataset in self.datasets:
                cards.model(model).check_covers(cards.dataset(dataset))
        for model in built | set(self.models) & set(cards.models()):
            cards.model(model).training(self.preset)
        for _, label, datasets in self._tasks():
            for dataset in datasets:
                if dataset not in self.datasets:
                    raise cards.unknown(f"dataset of the task {label} of {self.name}", dataset, self.datasets)
        for name, task in self.ood.items():
            for dataset in task.datasets if task.own else ():
                with schema.at("ood", name):
                    self._check_shift(task, dataset)
        for dataset in self.overrides:
            if dataset not in self.datasets:
                raise cards.unknown(
                    f"dataset in the overrides of campaign {self.name}", dataset, self.datasets
                )
            self._budget("training", dataset), self._budget("rollout", dataset)
            for model in self.override(dataset).further_steps:
                if model not in self.models:
                    raise cards.unknown(f"model in the overrides of {dataset}", model, self.models)

    def _check_shift(self, task, dataset):
        config.check_shift(dataset, **task.shifted)
        for model in set(self.calculators) - {cards.REFERENCE}:
            cards.model(model).check_covers(cards.dataset(task.target or dataset))

    def cells(self) -> list[tuple[str, str, int]]:
        """All (dataset, model, seed) of the campaign, a list."""
        return [(d, m, s) for d in self.datasets for m in self.models_of(d) for s in self._seeds(d)]

    def models_of(self, dataset: str) -> tuple[str, ...]:
        """Names of the models that are run on a dataset, with ``reference`` if it is and can be run there."""
        more = self.reference and cards.dataset(dataset).oracle is not None
        return (*self.models, *[cards.REFERENCE] * more)

    def _seeds(self, dataset):
        return self.override(dataset).seeds or self.seeds

    @property
    def calculators(self) -> list[str]:
        """Names of the models that are not trained, a list."""
        return [model for model in self.models if cards.is_calculator(model)] + [
            cards.REFERENCE
        ] * self.reference

    def override(self, dataset: str) -> Override:
        """:class:`Override` of a dataset, which is empty if there is none."""
        return self.overrides.get(dataset, Override())

    def task_cells(self) -> list[tuple[str, str, str, str, int]]:
        """All (folder, task, dataset, model, seed) of the tasks that use a trained model."""
        return [
            (folder, task, *cell)
            for folder, task, names in self._tasks()
            for cell in self.cells()
            if cell[0] in names
        ]

    def _tasks(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """(folder in ``notebooks/``, task, datasets) of every task, a list."""
        ood = {name: task.datasets for name, task in self.ood.items()}
        named = zip(TASKS, (ood, self.checks), strict=True)
        return [(folder, task, names) for folder, tasks in named for task, names in tasks.items()]

    def task_datasets(self, task: str) -> tuple[str, ...]:
        """Datasets of a task such as ``"ood/benzene"``."""
        return {f"{folder}/{name}": datasets for folder, name, datasets in self._tasks()}[task]

    def own_task(self, task: str) -> Task | None:
        """:class:`Task` of your own of a name such as ``"ood/hot"``, or None."""
        folder, name = task.split("/")
        found = self.ood.get(name) if folder == "ood" else None
        return found if found and found.own else None

    def dataset_parameters(self, dataset: str) -> dict[str, Any]:
        """Parameters of a dataset's notebook; that of a dataset of the project knows its dataset."""
        return {"campaign": self.name} | self._named(dataset)

    def _named(self, dataset):
        return {} if dataset in cards.datasets() else {"dataset": cards.dataset_spelling(dataset)}

    def training_parameters(self, dataset: str, model: str, seed: int) -> dict[str, Any]:
        """Parameters of a training notebook, which knows its own model unless several share it.

        That of calculators has no limits.
        """
        common = self._common(seed) | {"dataset": cards.dataset_spelling(dataset)}
        if cards.is_calculator(model):
            return common | {"model": cards.model_spelling(model)}
        common |= {"model": cards.model_spelling(model)} if cards.model_builder(model) else {}
        return common | {"preset": self.preset} | self._limits(dataset, model, seed)

    def rollout_parameters(self, dataset: str, model: str, seed: int, protocol: str) -> dict[str, Any]:
        """Parameters of a rollout notebook; that of a dataset of the project knows its dataset."""
        budget = self._budget("rollout", dataset)
        limits = self._limits(dataset, model, seed)
        return {
            **self._common(seed),
            **self._named(dataset),
            "preset": self.preset,
            **{f"train_{key}": limit for key, limit in limits.items()},
            "model": cards.model_spelling(model),
            "protocol": protocol,
            "replicas": budget.replicas,
            "steps": budget.steps,
            "max_seconds": budget.max_seconds,
            **({"keep": budget.keep} if budget.keep else {}),
        }

    def task_parameters(self, dataset: str, model: str, seed: int) -> dict[str, Any]:
        """Parameters of a task's notebook, which uses a trained model."""
        parameters = self.rollout_parameters(dataset, model, seed, "corrected")
        del parameters["protocol"]
        return parameters | {"dataset": cards.dataset_spelling(dataset), "frames": self.ood_frames}

    def protocols(self, dataset: str) -> tuple[str, ...]:
        """Rollout protocols of a dataset."""
        return self._budget("rollout", dataset).protocols

    def _common(self, seed):
        return {"campaign": self.name, "seed": seed, "device": self.device, "threads": self.threads}

    def _limits(self, dataset, model, seed):
        """Limits of one training, which may be the steps of that with the first seed."""
        limits = asdict(self._budget("training", dataset))
        steps = self.override(dataset).further_steps.get(model)
        first = seed == self._seeds(dataset)[0]
        return limits if first or steps is None else dict.fromkeys(limits) | {"max_steps": steps}

    def _budget(self, part, dataset):
        budget = getattr(self, part)
        mapping = asdict(budget) | getattr(self.override(dataset), part)
        return schema.validated(type(budget), mapping, where=f"{part} overrides of {dataset}")


def _checked_name(model):
    """Name of a model given by it or by the path of a card, of which one must exist."""
    if model != cards.REFERENCE:
        cards.model(model)
    return schema.check_model_name(cards.model_name(model))


def names() -> list[str]:
    """Names of the campaigns in ``params/``."""
    return sorted(p.stem for p in (paths.ROOT / "params").glob("*.yml") if p.stem != "book")


def load(name: str | Path, *, planned: bool = True) -> Campaign:
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
    path = path_of(name)
    mapping = schema.read(path)
    mapping.setdefault("name", path.stem)
    tasks = mapping.get("ood")
    for task in tasks.values() if isinstance(tasks, dict) else ():
        if isinstance(task, dict) and task.get("target"):
            task["target"] = _located(task["target"], path.parent)
    for key in ("models", "datasets"):
        if isinstance(mapping.get(key), list):
            mapping[key] = [_located(name, path.parent) for name in mapping[key]]
    campaign = schema.validated(Campaign, mapping, where=path)
    plan = plan_path(campaign.name)
    if not (planned and plan.is_file()):
        return campaign
    try:
        return _planned(campaign, cards.read_yaml(plan))
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{plan} is no plan of the campaign; delete it, and it is made anew") from error


class OneByOne(NamedTuple):
    """What the records of runs that were made one by one show, in the place of a :class:`Campaign`."""

    datasets: tuple[str, ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str
    description: str = "Runs that were made one by one."

    def cells(self) -> list[tuple[str, str, int]]:
        """All (dataset, model, seed), a list."""
        return list(product(self.datasets, self.models, self.seeds))

    def task_cells(self) -> list[tuple[str, str, str, str, int]]:
        """Such runs belong to no task."""
        return []


def of_records(name: str, found: Sequence[Record]) -> Campaign | OneByOne:
    """The campaign with this name, or, without a file, what its records show (:class:`OneByOne`).

    These are the records of trainings or, if there are none, all others, such as those of failures.

    Parameters
    ----------
    name
        Name of the campaign.
    found
        Its records.

    Raises
    ------
    ValueError
        If there is neither a file nor a record.
    """
    shown = [record for record in found if record.kind == "training"] or list(found)
    try:
        path_of(name)
    except ValueError:
        if not shown:
            raise
    else:
        return load(name)
    parts: dict[str, Any] = {
        f"{part}s": tuple(dict.fromkeys(getattr(r, part) for r in shown)) for part in CELL_PARTS
    }
    presets = [record.parameters["preset"] for record in shown if "preset" in record.parameters]
    return OneByOne(**parts, preset=(presets or ["small"])[0])


def _located(name, folder):
    """A name as it is; the path of a card is relative to a folder, or that of a copy (:func:`keep`)."""
    if not _is_path(name):
        return name
    path = folder / Path(name).expanduser()
    copy = folder / path.name
    if not (path.is_file() or copy.is_file()):
        raise schema.no_file(path)
    return str(path if path.is_file() else copy)


def _is_path(name):
    return str(name).endswith((".yml", ".yaml"))


def path_of(name: str | Path) -> Path:
    """Path of the file of a campaign, given by its name or by the path.

    Raises
    ------
    ValueError
        If there is no such file in ``params/``, and none that :func:`keep` has left with the records.
    """
    given = [Path(name).expanduser().resolve()] if _is_path(name) else []
    for path in given or [paths.ROOT / "params" / f"{name}.yml", kept_path(name)]:
        if path.is_file():
            return path
    raise cards.unknown("campaign", name, names())


def keep(name: str | Path) -> None:
    """Copy the file of a campaign outside ``params/`` to its records, so that reports find it by its name.

    The cards of its datasets and calculators and of the targets of its tasks are copied with it. Data are
    not, so that what shows frames is made while the campaign runs.

    Raises
    ------
    ValueError
        If two of these files have one name, so that the copy of one would take the place of the other.
    """
    path, campaign = path_of(name), load(name, planned=False)
    own = campaign.name
    if path.parent != paths.ROOT / "params" and path != kept_path(own):
        named = "name" in schema.read(path)
        given = [task.target for task in campaign.ood.values() if task.target]
        targets = [Path(target).resolve() for target in given if _is_path(target)]
        own_cards = [*map(cards.model_file, campaign.models), *map(cards.dataset_file, campaign.datasets)]
        files = dict.fromkeys([*filter(None, own_cards), *targets])
        taken = ["campaign.yml", "plan.yml", *(file.name for file in files)]
        if twice := [name for name in taken if taken.count(name) > 1]:
            raise ValueError(
                f"{path}: copies of its cards are kept in one folder, and two files there would be "
                f"{twice[0]}; give each card a name of its own"
            )
        with paths.written(kept_path(own)) as temporary:
            temporary.write_text(("" if named else f"name: {own}\n") + path.read_text())
        for file in files:
            with paths.written(kept_path(own).with_name(file.name)) as temporary:
                temporary.write_bytes(file.read_bytes())


def kept_path(name: str | Path) -> Path:
    """Path of the copy that :func:`keep` makes, ``results/<campaign>/campaign.yml``."""
    return paths.results() / str(name) / "campaign.yml"


def plan_path(name: str) -> Path:
    """Path of the plan, whose budgets fit a given time, ``results/<campaign>/plan.yml``.

    It is stored with the records, so that it is moved and committed together with them.
    """
    return paths.results() / name / "plan.yml"


def _planned(campaign, plan):
    """The campaign with the number of jobs and the budgets of a plan."""
    overrides = dict(campaign.overrides)
    for dataset in set(plan["budgets"]) & set(campaign.datasets):
        own, limits = campaign.override(dataset), plan["budgets"][dataset]
        overrides[dataset] = replace(own, **{part: getattr(own, part) | limits[part] for part in limits})
    return replace(campaign, jobs=plan["jobs"], overrides=overrides)


def write_references(folder: Path = paths.ROOT / "book") -> None:
    """Write the tables of all keys of cards and campaigns into the pages of the book that explain them.

    That of readers stands with those of cards.
    """
    rows = [f"| `{name}` | {wants} |" for name, wants in cards.READERS.items()]
    readers = "\n".join(["Readers:", "", "| reader | files and keys |", "|---|---|", *rows, "", ""])
    for cls, page, more in ((cards.DatasetCard, "add_dataset", readers), (Campaign, "run", "")):
        path = folder / f"{page}.md"
        before, _, rest = path.read_text().partition(f"{KEYS}\n")
        after = rest.partition(f"{KEYS}\n")[2]
        path.write_text(f"{before}{KEYS}\n\n{schema.reference(cls)}\n{more}{KEYS}\n{after}")


if __name__ == "__main__":
    write_references()
