"""BOTNet as the paper ran it: MACE at correlation order 1, with five layers (package ``mace-torch``)."""

from collections.abc import Sequence
from typing import Any

from egraff_utils.models import mace


def build_network(
    elements: Sequence[int], *, num_interactions: int = 5, **hyperparameters: Any
) -> mace.MACENetwork:
    """The BOTNet network (Batatia et al. 2022; EGraFFBench, Table 13), MACE at correlation order 1.

    The other parameters are those of :func:`egraff_utils.models.mace.build_network`.
    """
    fixed = {"num_interactions": num_interactions, "correlation": 1}
    return mace.build_network(elements, **fixed, **hyperparameters)
