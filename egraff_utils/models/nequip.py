"""NequIP: messages are equivariant features times a learnt radial weight (package ``nequip``)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import e3nn
import torch
from ase.data import chemical_symbols
from lightning.pytorch.utilities.seed import isolate_rng
from nequip.data import AtomicDataDict
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from torch import Tensor, nn

from egraff_utils.graph import AtomicGraph


class NequIPNetwork(nn.Module):
    """A model of the nequip family that receives our edges and edge vectors instead of positions and a cell.

    Parameters
    ----------
    model
        ``nequip`` graph model built with ``do_derivatives=False``.
    elements
        Atomic numbers, in the order of the model's types.
    """

    types: Tensor

    def __init__(self, model: nn.Module, elements: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        types = torch.full((len(chemical_symbols),), -1)
        types[elements] = torch.arange(len(elements))
        self.register_buffer("types", types, persistent=False)

    def forward(self, graph: AtomicGraph, vectors: Tensor) -> Tensor:
        """Dimensionless energy of each atom, shape ``(N,)``, from edge vectors, shape ``(E, 3)``, Å."""
        data = {
            AtomicDataDict.POSITIONS_KEY: graph.positions.to(vectors.dtype),  # only their number is read
            AtomicDataDict.ATOM_TYPE_KEY: self.types[graph.species],
            AtomicDataDict.EDGE_INDEX_KEY: graph.edge_index,
            AtomicDataDict.EDGE_VECTORS_KEY: vectors,
        }
        return self.model(data)[AtomicDataDict.PER_ATOM_ENERGY_KEY].squeeze(-1).to(vectors.dtype)


def build_network(
    elements: Sequence[int],
    *,
    cutoff: float,
    average_neighbors: float,
    num_layers: int = 6,
    l_max: int = 2,
    num_features: int = 32,
    parity: bool = True,
    num_bessels: int = 8,
    bessel_trainable: bool = True,
    polynomial_cutoff: int = 6,
    radial_layers: int = 3,
    radial_width: int = 64,
) -> NequIPNetwork:
    """The NequIP network (Batzner et al. 2022; EGraFFBench, Table 11), with energy scale 1 and shift 0.

    Parameters
    ----------
    elements
        Sorted atomic numbers.
    cutoff
        Radius of the neighbour list, Å.
    average_neighbors
        Mean number of neighbours of an atom in the training set; it normalises sums over neighbours.
    num_layers, l_max, num_features, parity
        Number of interaction blocks, highest degree, channels of every degree, and whether features of both
        parities are kept.
    num_bessels, bessel_trainable, polynomial_cutoff
        Number of radial Bessel functions, whether they are trained, and the exponent of their envelope.
    radial_layers, radial_width
        Number and width of the hidden layers of the radial network.
    """
    hyperparameters = {
        "num_layers": num_layers,
        "l_max": l_max,
        "parity": parity,
        "num_features": num_features,
        "num_bessels": num_bessels,
        "bessel_trainable": bessel_trainable,
        "polynomial_cutoff_p": polynomial_cutoff,
        "radial_mlp_depth": radial_layers,
        "radial_mlp_width": radial_width,
    }
    common = common_arguments(elements, cutoff, average_neighbors)
    with nequip_state():
        return NequIPNetwork(NequIPGNNModel(**common, **hyperparameters), elements)


def common_arguments(elements: Sequence[int], cutoff: float, average_neighbors: float) -> dict:
    """Arguments that NequIP and Allegro share; the seed of the weights is drawn from torch's generator."""
    return {
        "seed": int(torch.randint(2**31, ())),
        "model_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "type_names": [chemical_symbols[z] for z in elements],
        "r_max": float(cutoff),
        "avg_num_neighbors": float(average_neighbors),
        "per_type_energy_scales": 1.0,
        "per_type_energy_shifts": 0.0,
        "do_derivatives": False,
    }


@contextmanager
def nequip_state() -> Iterator[None]:
    """Context with the global state that nequip's builders require.

    Setting this state seeds every random generator, makes float64 torch's default type and changes
    environment variables, and building a model changes e3nn's code-generation options. All of this is
    restored on leaving.
    """
    dtype, optimization = torch.get_default_dtype(), e3nn.get_optimization_defaults().copy()
    sharing, environment = torch.multiprocessing.get_sharing_strategy(), dict(os.environ)
    try:
        with isolate_rng():
            set_global_state()
            yield
    finally:
        for key in set(os.environ) - set(environment):
            del os.environ[key]
        os.environ.update(environment)
        torch.multiprocessing.set_sharing_strategy(sharing)
        e3nn.set_optimization_defaults(jit_script_fx=optimization["jit_script_fx"])
        e3nn.set_optimization_defaults(jit_mode=optimization["jit_mode"])
        torch.set_default_dtype(dtype)
