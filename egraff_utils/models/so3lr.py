"""SO3LR: a universal potential for organic molecules, with its weights (package ``so3krates-torch``)."""

from collections.abc import Sequence
from copy import copy
from importlib import resources
from pathlib import Path
from pkgutil import resolve_name

import torch
from torch import Tensor, nn

from egraff_utils.graph import AtomicGraph

SHORT_RANGE, DAMPING = 4.5, 2.0  # Å, of the network, and the damping of the dispersion at its cutoff
ELEMENTS = 118
PACKAGES = ("so3krates_torch.", "torch.nn.modules.")


class SO3LRNetwork(nn.Module):
    """``SO3LR`` that receives our edges and edge vectors, as :class:`~egraff_utils.models.mace.MACENetwork`.

    Charges and dispersion act between all pairs of the graph; the network itself sees those closer than
    4.5 Å. Molecules are neutral and have no unpaired electrons.

    Parameters
    ----------
    model
        ``SO3LR`` of the package.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, graph: AtomicGraph, vectors: Tensor) -> Tensor:
        """Energy of each atom, shape ``(N,)``, eV, from edge vectors, shape ``(E, 3)``, Å."""
        atoms = torch.bincount(graph.structure, minlength=graph.num_structures)
        near = torch.linalg.vector_norm(vectors, dim=1) < SHORT_RANGE
        none = vectors.new_zeros(graph.num_structures)
        data = {
            "atomic_numbers": graph.species,
            "node_attrs": nn.functional.one_hot(graph.species - 1, ELEMENTS).to(vectors.dtype),
            "positions": vectors.new_zeros(len(graph.species), 3),
            "edge_index": graph.edge_index[:, near],
            "shifts": vectors[near],
            "edge_index_lr": graph.edge_index,
            "shifts_lr": vectors,
            "batch": graph.structure,
            "ptr": nn.functional.pad(atoms.cumsum(0), (1, 0)),
            "cell": vectors.new_zeros(3 * graph.num_structures, 3),
            "head": torch.zeros_like(atoms),
            "total_charge": none,
            "total_spin": none,
        }
        model = copy(self.model)  # it keeps tensors of its last structure, which cannot be copied
        return model(data, compute_force=False)["node_energy"].view(-1)


def build_network(elements: Sequence[int], *, cutoff: float, average_neighbors: float) -> SO3LRNetwork:
    """The published SO3LR (Kabylda et al. 2025) with its published weights.

    Parameters
    ----------
    elements
        Not used: it knows all that its card lists.
    cutoff
        Radius within which charges and dispersion act, Å; the authors' is 12.
    average_neighbors
        Not used: it has its own.
    """
    file = resources.files("so3krates_torch.pretrained.so3lr").joinpath("so3lr.model")
    with resources.as_file(file) as path:
        model = load_network(path)
    model.r_max_lr, model.dispersion_energy_cutoff_lr_damping = float(cutoff), DAMPING  # type: ignore[assignment]
    return SO3LRNetwork(model)


def load_network(path: Path) -> nn.Module:
    """A network that was saved whole, of which nothing but networks is unpickled.

    Raises
    ------
    ValueError
        If the file names anything but subclasses of ``torch.nn.Module`` in torch or ``so3krates_torch``.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    found = [resolve_name(name) if name.startswith(PACKAGES) else None for name in names]
    for name, kind in zip(names, found, strict=True):
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ValueError(f"{path} names {name}, which is no network, and is not loaded; install it anew")
    with torch.serialization.safe_globals(found):  # type: ignore[arg-type]  # none is None
        return torch.load(path, map_location="cpu", weights_only=True)
