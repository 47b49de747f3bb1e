"""BOTNet as the paper ran it: MACE at correlation order 1, with five layers (package ``mace-torch``)."""

from egraff_utils.models import mace


def build_network(
    elements,
    *,
    cutoff,
    average_neighbors,
    num_interactions=5,
    num_channels=16,
    hidden_l_max=2,
    l_max=3,
    num_bessels=8,
    polynomial_cutoff=5,
    readout_width=16,
    radial_layers=3,
    radial_width=64,
):
    """BOTNet (Batatia et al. 2022; EGraFFBench, Table 13): :func:`egraff_utils.models.mace.build_network`
    at correlation order 1, whose other parameters it shares.
    """
    return mace.build_network(
        elements,
        cutoff=cutoff,
        average_neighbors=average_neighbors,
        num_interactions=num_interactions,
        correlation=1,
        num_channels=num_channels,
        hidden_l_max=hidden_l_max,
        l_max=l_max,
        num_bessels=num_bessels,
        polynomial_cutoff=polynomial_cutoff,
        readout_width=readout_width,
        radial_layers=radial_layers,
        radial_width=radial_width,
    )
