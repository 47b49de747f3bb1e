"""How are the commands of the upstream packages given what our side is given? One function starts each.

The commands are ``mace_run_train``, ``nequip-train``, also of allegro, and ``torchmd-train``.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import yaml
from ase.data import chemical_symbols

from benchmarks.programs import Plan, Report


def mace(plan: Plan, report: Report) -> None:
    """Run ``mace_run_train``."""
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


def nequip_compiled(plan: Plan, report: Report) -> None:
    """Run ``nequip-train`` with the compilation of its package."""
    nequip(plan, report, compile_mode="compile")


def nequip(plan: Plan, report: Report, **options: Any) -> None:
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


def _nequip_model(plan: Plan, names):
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


def torchmd(plan: Plan, report: Report) -> None:
    """Run ``torchmd-train``."""
    from torchmdnet.scripts.train import main

    network, hyper = plan.network, plan.hyper
    parts: Any = [ase.io.read(f"{plan.folder}/{split}.xyz", ":") for split in ("train", "val")]
    frames: list[ase.Atoms] = sum(parts, [])
    first = len(parts[0])
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
    np.savez(f"{plan.folder}/splits.npz", **splits)  # type: ignore[arg-type]  # arrays, by name
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


def _start_from(plan: Plan, report: Report, place, find, read):
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

    done: list[bool] = []

    def once(model, arguments, output):
        if not done:
            done.append(True)
            report([tensor.detach().double().cpu().numpy() for tensor in read(arguments, output)])

    setattr(module, name, built)


UPSTREAM = {"torchmd_net": torchmd, "mace": mace, "nequip": nequip, "allegro": nequip, "botnet": mace}
"""Model -> command of the package that it comes from."""
