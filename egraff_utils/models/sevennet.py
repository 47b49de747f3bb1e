"""SevenNet: universal potentials for materials, with their weights (package ``sevenn``)."""

from collections.abc import Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from egraff_utils import cards
from egraff_utils.graph import AtomicGraph
from egraff_utils.models import default_dtype

REPLACED = ("onehot_idx_to_onehot", "reduce_total_enegy", "force_output")
"""Modules of the package that are left out: the embedding, which is float32 at any precision of the weights,
and those after the energies of atoms."""


class SevenNetwork(nn.Module):
    """SevenNet that receives our edges and edge vectors, as :class:`~egraff_utils.models.mace.MACENetwork`.

    Parameters
    ----------
    model
        ``AtomGraphSequential`` of the package.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({k: m for k, m in model.named_children() if k not in REPLACED})
        kinds = torch.full((len(chemical_symbols),), -1)
        for number, kind in model.type_map.items():
            kinds[number] = kind
        self.num_kinds = int(kinds.max()) + 1
        self.register_buffer("kinds", kinds, persistent=False)

    def forward(self, graph: AtomicGraph, vectors: Tensor) -> Tensor:
        """Energy of each atom, shape ``(N,)``, eV, from edge vectors, shape ``(E, 3)``, Å."""
        kinds = self.kinds[graph.species]
        one_hot = nn.functional.one_hot(kinds, self.num_kinds).to(vectors.dtype)
        data = {
            "x": one_hot,
            "node_attr": one_hot,
            "atom_type": kinds,
            "edge_index": graph.edge_index,
            "edge_vec": vectors,
        }
        for layer in self.layers.values():
            data = layer(data)
        return data["atomic_energy"].view(-1)


def build_network(elements: Sequence[int], *, cutoff: float, average_neighbors: float) -> SevenNetwork:
    """SevenNet-0 of 11 July 2024 (Park et al. 2024) with its published weights.

    Parameters
    ----------
    elements
        Not used: it knows all that its card lists.
    cutoff
        Its radius, 5 Å, which is part of its weights.
    average_neighbors
        Not used: it has its own.

    Raises
    ------
    ValueError
        If the cutoff is another, or the weights in the package are not those of the card ``sevennet_0``.
    """
    from sevenn.util import load_checkpoint

    cards.model("sevennet_0").check_weights()  # the package unpickles them
    with default_dtype(torch.float32):  # the package builds no other; the caller converts it
        model = load_checkpoint("7net-0").build_model()
    if cutoff != model.cutoff:
        raise ValueError(f"SevenNet-0 was trained with a cutoff of {model.cutoff} Å, not {cutoff} Å")
    return SevenNetwork(model)
