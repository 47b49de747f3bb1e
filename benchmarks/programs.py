"""How do two trainings start alike and take their steps in turns? A plan for both, a process for each."""

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
import yaml

from benchmarks import Settings
from egraff_utils import cards, data

if TYPE_CHECKING:  # which loads torch
    from egraff_utils.train import TrainConfig

Report = Callable[[Any], None]
"""Function by which a program reports to the process that started it."""
Main = Callable[["Plan", Report], None]
"""Function that runs a program."""

PRESET = "small"
STEPS = 2  # steps of one call, so that fifty pairs of calls stay within an epoch
STARTING = 1200  # s allowed for the start of a program, including compilation


class Plan:
    """Files and hyperparameters of a training, in a separate folder, from which every program starts.

    Parameters
    ----------
    folder
        Folder to which ``train.xyz``, ``val.xyz``, a dataset card and the initial weights are written.
    model, dataset
        Names of model and dataset.
    settings
        :class:`benchmarks.Settings`.
    training
        Hyperparameters that replace those of the preset.
    preset
        Name of the preset.
    seed
        Seed of the initial weights, and of the order of the batches of every program.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        dataset: str,
        settings: Settings,
        training: dict,
        preset: str = PRESET,
        seed: int = 0,
    ) -> None:
        import torch

        from egraff_utils import models, train

        self.folder, self.model, self.dataset = str(folder), model, dataset
        self.device, self.threads = settings.device, settings.threads
        self.training, self.preset, self.seed = training, preset, seed
        self.budget: float | None = None
        hyperparameters = models.card(model).training(preset, **self.training)
        self.hyper = asdict(hyperparameters)
        self._write_data(folder)
        frames: Any = ase.io.read(folder / "train.xyz", ":")  # a list, as all are asked for
        learner = train.new_learner(self.config(), hyperparameters, frames)
        self.network = {**models.card(model).network(preset), **learner.force_field.build_arguments}
        self.elements = learner.force_field.elements
        energies = learner.force_field.reference_energies
        self.energies = {z: float(energies[z]) for z in self.elements}
        self.scale = float(learner.force_field.scale)
        models.save(learner.force_field, folder / "first.safetensors")
        parameters = learner.force_field.network.parameters()
        torch.save([p.detach() for p in parameters], folder / "first.pt")

    def _write_data(self, folder):
        card = cards.dataset(self.dataset)
        for split in ("train", "val"):
            ase.io.write(folder / f"{split}.xyz", data.load(card, split))
        described = {
            "name": f"{card.name}_training",
            "system": card.system,
            "elements": list(card.elements),
            "temperature": card.temperature,
            "timestep": card.timestep,
            "reader": "extxyz",
            "files": {split: f"{split}.xyz" for split in ("train", "val")},
            "splits": {"train": "train", "val": "val", "test": {"source": "val", "subset_of": ["val"]}},
        }
        (folder / "card.yml").write_text(yaml.safe_dump(described))

    def config(self, **options: Any) -> "TrainConfig":
        """:class:`~egraff_utils.train.TrainConfig` of our side, practically without a limit by default."""
        from egraff_utils.train import TrainConfig

        working = {"device": self.device, "threads": self.threads, "progress": False, "seed": self.seed}
        chosen: dict[str, Any] = {"max_steps": 10**6, "training": self.training} | working | options
        return TrainConfig(self.model, f"{self.folder}/card.yml", preset=self.preset, **chosen)

    def forces(self, positions: np.ndarray, forces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Forces of our and their force field, ``(N, 3)``, eV/Å, on a batch that theirs received."""
        from egraff_utils import models
        from egraff_utils.graph import build_graph

        force_field = models.load(f"{self.folder}/first.safetensors")
        frames = [
            atoms for part in ("train", "val") for atoms in ase.io.read(f"{self.folder}/{part}.xyz", ":")
        ]
        stored = np.array([atoms.positions for atoms in frames])
        batch = positions.reshape(-1, *stored.shape[1:])
        found = [int(np.abs(stored - frame).max(axis=(1, 2)).argmin()) for frame in batch]
        graph = build_graph([frames[i] for i in found], force_field.cutoff, dtype=force_field.dtype)
        return force_field(graph).forces.numpy(), forces


class Program:
    """A training in a separate process that takes steps on request; it ends with its ``with`` block.

    Parameters
    ----------
    plan
        :class:`Plan`.
    main
        Function of the plan and of a function that reports to this process.
    """

    def __init__(self, plan: Plan, main: Main) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.connection, there = spawn.Pipe()
        self.log = Path(plan.folder, f"{main.__name__}.log")
        self.process = spawn.Process(target=_work, args=(there, self.log, main, plan), daemon=True)
        self.process.start()
        there.close()
        self.seconds = 0.0

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    def receive(self) -> Any:
        """Next report of the process; its processor time is stored in ``seconds``.

        Raises
        ------
        RuntimeError
            If the process ended or hangs; the message holds the last line that it wrote.
        """
        try:
            if self.connection.poll(STARTING):
                self.seconds, report = self.connection.recv()
                return report
        except EOFError:
            pass
        lines = self.log.read_text(errors="replace").split("\n")
        raise RuntimeError(f"{self.log.stem} ended: {([''] + [x for x in lines if x.strip()])[-1][-300:]}")

    def step(self, steps: int = STEPS) -> None:
        """Make the program take steps, and wait for them."""
        self.connection.send(steps)
        self.receive()


def _work(connection, log, main, plan):
    """Run a program, which waits after its first optimiser step, and after every request for steps."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(plan.threads)
    left = [1]

    def report(what):
        connection.send((time.process_time(), what))

    def wait(*_):
        left[0] -= 1
        if not left[0]:
            report(None)
            left[0] = connection.recv()

    register_optimizer_step_post_hook(wait)
    main(plan, report)


def own_folders(plan: Plan) -> None:
    """Make this process write its records and checkpoints to the folder of the plan."""
    for name in ("RESULTS", "RUNS"):
        os.environ[f"EGRAFF_{name}"] = f"{plan.folder}/{name.lower()}"
