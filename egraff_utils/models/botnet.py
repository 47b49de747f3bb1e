"""BOTNet as the paper ran it: MACE at correlation order 1, with five layers (package ``mace-torch``)."""

from egraff_utils.models import mace


def build_network(elements, *, num_interactions=5, **hyperparameters):
    """BOTNet (Batatia et al. 2022; EGraFFBench, Table 13): :func:`egraff_utils.models.mace.build_network`
    at correlation order 1, whose other parameters it shares.
    """
    fixed = {"num_interactions": num_interactions, "correlation": 1}
    return mace.build_network(elements, **fixed, **hyperparameters)
