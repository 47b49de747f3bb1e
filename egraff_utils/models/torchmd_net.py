"""TorchMD-NET's equivariant transformer: attention on scalars and vectors (package ``torchmd-net``)."""

import os
from contextlib import contextmanager, redirect_stdout
from io import StringIO

import torch
from torch import Tensor, nn

from egraff_utils.graph import AtomicGraph


@contextmanager
def _silence():
    """Context that discards standard output and standard error, including what compiled code writes to it."""
    error, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        os.dup2(error, 2)
        os.close(error)
        os.close(null)


with _silence():  # the package imports warp for its neighbour search, and warp describes the machine
    from torchmdnet.models.output_modules import EquivariantScalar
    from torchmdnet.models.torchmd_et import TorchMD_ET


class EquivariantTransformer(nn.Module):
    """``TorchMD_ET`` and its scalar output, with our periodic edges in place of its neighbour search.

    The forward pass of the package runs its own neighbour search, which misses periodic images in small cells
    and mistakes an edge from an atom to its own image for the self loop. This class calls the blocks in the
    same order with our edges, and appends self loops of length zero.

    Parameters
    ----------
    representation, output
        The two parts of the network; the second maps scalar and vector features to an energy per atom.
    elements
        Atomic numbers that the model covers.
    """

    def __init__(
        self, representation: TorchMD_ET, output: EquivariantScalar, elements: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.elements, self.representation_model, self.output_model = list(elements), representation, output

    def forward(self, graph: AtomicGraph, vectors: Tensor) -> Tensor:
        """Dimensionless energy of each atom, shape ``(N,)``, from edge vectors, shape ``(E, 3)``, Å."""
        x, vector_features = self.features(graph, vectors)
        x = self.representation_model.out_norm(x)
        return self.output_model.pre_reduce(x, vector_features, graph.species, None, None).squeeze(-1)

    def features(self, graph: AtomicGraph, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the atoms: scalars, shape ``(N, U)``, and vectors, shape ``(N, 3, U)``."""
        model = self.representation_model
        lengths = vectors.norm(dim=1)
        x = self.embed(graph, lengths, model.distance_expansion(lengths))
        loops = torch.arange(len(x), device=x.device).expand(2, -1)
        edges = torch.cat([graph.edge_index.flip(0), loops], dim=1)  # the package puts the neighbour first
        lengths = torch.cat([lengths, lengths.new_zeros(len(x))])
        directions = torch.cat([vectors / lengths[: len(vectors), None], vectors.new_zeros(len(x), 3)])
        radial = model.distance_expansion(lengths)
        vector_features = x.new_zeros(len(x), 3, x.shape[1])
        for layer in model.attention_layers:
            dx, dv = layer(x, vector_features, edges, lengths, radial, directions)
            x, vector_features = x + dx, vector_features + dv
        return x, vector_features

    def embed(self, graph: AtomicGraph, lengths: Tensor, radial: Tensor) -> Tensor:
        """Initial features of atoms, from their elements and those of their neighbours, shape ``(N, U)``."""
        model, neighbors = self.representation_model, self.representation_model.neighbor_embedding
        x = model.embedding(graph.species)
        if neighbors is None:
            return x
        filters = neighbors.distance_proj(radial) * neighbors.cutoff(lengths)[:, None]
        centre, neighbour = graph.edge_index
        messages = filters * neighbors.embedding(graph.species)[neighbour]
        around = torch.zeros_like(x).index_add(0, centre, messages)
        return neighbors.combine(torch.cat([x, around], dim=1))


def build_network(
    elements: tuple[int, ...],
    *,
    cutoff: float,
    average_neighbors: float,
    num_layers: int = 6,
    embedding_dimension: int = 128,
    num_heads: int = 8,
    num_rbf: int = 32,
    trainable_rbf: bool = False,
    neighbor_embedding: bool = True,
    max_z: int = 100,
    smooth_cutoff: bool = False,
) -> EquivariantTransformer:
    """The equivariant transformer network (Thölke and De Fabritiis 2022; EGraFFBench, Table 16).

    Parameters
    ----------
    elements
        Sorted atomic numbers, below ``max_z``.
    cutoff
        Radius of the neighbour list, Å.
    average_neighbors
        Not used: this architecture does not normalise its sums over neighbours.
    num_layers, embedding_dimension, num_heads
        Number of attention layers, width of the features, number of attention heads.
    num_rbf, trainable_rbf
        Number of exponential-normal radial functions, and whether they are trained.
    neighbor_embedding
        Whether the initial features depend on the elements of the neighbours.
    max_z
        Number of rows of the table of element embeddings.
    smooth_cutoff
        Whether the envelope multiplies vector messages too. As published it multiplies only the scalar
        messages, so that, once biases are trained, the energy jumps where a neighbour crosses the cutoff.

    Raises
    ------
    ValueError
        If an atomic number is not below ``max_z``.
    """
    if max(elements) >= max_z:
        raise ValueError(f"max_z must be above the atomic number {max(elements)}, but {max_z=}")
    dtype = torch.get_default_dtype()
    representation = TorchMD_ET(
        hidden_channels=embedding_dimension,
        num_layers=num_layers,
        num_heads=num_heads,
        num_rbf=num_rbf,
        rbf_type="expnorm",
        trainable_rbf=trainable_rbf,
        activation="silu",
        attn_activation="silu",
        neighbor_embedding=neighbor_embedding,
        distance_influence="both",
        cutoff_lower=0.0,
        cutoff_upper=float(cutoff),
        max_z=max_z,
        vector_cutoff=smooth_cutoff,
        dtype=dtype,
    )
    output = EquivariantScalar(embedding_dimension, activation="silu", dtype=dtype)
    return EquivariantTransformer(representation, output, elements)
