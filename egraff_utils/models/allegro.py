"""Allegro: strictly local, a tensor and a scalar track on every edge (package ``nequip-allegro``)."""

from allegro.model import AllegroModel

from egraff_utils.models.nequip import NequIPNetwork, common_arguments, nequip_state


class AllegroNetwork(NequIPNetwork):
    """An Allegro model, which is called as a model of NequIP is."""


def build_network(
    elements,
    *,
    cutoff,
    average_neighbors,
    num_layers=2,
    l_max=2,
    parity=True,
    num_scalar_features=128,
    num_tensor_features=64,
    two_body_layers=2,
    two_body_width=512,
    latent_layers=2,
    latent_width=1024,
    readout_width=128,
    num_bessels=8,
    bessel_trainable=True,
    polynomial_cutoff=6,
):
    """Allegro (Musaelian et al. 2023; EGraFFBench, Table 12) with an energy of scale 1 and shift 0.

    Parameters
    ----------
    elements
        Sorted atomic numbers.
    cutoff
        Å.
    average_neighbors
        Mean number of neighbours on the training set, which normalises sums over neighbours.
    num_layers, l_max, parity
        Allegro layers, highest degree, whether tensors of both parities.
    num_scalar_features, num_tensor_features
        Channels of the scalar and of the tensor track ("env embed multiplicity").
    two_body_layers, two_body_width
        Hidden layers of the network on the two-body embedding and their width.
    latent_layers, latent_width
        Hidden layers of the scalar network of each layer and their width.
    readout_width
        Width of the one hidden layer of the edge energy, which is linear throughout.
    num_bessels, bessel_trainable, polynomial_cutoff
        Radial basis and the exponent of its envelope.
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
