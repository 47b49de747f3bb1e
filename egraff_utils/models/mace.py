"""MACE: messages of high body order from products of one-particle features (package ``mace-torch``)."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import torch
from ase.data import chemical_symbols
from e3nn import o3
from torch import Tensor, nn

from egraff_utils.graph import AtomicGraph

with redirect_stdout(StringIO()):  # on import, mace prints which accelerators it does not find
    from mace.modules import ScaleShiftMACE, interaction_classes


class MACENetwork(nn.Module):
    """``ScaleShiftMACE`` that receives our edges and edge vectors instead of positions and a cell.

    It computes the vector of an edge as ``positions[j] - positions[i] + shifts``. All positions are set to
    zero and our vectors are passed as the shifts, so that the result is exactly our vector.

    Parameters
    ----------
    model
        ``ScaleShiftMACE`` with zero atomic energies, scale 1 and shift 0.
    elements
        Atomic numbers, in the order that the model uses.
    """

    one_hot: Tensor

    def __init__(self, model: ScaleShiftMACE, elements: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        table = torch.zeros(len(chemical_symbols), len(elements))
        table[elements] = torch.eye(len(elements))
        self.register_buffer("one_hot", table, persistent=False)

    def forward(self, graph: AtomicGraph, vectors: Tensor) -> Tensor:
        """Dimensionless energy of each atom, shape ``(N,)``, from edge vectors, shape ``(E, 3)``, Å."""
        atoms = len(graph.species)
        data = {
            "node_attrs": self.one_hot[graph.species],
            "positions": vectors.new_zeros(atoms, 3),
            "shifts": vectors,
            "edge_index": graph.edge_index,
            "batch": torch.zeros_like(graph.species),  # only energies of atoms are read, so one will do
            "ptr": graph.species.new_tensor([0, atoms]),
            "cell": vectors.new_zeros(3, 3),
        }
        return self.model(data, compute_force=False)["node_energy"].to(vectors.dtype)


def build_network(
    elements: Sequence[int],
    *,
    cutoff: float,
    average_neighbors: float,
    num_interactions: int = 2,
    correlation: int = 3,
    num_channels: int = 16,
    hidden_l_max: int = 2,
    l_max: int = 3,
    num_bessels: int = 8,
    polynomial_cutoff: int = 5,
    readout_width: int = 16,
    radial_layers: int = 3,
    radial_width: int = 64,
) -> MACENetwork:
    """The MACE network (Batatia et al. 2022; EGraFFBench, Table 14), with energy scale 1 and shift 0.

    Parameters
    ----------
    elements
        Sorted atomic numbers.
    cutoff
        Radius of the neighbour list, Å.
    average_neighbors
        Mean number of neighbours of an atom in the training set; it normalises sums over neighbours.
    num_interactions, correlation
        Number of layers, and the correlation order of each (body order minus one).
    num_channels, hidden_l_max
        Channels of every degree, and highest degree, of the hidden features.
    l_max
        Highest degree of the spherical harmonics.
    num_bessels, polynomial_cutoff
        Number of radial Bessel functions and the exponent of their envelope.
    readout_width
        Width of the hidden layer of the last readout.
    radial_layers, radial_width
        Number and width of the hidden layers of the radial network.
    """
    # With a single element at correlation order 1 a `view` in mace fails; a second, unused element avoids it.
    if len(elements) == 1 and correlation == 1:
        elements = [*elements, 2 if elements == [1] else 1]
    irreps = o3.Irreps([(num_channels, (degree, (-1) ** degree)) for degree in range(hidden_l_max + 1)])
    interaction = interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = ScaleShiftMACE(
        r_max=float(cutoff),
        num_bessel=num_bessels,
        num_polynomial_cutoff=polynomial_cutoff,
        max_ell=l_max,
        interaction_cls=interaction,
        interaction_cls_first=interaction,
        num_interactions=num_interactions,
        num_elements=len(elements),
        hidden_irreps=irreps,
        MLP_irreps=o3.Irreps([(readout_width, (0, 1))]),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(len(elements)),
        avg_num_neighbors=float(average_neighbors),
        atomic_numbers=list(elements),
        correlation=correlation,
        radial_MLP=[radial_width] * radial_layers,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    return MACENetwork(model, elements)
