"""Does training keep up? Our training is compared step by step with the commands of the upstream packages.

Both sides are complete programs, ``fit`` of :mod:`egraff_utils.train` and ``mace_run_train``,
``nequip-train`` or ``torchmd-train``, each in a separate process, with the same files, batches, dtype,
hyperparameters and initial weights. Ours is compiled; it is also compared with ``nequip-train`` with its own
compilation, and with ours in eager mode. A hook after every optimiser step makes two programs take turns, so
that the time includes everything between two steps, but neither start nor compilation.
"""

import importlib
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import ase.io
import numpy as np
import yaml
from ase.data import chemical_symbols

from benchmarks import measured
from benchmarks.compare import compare, same
from egraff_utils import cards, data
from egraff_utils.records import Metric

TITLE = "Training: structures per second of ours and of the packages' own commands"
PRESET = "small"
DATASETS = ("ethanol", "lips")
TRAINING = {"batch_size": 5, "scheduler": "none", "optimizer": "adam"}
LIKE_TORCHMD = {
    "optimizer": "adamw",
    "amsgrad": False,
    "ema_decay": None,
    "clip_norm": None,
    "energy_per_atom": False,
}
"""Hyperparameters that torchmd-train cannot change."""
STEPS = 2  # steps of one call, so that fifty pairs of calls stay within an epoch
SETTLING = 5  # first steps of both, in which compiled code is specialised
ROUNDING = 5e-5  # relative difference of forces, as float32 holds coordinates of periodic frames to 1e-6 Å
GRADIENT_ROUNDING = 1e-3  # relative difference of gradients, which are sums of many terms that cancel
STARTING = 1200  # s allowed for the start of a program, including compilation


def run(settings):
    """Yield records of the kinds in :data:`OPPONENTS`.

    Metrics: ``ratio``, ``ours``, ``theirs`` (structures/s), and ``force_difference`` of the first batch, or
    ``gradient_difference`` if both sides are ours. Curves: times of ``STEPS`` steps, s. In a quick run ours
    is not compiled, which the parameters of its records say.
    """
    chosen = [(kind, *cell) for kind in OPPONENTS for cell in cells(kind)]
    for kind, model, dataset in chosen[:2] if settings.quick else chosen:
        training = TRAINING | (LIKE_TORCHMD if OPPONENTS[kind][model] is _torchmd else {})
        parameters = {"preset": PRESET, "training": training, "steps": STEPS, "compile": not settings.quick}
        cell = kind, model, dataset, training, settings
        yield measured(settings, kind, dataset, model, parameters, lambda cell=cell: _measure(*cell))


def cells(kind):
    """Models and datasets of a kind; torchmd-train cannot read periodic frames."""
    mains = OPPONENTS[kind].items()
    return [(m, d) for d in DATASETS for m, main in mains if (main, d) != (_torchmd, "lips")]


def _measure(kind, model, dataset, training, settings):
    main = OPPONENTS[kind][model]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plan = Plan(folder, model, dataset, settings, training)
        theirs = stack.enter_context(Program(plan, main))
        ours = stack.enter_context(Program(plan, _plain if settings.quick else _ours))
        first, gradients = theirs.receive(), ours.receive()
        if main is _plain:
            name, difference = "gradient", same(gradients, first, relative=GRADIENT_ROUNDING)
        else:
            name, difference = "force", same(*plan.forces(*first), relative=ROUNDING)
        for program in (theirs, ours):
            program.receive()
            program.step(SETTLING)
        alone = settings.threads == 1 and settings.device == "cpu"
        clock = (lambda: ours.seconds + theirs.seconds) if alone else time.perf_counter
        seconds = 3.5 if settings.quick else 9.0
        found = compare(ours.step, theirs.step, seconds=seconds, warm_up=1, clock=clock)
    structures = STEPS * training["batch_size"]
    metrics = found.metrics(unit_per_call=structures, unit="structures/s")
    return [*metrics, Metric(f"{name}_difference", difference, "1")], found.curves()


# -- one training, described once for both sides ----------------------------------------------------------


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

    def __init__(self, folder, model, dataset, settings, training, preset=PRESET, seed=0):
        import torch

        from egraff_utils import models, train

        self.folder, self.model, self.dataset = str(folder), model, dataset
        self.device, self.threads = settings.device, settings.threads
        self.training, self.preset, self.seed = training, preset, seed
        hyperparameters = models.card(model).training(preset, **self.training)
        self.hyper = asdict(hyperparameters)
        self._write_data(folder)
        frames = ase.io.read(folder / "train.xyz", ":")
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

    def config(self, **options):
        """:class:`~egraff_utils.train.TrainConfig` of our side, practically without a limit by default."""
        from egraff_utils.train import TrainConfig

        working = {"device": self.device, "threads": self.threads, "progress": False, "seed": self.seed}
        options = {"max_steps": 10**6, "training": self.training} | working | options
        return TrainConfig(self.model, f"{self.folder}/card.yml", preset=self.preset, **options)

    def forces(self, positions, forces):
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


# -- programs that run in turns -------------------------------------------------------------------------


class Program:
    """A training in a separate process that takes steps on request; it ends with its ``with`` block.

    Parameters
    ----------
    plan
        :class:`Plan`.
    main
        Function of the plan and of a function that reports to this process.
    """

    def __init__(self, plan, main):
        spawn = multiprocessing.get_context("spawn")
        self.connection, there = spawn.Pipe()
        self.log = Path(plan.folder, f"{main.__name__}.log")
        self.process = spawn.Process(target=_work, args=(there, self.log, main, plan), daemon=True)
        self.process.start()
        there.close()
        self.seconds = 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()

    def receive(self):
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

    def step(self, steps=STEPS):
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


def _ours(plan, report, **options):
    """Run ``fit``, compiled, and report the gradients of its first batch."""
    import torch

    from egraff_utils import train

    own_folders(plan)
    config = plan.config(**({"compile": True} | options))
    backward = train.Learner.backward

    def once(learner, loss):
        if config.compile and learner.gradients is None:
            raise RuntimeError("our step is not compiled")
        backward(learner, loss)
        train.Learner.backward = backward
        weights = [p for p in learner.force_field.parameters() if p.requires_grad]
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
        report(torch.cat([gradient.flatten() for gradient in found]).cpu().numpy())

    train.Learner.backward = once
    train.fit(config)  # flushes denormal numbers to zero; upstream programs run as they do for their users


def _plain(plan, report):
    _ours(plan, report, compile=False)


def own_folders(plan):
    """Make this process write its records and checkpoints to the folder of the plan."""
    for name in ("RESULTS", "RUNS"):
        os.environ[f"EGRAFF_{name}"] = f"{plan.folder}/{name.lower()}"


def _start_from(plan, report, place, find, read):
    """Load our initial weights into the model of a package, and report its forces on the first batch.

    Parameters
    ----------
    plan, report
        Arguments of a program.
    place
        Builder of the package, ``module:name``, which is replaced by a wrapper.
    find
        Function that returns the model from the result of the builder.
    read
        Function that returns positions and forces from input and output of the model.
    """
    import torch

    owner, name = place.split(":")
    module = importlib.import_module(owner)
    *parents, name = name.split(".")
    for parent in parents:
        module = getattr(module, parent)
    build = getattr(module, name)

    def built(*arguments, **keywords):
        made = build(*arguments, **keywords)
        model = find(made)
        first = torch.load(f"{plan.folder}/first.pt")
        with torch.no_grad():
            for theirs, ours in zip(model.parameters(), first, strict=True):
                theirs.copy_(ours.reshape(theirs.shape))
        model.register_forward_hook(once)
        return made

    done = []

    def once(model, arguments, output):
        if not done:
            done.append(True)
            report([tensor.detach().double().cpu().numpy() for tensor in read(arguments, output)])

    setattr(module, name, built)


# -- the packages' own commands, given what our side is given ----------------------------------------------


def _mace(plan, report):
    from mace.cli.run_train import main

    network, hyper = plan.network, plan.hyper
    first = "RealAgnosticResidualInteractionBlock"
    arguments = {
        "name": "training",
        "work_dir": f"{plan.folder}/mace",
        "train_file": f"{plan.folder}/train.xyz",
        "valid_file": f"{plan.folder}/val.xyz",
        "energy_key": "energy",
        "forces_key": "forces",
        "model": "ScaleShiftMACE",
        "interaction": first,
        "interaction_first": first,
        "r_max": network["cutoff"],
        "num_radial_basis": network["num_bessels"],
        "num_cutoff_basis": network["polynomial_cutoff"],
        "max_ell": network["l_max"],
        "num_interactions": network["num_interactions"],
        "correlation": network.get("correlation", 1),
        "num_channels": network["num_channels"],
        "max_L": network["hidden_l_max"],
        "MLP_irreps": f"{network['readout_width']}x0e",
        "radial_MLP": [network["radial_width"]] * network["radial_layers"],
        "avg_num_neighbors": network["average_neighbors"],
        "compute_avg_num_neighbors": False,
        "E0s": plan.energies,
        "mean": 0.0,
        "std": plan.scale,
        "loss": "weighted",
        "energy_weight": hyper["energy_weight"],
        "forces_weight": hyper["force_weight"],
        "batch_size": hyper["batch_size"],
        "valid_batch_size": 10,
        "lr": hyper["learning_rate"],
        "weight_decay": hyper["weight_decay"],
        "ema_decay": hyper["ema_decay"],
        "clip_grad": hyper["clip_norm"],
        "lr_factor": hyper["plateau_factor"],
        "scheduler_patience": hyper["plateau_patience"],
        "default_dtype": "float32",
        "device": plan.device,
        "max_num_epochs": 1000,
        "seed": plan.seed,
    }
    flags = ["--ema", *["--amsgrad"] * hyper["amsgrad"]]
    sys.argv = ["mace_run_train", *flags, *[f"--{k}={v}" for k, v in arguments.items()]]
    _start_from(
        plan,
        report,
        "mace.cli.run_train:configure_model",
        find=lambda made: made[0],
        read=lambda given, output: (given[0]["positions"], output["forces"]),
    )
    main()


def _nequip_compiled(plan, report):
    _nequip(plan, report, compile_mode="compile")


def _nequip(plan, report, **options):
    """Run ``nequip-train``; ``options`` are further options of its model, such as ``compile_mode``."""
    from nequip.scripts.train import main

    hyper, names = plan.hyper, [chemical_symbols[z] for z in plan.elements]
    transforms = [
        {"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", "model_type_names": names},
        {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": plan.network["cutoff"]},
    ]
    weights = {"total_energy": hyper["energy_weight"], "forces": hyper["force_weight"]}
    watched = {"per_atom_energy_mae": 1.0, "forces_mae": 1.0}
    config = {
        "hydra": {"run": {"dir": f"{plan.folder}/nequip"}},
        "run": ["train"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": plan.seed,
            "train_file_path": f"{plan.folder}/train.xyz",
            "val_file_path": f"{plan.folder}/val.xyz",
            "transforms": transforms,
            "train_dataloader": {"batch_size": hyper["batch_size"], "shuffle": True},
            "val_dataloader": {"batch_size": 10},
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "gpu" if plan.device.startswith("cuda") else "cpu",
            "devices": 1,
            "max_epochs": 1000,
            "gradient_clip_val": hyper["clip_norm"],
            "num_sanity_val_steps": 0,
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "ema_decay": hyper["ema_decay"],
            "loss": {"_target_": "nequip.train.EnergyForceLoss", "coeffs": weights},
            "val_metrics": {"_target_": "nequip.train.EnergyForceMetrics", "coeffs": watched},
            "optimizer": {
                "_target_": "torch.optim.Adam",
                "lr": hyper["learning_rate"],
                "amsgrad": hyper["amsgrad"],
            },
            "lr_scheduler": {
                "scheduler": {
                    "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
                    "factor": hyper["plateau_factor"],
                    "patience": hyper["plateau_patience"],
                },
                "monitor": "val0_epoch/weighted_sum",
            },
            "model": _nequip_model(plan, names) | options,
        },
    }
    Path(plan.folder, "nequip.yaml").write_text(yaml.safe_dump(config))
    sys.argv = ["nequip-train", "-cp", plan.folder, "-cn", "nequip"]
    os.chdir(plan.folder)
    _start_from(
        plan,
        report,
        "nequip.train.lightning:NequIPLightningModule._build_model",
        find=lambda model: model,
        read=lambda given, output: (given[0]["pos"], output["forces"]),
    )
    main()


def _nequip_model(plan, names):
    """Model in nequip's configuration, with the keywords of ours under their names there."""
    network = plan.network
    energies = {name: plan.energies[z] for name, z in zip(names, plan.elements, strict=True)}
    shared = {
        "seed": plan.seed,
        "model_dtype": "float32",
        "type_names": names,
        "r_max": network["cutoff"],
        "avg_num_neighbors": network["average_neighbors"],
        "per_type_energy_scales": plan.scale,
        "per_type_energy_shifts": energies,
    }
    same_names = {k: network[k] for k in ("num_layers", "l_max", "parity")}
    radial = {
        "num_bessels": network["num_bessels"],
        "bessel_trainable": network["bessel_trainable"],
        "polynomial_cutoff_p": network["polynomial_cutoff"],
    }
    if plan.model == "nequip":
        own = {
            "_target_": "nequip.model.NequIPGNNModel",
            "num_features": network["num_features"],
            "radial_mlp_depth": network["radial_layers"],
            "radial_mlp_width": network["radial_width"],
            **radial,
        }
    else:
        own = {
            "_target_": "allegro.model.AllegroModel",
            "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", **radial},
            "scalar_embed_mlp_hidden_layers_depth": network["two_body_layers"],
            "scalar_embed_mlp_hidden_layers_width": network["two_body_width"],
            "num_scalar_features": network["num_scalar_features"],
            "num_tensor_features": network["num_tensor_features"],
            "allegro_mlp_hidden_layers_depth": network["latent_layers"],
            "allegro_mlp_hidden_layers_width": network["latent_width"],
            "readout_mlp_hidden_layers_depth": 1,
            "readout_mlp_hidden_layers_width": network["readout_width"],
            "readout_mlp_nonlinearity": None,
        }
    return shared | same_names | own


def _torchmd(plan, report):
    from torchmdnet.scripts.train import main

    network, hyper = plan.network, plan.hyper
    splits = [ase.io.read(f"{plan.folder}/{split}.xyz", ":") for split in ("train", "val")]
    frames, first = sum(splits, []), len(splits[0])
    shift = [sum(plan.energies[z] for z in atoms.numbers) for atoms in frames]
    energies = [atoms.get_potential_energy() for atoms in frames] - np.array(shift)
    arrays = {
        "coord": np.array([atoms.positions for atoms in frames], dtype=np.float32),
        "embed": frames[0].numbers,
        "energy": energies[:, None].astype(np.float32),
        "force": np.array([atoms.get_forces() for atoms in frames], dtype=np.float32),
    }
    for name, array in arrays.items():
        np.save(f"{plan.folder}/{name}.npy", array)
    everything, nothing = np.arange(len(frames)), np.arange(0)
    splits = {"idx_train": everything[:first], "idx_val": everything[first:], "idx_test": nothing}
    np.savez(f"{plan.folder}/splits.npz", **splits)
    share = len(frames[0]) ** -2 if hyper["energy_per_atom"] else 1  # factor of the squared energy error
    arguments = {
        **{f"{name}-files": f"{plan.folder}/{name}.npy" for name in arrays},
        "dataset": "Custom",
        "splits": f"{plan.folder}/splits.npz",
        "inference-batch-size": 10,
        "num-workers": 0,
        "ngpus": 1,
        "log-dir": f"{plan.folder}/torchmd",
        "num-epochs": 1000,
        "seed": plan.seed,
        "batch-size": hyper["batch_size"],
        "lr": hyper["learning_rate"],
        "weight-decay": hyper["weight_decay"],
        "lr-factor": hyper["plateau_factor"],
        "lr-patience": hyper["plateau_patience"],
        "early-stopping-patience": 1000,
        "gradient-clipping": hyper["clip_norm"] or 0.0,
        "y-weight": hyper["energy_weight"] * share,
        "neg-dy-weight": hyper["force_weight"],
        "precision": 32,
        "model": "equivariant-transformer",
        "embedding-dimension": network["embedding_dimension"],
        "num-layers": network["num_layers"],
        "num-heads": network["num_heads"],
        "num-rbf": network["num_rbf"],
        "max-z": network["max_z"],
        "cutoff-upper": network["cutoff"],
        "neighbor-embedding": "true",
        "derivative": "true",
    }
    sys.argv = ["torchmd-train", *[part for k, v in arguments.items() for part in (f"--{k}", str(v))]]
    import torch

    def scaled(model):
        model.std = torch.tensor(plan.scale)
        return model

    _start_from(
        plan,
        report,
        "torchmdnet.module:create_model",
        find=scaled,
        read=lambda given, output: (given[1], output[1]),
    )
    main()


UPSTREAM = {"torchmd_net": _torchmd, "mace": _mace, "nequip": _nequip, "allegro": _nequip, "botnet": _mace}
"""Model -> command of the package that it comes from."""
OPPONENTS = {
    "bench_training": UPSTREAM,
    "bench_training_compiled": {"nequip": _nequip_compiled, "allegro": _nequip_compiled},
    "bench_training_plain": dict.fromkeys([*UPSTREAM, "equiformer"], _plain),
}
"""Kind of record -> model -> what our compiled training is compared with: the package's command, the same
compiled by its package, and our own training in eager mode."""
