"""What would a user of the upstream packages write? Their ASE calculators, with the same weights as ours.

Equiformer has no maintained package. In its place this module does what the script of the paper does
(`equiformer_calc.py` of the released code): the network in e3nn's operators (`benchmarks.plain_equiformer`),
one structure at a time, edges searched anew at every step, and the module as in training, so that the graph
of the forces is kept for a second derivative that is never computed.
"""

import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols

from egraff_utils import models
from egraff_utils.graph import build_graph
from egraff_utils.models import frozen
from egraff_utils.models.nequip import nequip_state


def calculators(force_field, count, *, device="cpu"):
    """ASE calculators of the package that a network comes from, with the weights of a force field.

    Their forces equal those of the force field; their energies may differ by a constant.

    Parameters
    ----------
    force_field
        :class:`~egraff_utils.models.ForceField` of one of the six architectures; it is not changed.
    count
        Number of calculators, one for each replica, so that none overwrites the last result of another.

    Returns
    -------
    list
        ``count`` calculators; those of TorchMD-Net need ``atoms.info["charge"]``.

    Raises
    ------
    ValueError
        If no upstream package is known for the architecture.
    """
    name = force_field.build_arguments.get("name")
    if name not in _MAKERS:
        raise ValueError(f"no upstream calculator is known for {name}; there are {', '.join(_MAKERS)}")
    plain = _plain_copy(force_field)
    make = _MAKERS[name](plain, device)
    return [make() for _ in range(count)]


def _plain_copy(force_field):
    """The force field with the same weights, but without any optimisation for speed."""
    arguments = {**force_field.build_arguments, "dtype": force_field.dtype}
    with torch.random.fork_rng(), frozen.plain():
        plain = models.build(**arguments)
    plain.load_state_dict(force_field.state_dict())
    return plain


def _mace(force_field, device):
    from mace.calculators import MACECalculator

    model, elements = force_field.network.model.eval(), force_field.elements
    energies = model.atomic_energies_fn.atomic_energies
    energies[..., : len(elements)] = force_field.reference_energies[elements].to(energies.dtype)
    model.scale_shift.scale.fill_(float(force_field.scale))
    options = {"device": device, "default_dtype": _dtype_name(force_field)}

    def make():
        with redirect_stdout(StringIO()):
            return MACECalculator(models=[model], **options)

    return make


def compiled_calculators(force_field, count, atoms, path):
    """Calculators of NequIP or Allegro as their package recommends, with the network as a C++ library.

    Unless the library exists, it is compiled by inductor, as `nequip-compile --mode aotinductor --target ase`
    does.

    Parameters
    ----------
    force_field, count
        As in :func:`calculators`; on a CPU.
    atoms
        ``ase.Atoms`` that the compiler uses as an example.
    path
        Path of the library, ``*.nequip.pt2``.

    Raises
    ------
    RuntimeError
        If there is no C++ compiler, or it fails.
    """
    from nequip.integrations.ase import NequIPCalculator
    from nequip.nn.compile import DictInputOutputWrapper
    from nequip.scripts._compile_utils import ASE_TARGET

    (eager,) = calculators(force_field, 1)
    if not Path(path).is_file():
        _compile(eager.model, eager.atoms_to_data(atoms), ASE_TARGET, path)
    library = torch._inductor.aoti_load_package(str(path))
    model = DictInputOutputWrapper(library, ASE_TARGET["input"], ASE_TARGET["output"]).eval()
    return [NequIPCalculator(model, "cpu", transforms=eager.transforms) for _ in range(count)]


def _compile(model, data, target, path):
    from nequip.utils.aot import aot_export_model

    size, data = torch.export.Dim, target["data_settings"](dict(data))
    sizes = {"graph": size("num_frames", min=2), "node": size("num_nodes", min=2)}
    sizes = target["batch_map_settings"](sizes | {"edge": size("num_edges", min=2)})
    with nequip_state():
        aot_export_model(
            model, torch.device("cpu"), target["input"], target["output"], data, sizes, str(path)
        )


def _nequip(force_field, device):
    from nequip.integrations.ase import NequIPCalculator
    from nequip.integrations.utils import basic_transforms

    model, elements = force_field.network.model.eval(), force_field.elements
    shift = model.model.func.per_type_energy_scale_shift
    shift.scales = force_field.scale.reshape(1, 1).clone()
    shift.shifts = force_field.reference_energies[elements].reshape(-1, 1).clone()
    shift.shifts_shortcut = len(elements) == 1
    model.model.do_derivatives = True
    symbols = [chemical_symbols[z] for z in elements]
    same_names = {symbol: symbol for symbol in symbols}
    model.to(device)

    def make():
        transforms = basic_transforms(model.metadata, force_field.cutoff, symbols, same_names)
        return NequIPCalculator(model, device, transforms=transforms)

    return make


def _torchmd_net(force_field, device):
    from torchmdnet.calculators import TMDNETCalculator

    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / "model.ckpt"
    torch.save(_checkpoint(force_field), file)

    def make():
        made = TMDNETCalculator(str(file), device, dtype=force_field.dtype, remove_ref_energy=False)
        made.folder = folder  # keeps the temporary folder as long as the calculator exists
        return made

    return make


def _checkpoint(force_field):
    """Checkpoint as ``torchmd-train`` would have written it, a dictionary."""
    arguments = force_field.build_arguments
    chosen = {**models.card("torchmd_net").network(arguments["preset"]), **arguments}
    hyperparameters = {name: chosen[name] for name in ("num_layers", "embedding_dimension", "num_heads")}
    hyperparameters |= {name: chosen[name] for name in ("num_rbf", "trainable_rbf", "neighbor_embedding")}
    hyperparameters |= {
        "model": "equivariant-transformer",
        "precision": 64 if force_field.dtype == torch.float64 else 32,
        "rbf_type": "expnorm",
        "activation": "silu",
        "attn_activation": "silu",
        "distance_influence": "both",
        "vector_cutoff": chosen.get("smooth_cutoff", False),
        "cutoff_lower": 0.0,
        "cutoff_upper": force_field.cutoff,
        "max_z": chosen.get("max_z", 100),
        "max_num_neighbors": 64,
        "derivative": False,
        "remove_ref_energy": False,
        "atom_filter": -1,
        "prior_model": None,
        "output_model": "Scalar",
        "reduce_op": "sum",
    }
    weights = {f"model.{name}": value for name, value in force_field.network.state_dict().items()}
    weights |= {"model.mean": torch.zeros(()), "model.std": force_field.scale.clone()}
    return {"hyper_parameters": hyperparameters, "state_dict": weights}


class BareCalculator(Calculator):
    """ASE calculator that calls a force field in the way of the paper's script for Equiformer."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, force_field):
        super().__init__()
        self.force_field = force_field.train()

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fill ``results``; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        graph = build_graph(atoms, self.force_field.cutoff, dtype=self.force_field.dtype)
        energy, forces = self.force_field(graph.to(self.force_field.scale.device))
        self.results = {"energy": float(energy.detach()), "forces": forces.detach().cpu().numpy()}


def _equiformer(force_field, device):
    from benchmarks.plain_equiformer import PlainEquiformer

    force_field.network = PlainEquiformer(force_field.network)
    bare = force_field.to(device)
    return lambda: BareCalculator(bare)


def _dtype_name(force_field):
    return str(force_field.dtype).removeprefix("torch.")


_MAKERS = {
    "nequip": _nequip,
    "allegro": _nequip,
    "mace": _mace,
    "botnet": _mace,
    "torchmd_net": _torchmd_net,
    "equiformer": _equiformer,
}
