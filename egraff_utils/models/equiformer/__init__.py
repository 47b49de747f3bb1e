r"""Equiformer (Liao & Smidt, ICLR 2023, arXiv:2206.11990), written for periodic graphs.

Irreps features are lists of tensors. Entry ``l`` holds ``C_l`` channels of degree :math:`l`, with shape
``(N, 2l+1, C_l)`` on nodes and ``(E, 2l+1, C_l)`` on edges. Where the text and the authors' code differ, this
package follows their model for MD17 (``graph_attention_transformer_nonlinear_exp_l2``), down to the number of
its parameters. Section numbers are those of the paper.
"""

from collections.abc import Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn
from torch.nn.functional import silu

from egraff_utils.graph import AtomicGraph
from egraff_utils.models.equiformer.blocks import Block, EdgeDegreeEmbedding
from egraff_utils.models.equiformer.layers import (
    EquivariantLayerNorm,
    ExponentialNormalBasis,
    Linear,
    UnitVariance,
)
from egraff_utils.models.equiformer.products import tensor_product_paths
from egraff_utils.models.equiformer.rotations import Frames

AVERAGE_ATOMS = 18.03065905448718  # mean number of atoms of a QM9 molecule; the authors use it for MD17 too


def build_network(
    elements: Sequence[int],
    *,
    cutoff: float,
    average_neighbors: float,
    channels: Sequence[int] = (128, 64, 32),
    head_channels: Sequence[int] = (32, 16, 8),
    feed_forward_channels: Sequence[int] = (384, 192, 96),
    features: int = 512,
    blocks: int = 6,
    heads: int = 4,
    radial_basis: int = 32,
    radial_hidden: Sequence[int] = (64, 64),
    atom_types: int = 64,
    parity: bool = False,
    smooth_cutoff: bool = False,
) -> "Equiformer":
    """The Equiformer network (EGraFFBench, Table 15), one dimensionless energy per atom.

    Parameters
    ----------
    elements
        Atomic numbers.
    cutoff
        Radius of the neighbour list, Å.
    average_neighbors
        Mean number of neighbours of an atom; the edge-degree embedding is divided by its square root.
    channels
        Channels of the node features at l = 0, 1, ... (Table 15: embedding dimension).
    head_channels
        Channels of one attention head at l = 0, 1, ...
    feed_forward_channels
        Channels inside the feed-forward network at l = 0, 1, ...
    features
        Channels of the output feature, which is scalar.
    blocks
        Number of transformer blocks.
    heads
        Number of attention heads.
    radial_basis
        Number of exponential-normal radial basis functions.
    radial_hidden
        Widths of the hidden layers of every radial function.
    atom_types
        Number of rows of the embedding table, one for each atomic number below it; 64 as released.
    parity
        Whether only products that respect reflections are kept, which makes the energy invariant under O(3).
        As released (``False``), all features count as even and the energy changes under reflection.
    smooth_cutoff
        Whether attention weights and the edge-degree embedding vanish smoothly at the cutoff. As released
        (``False``), the energy jumps when a neighbour crosses the cutoff.

    Raises
    ------
    ValueError
        If an atomic number has no row in the embedding table, or the lists of channels differ in length.
    """
    if max(elements) >= atom_types:
        symbol = chemical_symbols[max(elements)]
        raise ValueError(f"{symbol} has no row in the embedding; pass atom_types={max(elements) + 1} or more")
    if not len(channels) == len(head_channels) == len(feed_forward_channels):
        raise ValueError(
            f"{channels=}, {head_channels=} and {feed_forward_channels=} differ in largest degree"
        )
    frames = Frames(len(channels) - 1, parity=parity)
    paths = tensor_product_paths(len(channels) - 1, parity=parity)
    radial = (radial_basis, *radial_hidden)
    sizes = [channels] * blocks + [(features,)]
    layers = [
        Block(channels, out, paths, head_channels, feed_forward_channels, heads, radial) for out in sizes[1:]
    ]
    embedding = EdgeDegreeEmbedding(channels, paths, radial, average_neighbors)
    basis = ExponentialNormalBasis(radial_basis, cutoff)
    return Equiformer(frames, basis, embedding, layers, atom_types=atom_types, smooth_cutoff=smooth_cutoff)


class Equiformer(nn.Module):
    """The whole network (Section 4.3, Figure 1): embeddings, transformer blocks, scalar head."""

    def __init__(
        self,
        frames: Frames,
        basis: ExponentialNormalBasis,
        degree_embedding: EdgeDegreeEmbedding,
        blocks: Sequence[Block],
        *,
        atom_types: int,
        smooth_cutoff: bool,
    ) -> None:
        super().__init__()
        self.frames, self.basis, self.degree_embedding = frames, basis, degree_embedding
        self.blocks = nn.ModuleList(blocks)
        self.smooth_cutoff = smooth_cutoff
        features = blocks[-1].out_channels[0]
        self.atom_embedding = nn.Parameter(torch.randn(atom_types, degree_embedding.channels[0]))
        self.atom_bias = nn.Parameter(torch.zeros(degree_embedding.channels[0]))
        self.norm = EquivariantLayerNorm((features,))
        self.head = nn.ModuleList([Linear((features,), (features,)), Linear((features,), (1,))])
        self.activation = UnitVariance(silu)

    def forward(self, graph: AtomicGraph, vectors: Tensor) -> Tensor:
        """Energy of each atom, shape ``(N,)``, dimensionless, from edge vectors ``(E, 3)``, Å."""
        distances = vectors.norm(dim=1)
        rotations = self.frames(vectors / distances[:, None])
        geometry = (
            graph.edge_index,
            (rotations, self.frames.extend(rotations)),
            self.basis(distances),
            self.basis.envelope(distances)[:, None] if self.smooth_cutoff else None,
        )
        scalars = (self.atom_embedding[graph.species] + self.atom_bias)[:, None]
        first, *rest = self.degree_embedding(len(scalars), *geometry)
        x = [scalars + first, *rest]
        for block in self.blocks:
            x = block(x, *geometry)
        x = self.head[0](self.norm(x))
        (energy,) = self.head[1]([self.activation(x[0])])
        return energy[:, 0, 0] / AVERAGE_ATOMS**0.5
