"""How does a trained model get into another program? Files in the format of the package of its network.

Their forces equal those of the force field, and so do their energies, to rounding: in single precision the
total energy of a molecule is rounded to some meV.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from egraff_utils import cards, models, paths
from egraff_utils.models import ForceField, frozen
from egraff_utils.models.nequip import nequip_state

FORMATS = {
    "mace": ".model",
    "botnet": ".model",
    "nequip": ".nequip.pt2",
    "allegro": ".nequip.pt2",
    "torchmd_net": ".ckpt",
}
"""Architecture -> ending of its file. ``.model`` is read by ``mace.calculators.MACECalculator`` and by the
converters of mace-torch, ``.nequip.pt2`` is a library for ``NequIPCalculator.from_compiled_model`` or for
LAMMPS, ``.ckpt`` is read by ``torchmdnet.models.model.load_model``."""


def export(force_field: ForceField, path: str | Path, *, target: str = "ase") -> Path:
    """Write a trained force field for the package that its network is from.

    Parameters
    ----------
    force_field
        :class:`~egraff_utils.models.ForceField` of an architecture in :data:`FORMATS`; it is not changed.
    path
        File to write, with the ending of its format.
    target
        Program that a compiled library is for: ``ase``, or in LAMMPS ``pair_nequip`` or ``pair_allegro``.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ValueError
        If the architecture has no package with a format of its own, as Equiformer, the path has another
        ending, or a force field in double precision is to become a library, where the compiled network
        would differ from the eager one by more than its rounding.
    RuntimeError
        If a library is to be compiled and there is no C++ compiler, or it fails.
    """
    name, path = force_field.build_arguments.get("name"), Path(path)
    if name not in FORMATS:
        raise cards.unknown("architecture with a format of its package", name, FORMATS)
    if not path.name.endswith(FORMATS[name]):
        raise ValueError(f"{path.name}: a file of {name} ends in {FORMATS[name]}")
    compiled = FORMATS[name] == ".nequip.pt2"
    if compiled and force_field.dtype != torch.float32:
        raise ValueError(f"libraries of {name} are in single precision; export force_field.float()")
    plain = plain_copy(force_field)
    if compiled:
        compile_nequip(nequip_model(plain), force_field, _example(force_field), target, path)
        return path
    with paths.written(path) as file:
        torch.save(torchmd_checkpoint(plain) if name == "torchmd_net" else mace_model(plain), file)
    return path


def _example(force_field):
    """A cluster of the elements that a force field knows, for a compiler that wants to see some atoms."""
    grid = np.stack(np.meshgrid(*[2.0 * np.arange(3)] * 3), -1).reshape(-1, 3)
    atoms = Atoms(np.resize(force_field.elements, len(grid)), grid, cell=[20, 20, 20], pbc=True)
    atoms.rattle(0.1, seed=0)
    return atoms


def plain_copy(force_field: ForceField) -> ForceField:
    """The force field with the same weights, but without any optimisation for speed."""
    arguments = {**force_field.build_arguments, "dtype": force_field.dtype}
    with torch.random.fork_rng(), frozen.plain():
        plain = models.build(**arguments)
    plain.load_state_dict(force_field.state_dict())
    return plain


def mace_model(plain: ForceField) -> torch.nn.Module:
    """``ScaleShiftMACE`` with the reference energies and the scale of a :func:`plain_copy`."""
    model, elements = plain.network.model.eval(), plain.elements
    energies = model.atomic_energies_fn.atomic_energies
    energies[..., : len(elements)] = plain.reference_energies[elements]
    model.scale_shift.scale.fill_(float(plain.scale))
    return model


def nequip_model(plain: ForceField) -> torch.nn.Module:
    """NequIP's ``GraphModel`` with the reference energies and the scale of a :func:`plain_copy`."""
    model, elements = plain.network.model.eval(), plain.elements
    shift = model.model.func.per_type_energy_scale_shift
    shift.scales = plain.scale.reshape(1, 1).clone()
    shift.shifts = plain.reference_energies[elements].reshape(-1, 1).clone()
    shift.shifts_shortcut = len(elements) == 1
    model.model.do_derivatives = True
    return model


def nequip_transforms(
    model: torch.nn.Module, force_field: ForceField
) -> list[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]]:
    """What turns ``ase.Atoms`` into the input of a :func:`nequip_model`."""
    from nequip.integrations.utils import basic_transforms

    symbols = [chemical_symbols[z] for z in force_field.elements]
    return basic_transforms(model.metadata, force_field.cutoff, symbols, {name: name for name in symbols})


def compile_nequip(
    model: torch.nn.Module, force_field: ForceField, atoms: Atoms, target: str, path: Path
) -> None:
    """Compile a :func:`nequip_model` to a library by inductor, as ``nequip-compile --mode aotinductor`` does.

    ``atoms`` are what the compiler takes as an example; the other arguments are those of :func:`export`.
    """
    import allegro._compile  # noqa: F401, adds the target pair_allegro
    from nequip.integrations.ase import NequIPCalculator
    from nequip.scripts._compile_utils import COMPILE_TARGET_DICT
    from nequip.utils.aot import aot_export_model

    if target not in COMPILE_TARGET_DICT:
        raise cards.unknown("target", target, COMPILE_TARGET_DICT)
    chosen, size = COMPILE_TARGET_DICT[target], torch.export.Dim
    calculator = NequIPCalculator(model, "cpu", transforms=nequip_transforms(model, force_field))
    data = chosen["data_settings"](dict(calculator.atoms_to_data(atoms)))
    sizes = {"graph": size("num_frames", min=2), "node": size("num_nodes", min=2)}
    sizes = chosen["batch_map_settings"](sizes | {"edge": size("num_edges", min=2)})
    with nequip_state():
        options = {"aot_inductor.metadata": _nequip_metadata(model, chosen)}
        fields = chosen["input"], chosen["output"]
        aot_export_model(model, torch.device("cpu"), *fields, data, sizes, str(path), options)


def _nequip_metadata(model, target):
    """What a program has to know of a library, such as cutoff and elements, as texts."""
    from nequip.utils import aoti_metadata
    from nequip.utils.global_state import get_latest_global_state

    found = model.metadata | get_latest_global_state(only_metadata_related=True)
    found = {name: str(int(value) if isinstance(value, bool) else value) for name, value in found.items()}
    for name, fields in (("INPUTS", target["input"]), ("OUTPUTS", target["output"])):
        key = getattr(aoti_metadata, f"NEQUIP_AOTI_{name}_KEY")
        found[key] = aoti_metadata.serialize_aoti_keys(fields)
    return found


def torchmd_checkpoint(plain: ForceField) -> dict[str, Any]:
    """Checkpoint as ``torchmd-train`` would have written it, a dictionary; reference energies are a prior."""
    arguments = plain.build_arguments
    chosen = {**models.card("torchmd_net").network(arguments["preset"]), **arguments}
    hyperparameters = {name: chosen[name] for name in ("num_layers", "embedding_dimension", "num_heads")}
    hyperparameters |= {name: chosen[name] for name in ("num_rbf", "trainable_rbf", "neighbor_embedding")}
    hyperparameters |= {
        "model": "equivariant-transformer",
        "precision": 64 if plain.dtype == torch.float64 else 32,
        "rbf_type": "expnorm",
        "activation": "silu",
        "attn_activation": "silu",
        "distance_influence": "both",
        "vector_cutoff": chosen.get("smooth_cutoff", False),
        "cutoff_lower": 0.0,
        "cutoff_upper": plain.cutoff,
        "max_z": chosen.get("max_z", 100),
        "max_num_neighbors": 64,
        "derivative": False,
        "remove_ref_energy": False,
        "atom_filter": -1,
        "prior_model": [{"Atomref": {"max_z": len(plain.reference_energies)}}],
        "output_model": "Scalar",
        "reduce_op": "sum",
    }
    weights = {f"model.{name}": value for name, value in plain.network.state_dict().items()}
    energies = plain.reference_energies.to(plain.dtype).reshape(-1, 1)
    weights |= {f"model.prior_model.0.{name}": energies for name in ("initial_atomref", "atomref.weight")}
    weights |= {"model.mean": torch.zeros(()), "model.std": plain.scale.clone()}
    return {"hyper_parameters": hyperparameters, "state_dict": weights}
