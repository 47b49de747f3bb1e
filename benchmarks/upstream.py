"""What would a user of the upstream packages write? Their ASE calculators, with the same weights as ours.

Equiformer has no maintained package. In its place this module does what the script of the paper does
(`equiformer_calc.py` of the released code): the network in e3nn's operators (`benchmarks.plain_equiformer`),
one structure at a time, edges searched anew at every step, and the module as in training, so that the graph
of the forces is kept for a second derivative that is never computed.
"""

import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from egraff_utils import export
from egraff_utils.graph import build_graph
from egraff_utils.models import ForceField


def calculators(force_field: ForceField, count: int, *, device: str = "cpu") -> list[Calculator]:
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
    plain = export.plain_copy(force_field)
    make = _MAKERS[name](plain, device)
    return [make() for _ in range(count)]


def _mace(force_field, device):
    from mace.calculators import MACECalculator

    model = export.mace_model(force_field)
    options = {"device": device, "default_dtype": _dtype_name(force_field)}

    def make():
        with redirect_stdout(StringIO()):
            return MACECalculator(models=[model], **options)

    return make


def compiled_calculators(force_field: ForceField, count: int, atoms: Atoms, path: Path) -> list[Calculator]:
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

    if not Path(path).is_file():
        model = export.nequip_model(export.plain_copy(force_field))
        export.compile_nequip(model, force_field, atoms, "ase", path)
    return [
        NequIPCalculator.from_compiled_model(path, chemical_species_to_atom_type_map=True)
        for _ in range(count)
    ]


def _nequip(force_field, device):
    from nequip.integrations.ase import NequIPCalculator

    model = export.nequip_model(force_field).to(device)
    transforms = export.nequip_transforms(model, force_field)
    return lambda: NequIPCalculator(model, device, transforms=transforms)


def _torchmd_net(force_field, device):
    from torchmdnet.calculators import TMDNETCalculator

    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / "model.ckpt"
    torch.save(export.torchmd_checkpoint(force_field), file)

    def make():
        made = TMDNETCalculator(str(file), device, dtype=force_field.dtype, remove_ref_energy=False)
        made.folder = folder  # keeps the temporary folder as long as the calculator exists
        return made

    return make


class BareCalculator(Calculator):
    """ASE calculator that calls a force field in the way of the paper's script for Equiformer."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, force_field: ForceField) -> None:
        super().__init__()
        self.force_field = force_field.train()

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``; called by ASE."""
        assert atoms is not None  # ASE gives them
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
