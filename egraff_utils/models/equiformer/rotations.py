"""In which frame is a product with the harmonics of an edge sparse? In that of the edge itself."""

import torch
from e3nn.o3 import wigner_3j
from torch import Tensor, nn


class Frames(nn.Module):
    r"""Rotations of features into a frame along each edge, where a product with harmonics is sparse.

    With the edge along the polar axis only :math:`Y_{l m}` with :math:`m = 0` is not zero, so a product
    couples order :math:`m` to :math:`\pm m` alone (Passaro & Zitnick, ICML 2023, arXiv:2302.03655). The angle
    about the edge is arbitrary; energies do not depend on it.

    Rows are ordered by :math:`m = 0, -1, 1, -2, 2, \dots`. Unless ``parity`` is set, two more rows for each
    :math:`m > 0` follow, :math:`(-x_m, x_{-m})`: the pair :math:`(x_{-m}, x_m)` turned by a quarter of a
    period.
    """

    def __init__(self, largest: int, *, parity: bool) -> None:
        super().__init__()
        self.largest, self.parity = largest, parity
        for degree in range(2, largest + 1):
            self.register_buffer(f"raise_{degree}", self._recursion(degree), persistent=False)

    @staticmethod
    def _recursion(degree: int) -> Tensor:
        """Map from products of entries of ``D_1`` and ``D_(degree-1)`` to those of ``D_degree``."""
        symbol = wigner(1, degree - 1, degree)
        rows = symbol[_by_order(1)][:, _by_order(degree - 1)][:, :, _by_order(degree)]
        entries = torch.einsum("abm,xyk->axbymk", rows, symbol) * (2 * degree + 1)
        return entries.reshape(9 * (2 * degree - 1) ** 2, (2 * degree + 1) ** 2)

    def forward(self, directions: Tensor) -> list[Tensor]:
        """Rotation matrices of ``l = 1, 2, ...`` for unit vectors ``(E, 3)``, list of ``(E, 2l+1, 2l+1)``."""
        helper = torch.eye(3, dtype=directions.dtype, device=directions.device)[
            directions.abs().argmin(dim=1)
        ]
        first = torch.nn.functional.normalize(torch.linalg.cross(directions, helper), dim=1)
        second = torch.linalg.cross(first, directions)
        rotations = [torch.stack([directions, first, second], dim=1)]
        for degree in range(2, self.largest + 1):
            products = (rotations[0].flatten(1)[:, :, None] * rotations[-1].flatten(1)[:, None]).flatten(1)
            entries = products @ getattr(self, f"raise_{degree}")
            rotations.append(entries.unflatten(1, (2 * degree + 1, 2 * degree + 1)))
        return rotations

    def extend(self, rotations: list[Tensor]) -> list[Tensor]:
        """The rotations with the turned rows appended."""
        if self.parity:
            return rotations
        return [torch.cat([d, self._turn(d)], dim=1) for d in rotations]

    @staticmethod
    def _turn(d: Tensor) -> Tensor:
        pairs = d[:, 1:].unflatten(1, (-1, 2))
        return torch.stack([-pairs[:, :, 1], pairs[:, :, 0]], dim=2).flatten(1, 2)


def wigner(l1: int, l2: int, l3: int) -> Tensor:
    """Wigner 3j symbols, shape ``(2 l1 + 1, 2 l2 + 1, 2 l3 + 1)``."""
    return wigner_3j(l1, l2, l3, dtype=torch.get_default_dtype())


def _by_order(degree: int) -> list[int]:
    """Positions of m = 0, -1, 1, -2, 2, ... among -l, ..., l.

    >>> _by_order(2)
    [2, 1, 3, 0, 4]
    """
    return [degree, *(degree + sign * m for m in range(1, degree + 1) for sign in (-1, 1))]
