"""Allegro: strictly local, with a scalar and a tensor track on every edge (package ``nequip-allegro``)."""

from collections.abc import Sequence

from allegro.model import AllegroModel

from egraff_utils.models.nequip import NequIPNetwork, common_arguments, nequip_state


class AllegroNetwork(NequIPNetwork):
    """An Allegro model, which is called in the same way as a NequIP model."""


def build_network(
    elements: Sequence[int],
    *,
    cutoff: float,
    average_neighbors: float,
    num_layers: int = 2,
    l_max: int = 2,
    parity: bool = True,
    num_scalar_features: int = 128,
    num_tensor_features: int = 64,
    two_body_layers: int = 2,
    two_body_width: int = 512,
    latent_layers: int = 2,
    latent_width: int = 1024,
    readout_width: int = 128,
    num_bessels: int = 8,
    bessel_trainable: bool = True,
    polynomial_cutoff: int = 6,
) -> AllegroNetwork:
    """The Allegro network (Musaelian et al. 2023; EGraFFBench, Table 12), with energy scale 1 and shift 0.

    Parameters
    ----------
    elements
        Sorted atomic numbers.
    cutoff
        Radius of the neighbour list, Å.
    average_neighbors
        Mean number of neighbours of an atom in the training set; it normalises sums over neighbours.
    num_layers, l_max, parity
        Number of Allegro layers, highest degree, and whether tensors of both parities are kept.
    num_scalar_features, num_tensor_features
        Channels of the scalar track and of the tensor track ("env embed multiplicity").
    two_body_layers, two_body_width
        Number and width of the hidden layers of the network on the two-body embedding.
    latent_layers, latent_width
        Number and width of the hidden layers of each layer's scalar network.
    readout_width
        Width of the single hidden layer of the readout of edge energies, which has no non-linearity.
    num_bessels, bessel_trainable, polynomial_cutoff
        Number of radial Bessel functions, whether they are trained, and the exponent of their envelope.
    """
    hyperparameters = {
        "num_layers": num_layers,
        "l_max": l_max,
        "parity": parity,
        "radial_chemical_embed": {
            "_target_": "allegro.nn.TwoBodyBesselScalarEmbed",
            "num_bessels": num_bessels,
            "bessel_trainable": bessel_trainable,
            "polynomial_cutoff_p": polynomial_cutoff,
        },
        "scalar_embed_mlp_hidden_layers_depth": two_body_layers,
        "scalar_embed_mlp_hidden_layers_width": two_body_width,
        "num_scalar_features": num_scalar_features,
        "num_tensor_features": num_tensor_features,
        "allegro_mlp_hidden_layers_depth": latent_layers,
        "allegro_mlp_hidden_layers_width": latent_width,
        "readout_mlp_hidden_layers_depth": 1,
        "readout_mlp_hidden_layers_width": readout_width,
        "readout_mlp_nonlinearity": None,
    }
    common = common_arguments(elements, cutoff, average_neighbors)
    with nequip_state():
        return AllegroNetwork(AllegroModel(**common, **hyperparameters), elements)
