"""How long until the forces are accurate? Times to a validation error, of ours and the packages' commands.

Ours trains with the preset as in this book, compiled, with a learning rate that decreases over the budget.
The command of the package receives the same network, initial weights, frames, batches and loss, and the Adam
settings of the card. It has no schedule over time, so its rate is constant or lowered by its own plateau
scheduler. All programs are observed in the same way: processor time from the first epoch, including their own
validations, and the error in these validations, of averaged weights if the program averages.
"""

import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import Settings, measured
from benchmarks.commands import UPSTREAM
from benchmarks.compare import same
from benchmarks.programs import Main, Plan, Program, Report, own_folders
from benchmarks.step import NO_END
from benchmarks.training import ROUNDING
from egraff_utils.records import Metric, Record
from egraff_utils.units import EV_TO_MEV

TITLE = "Time to accuracy: seconds until the validation error of the forces is reached"
DATASETS = ("ethanol", "aspirin")
TARGETS = (50, 20, 10)
"""Mean absolute errors of the forces for which times are reported, meV/Å."""
PRESET = "day"
ADAM = "small"
"""Preset whose Adam settings the packages' commands receive where ours uses Muon."""
ADAM_FIELDS = ("learning_rate", "amsgrad", "weight_decay")
LACKING = {"torchmd_net": {"optimizer": "adamw", "amsgrad": False, "ema_decay": None}}
"""Model -> hyperparameters of its package's command that differ; torchmd-train does not average weights."""
METRICS = {"torchmd_net": "val_neg_dy_l1_loss", "nequip": "val0_epoch/forces_mae"}
"""Model -> name of the validation error of the forces, eV/Å, among the metrics of its command."""

Enough = Callable[[list[tuple[float, float]]], bool]
"""Whether points of seconds and error are enough."""
Curve = tuple[np.ndarray, np.ndarray, float]
"""Seconds and errors of a program's validations, and the time of its compilation, s."""


def run(settings: Settings) -> Iterator[Record]:
    """Yield records of kind ``bench_accuracy``, one per model and dataset; only on one thread of a CPU.

    Metrics, s, null if the budget ended before: ``ours_50``, ``theirs_50`` and so on, for :data:`TARGETS`,
    without the compilation, and ``compile_seconds``. Curves: ``ours_seconds``, ``ours_error`` (meV/Å), and
    the same with ``theirs``, one value per validation.
    """
    from egraff_utils import models

    if settings.quick or settings.on_gpu or settings.threads > 1:
        return
    for dataset in DATASETS:
        for model in models.NAMES:
            theirs = training(model) if model in UPSTREAM else None
            parameters = {"preset": PRESET, "budget": settings.budget, "theirs": theirs}
            cell = model, dataset, settings, theirs
            yield measured(settings, "bench_accuracy", dataset, model, parameters, partial(_measure, *cell))


def training(model: str, preset: str = PRESET) -> dict[str, Any]:
    """Training hyperparameters of a package's command that replace those of the preset.

    Raises
    ------
    ValueError
        If the packages do not have the loss of the preset.
    """
    from egraff_utils import models

    card = models.card(model)
    hyper, adam = card.training(preset), card.training(ADAM)
    if hyper.loss != "mse":
        raise ValueError(f"{model}: the packages' commands cannot minimise {hyper.loss=}")
    other = {name: getattr(adam, name) for name in ADAM_FIELDS} if hyper.optimizer == "muon" else {}
    return {"optimizer": "adam", "scheduler": "plateau", **other, **LACKING.get(model, {})}


def _measure(model, dataset, settings, theirs, preset=PRESET):
    sides = {"ours": (learn, {})} | ({"theirs": (learn_upstream, theirs)} if theirs else {})
    budget, metrics, curves = settings.budget, [], {}
    found = follow_all(sides, until(budget), model, dataset, settings, budget=budget, preset=preset)
    for side, (seconds, errors, started) in found.items():
        curves |= {f"{side}_seconds": seconds, f"{side}_error": errors}
        metrics += [Metric(f"{side}_{goal}", reached(seconds, errors, goal), "s") for goal in TARGETS]
        if side == "ours":
            metrics.append(Metric("compile_seconds", started, "s"))
    return metrics, curves


def follow_all(
    sides: Mapping[str, tuple[Main, dict]], enough: Enough, *cell: Any, budget: float | None, **options: Any
) -> dict[str, Curve]:
    """Learning curves of several programs, one after the other, as of :func:`follow`.

    Parameters
    ----------
    sides
        Name -> the program and the training hyperparameters that it replaces.
    enough
        As in :func:`follow`.
    cell, options
        Model, dataset and settings, and keyword arguments of :class:`~benchmarks.programs.Plan`.
    budget
        Time that a program has, s, or ``None``.
    """
    curves = {}
    for side, (main, changed) in sides.items():
        with tempfile.TemporaryDirectory() as folder:
            model, dataset, settings = cell
            plan = Plan(Path(folder), model, dataset, settings, changed, **options)
            plan.budget = budget
            with Program(plan, main) as program:
                curves[side] = follow(program, plan, enough)
    return curves


def reached(seconds: np.ndarray, errors: np.ndarray, target: float) -> float | None:
    """Time of the first error that is not above a target, s; ``None`` if there is none.

    >>> reached(np.array([1.0, 2.0, 3.0]), np.array([60.0, 50.0, 55.0]), 50)
    2.0
    """
    met = np.flatnonzero(np.asarray(errors) <= target)
    return float(seconds[met[0]]) if len(met) else None


def until(seconds: float) -> Enough:
    """Whether the last of some validations was after that time, a function of the points so far.

    >>> until(20)([(10, 300.0)]), until(20)([(10, 300.0), (21, 200.0)])
    (False, True)
    """
    return lambda points: points[-1][0] >= seconds


def follow(program: Program, plan: Plan, enough: Enough) -> Curve:
    """Learning curve of a program, which is ended when it has enough validations.

    Parameters
    ----------
    program, plan
        :class:`~benchmarks.programs.Program` and its plan.
    enough
        Function of the points so far, pairs of seconds and error, that says whether they are enough.

    Returns
    -------
    seconds, errors : np.ndarray
        Processor time since the start of the first epoch, s, and error, meV/Å, of every validation, shape
        ``(V,)``.
    compilation : float
        Processor time of the compilation, which precedes the first epoch, s.
    """
    points: list[tuple[float, float]] = []
    begun, compilation = None, 0.0
    while not points or not enough(points):
        match program.receive():
            case None:  # the program waits after its first step
                program.connection.send(NO_END)
            case list(arrays):
                same(*plan.forces(*arrays), relative=ROUNDING)
            case "end":
                break
            case "begin", compilation:
                begun = program.seconds
            case "error", error:
                if begun is not None:
                    points.append((program.seconds - begun, error))
    return *np.array(points, dtype=float).reshape(-1, 2).T, compilation


# -- programs that say how far they are -------------------------------------------------------------------


def learn(plan: Plan, report: Report) -> None:
    """Our program, ``fit`` over the budget."""
    from egraff_utils import train

    def compilation(trainer):
        return trainer.lightning_module.compiled.seconds

    own_folders(plan)
    _watch_lightning(report, lambda t: t.lightning_module.history[-1]["val_force_mae"], compilation)
    train.fit(plan.config(compile=True, max_steps=None, max_seconds=plan.budget))
    report("end")


def learn_upstream(plan: Plan, report: Report) -> None:
    """The command of the model's package."""
    command = UPSTREAM[plan.model]
    if command is UPSTREAM["mace"]:
        _watch_mace(report)
    else:
        name = METRICS["torchmd_net" if plan.model == "torchmd_net" else "nequip"]
        _watch_lightning(report, lambda t: float(t.callback_metrics.get(name, np.nan)) * EV_TO_MEV)
    command(plan, report)
    report("end")


def _watch_lightning(report: Report, error, compilation=lambda trainer: 0.0):
    """Make a program that trains with Lightning report its first epoch and its validations."""
    from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
    from lightning.pytorch.loops.fit_loop import _FitLoop

    _before_first(_FitLoop, "advance", lambda loop: report(("begin", compilation(loop.trainer))))
    _after(_EvaluationLoop, "run", lambda loop: report(("error", error(loop.trainer))))


def _watch_mace(report: Report):
    """Make ``mace_run_train`` report its first epoch and its validations."""
    loop = importlib.import_module("mace.tools.train")
    _before_first(loop, "train_one_epoch", lambda **_: report(("begin", 0.0)))
    _after(loop, "valid_err_log", lambda _, found, *__: report(("error", found["mae_f"] * EV_TO_MEV)))


def _before_first(owner, name, call):
    original = getattr(owner, name)

    def once(*arguments, **keywords):
        call(*arguments, **keywords)
        setattr(owner, name, original)
        return original(*arguments, **keywords)

    setattr(owner, name, once)


def _after(owner, name, call):
    original = getattr(owner, name)

    def watched(*arguments, **keywords):
        result = original(*arguments, **keywords)
        call(*arguments, **keywords)
        return result

    setattr(owner, name, watched)
