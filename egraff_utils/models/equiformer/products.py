"""How do features and harmonics couple? The depth-wise product of the paper, in the frames of the edges."""

from collections.abc import Sequence
from itertools import accumulate, product

import torch
from torch import Tensor, nn

from egraff_utils.models.equiformer.layers import Linear, RadialFunction
from egraff_utils.models.equiformer.rotations import wigner

Degrees = tuple[int, int, int]
"""Degrees (l1, l2, l3) of a path: of a feature, of harmonics, and of their product."""
Map = tuple[Tensor, Tensor, Tensor]
"""Matrix of a linear layer, and weight and bias of the path weights, of one part of a product."""


def tensor_product_paths(largest: int, *, parity: bool) -> list[Degrees]:
    """Paths (l1, l2, l3) from a feature of degree l1 and harmonics of degree l2 to degree l3.

    >>> tensor_product_paths(1, parity=True)
    [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
    """
    return [
        (l1, l2, l3)
        for l1, l2, l3 in product(range(largest + 1), repeat=3)
        if abs(l1 - l2) <= l3 <= l1 + l2 and not (parity and (l1 + l2 + l3) % 2)
    ]


class Part(nn.Module):
    """The part of order ``±m`` and output degree ``l3`` of a depth-wise product: its places in the weights.

    Even paths, from ``m`` to ``m``, come before odd paths, from ``-m`` to ``m``; each are sorted by ``l1``.
    """

    def __init__(self, channels: Sequence[int], paths: Sequence[Degrees], degree: int, order: int) -> None:
        super().__init__()
        into = [k for k, path in enumerate(paths) if path[2] == degree]
        coupled = [k for k in into if paths[k][0] >= order and (order or not _is_odd(paths[k]))]
        chosen = sorted(coupled, key=lambda k: _is_odd(paths[k]))
        columns = [0, *accumulate(channels[l1] for l1, _, _ in paths)]
        rows = dict(zip(into, accumulate((channels[paths[k][0]] for k in into), initial=0), strict=False))
        places = [0] * order + [0, *accumulate(channels[order:])]
        self.sources = [(paths[k][0], _is_odd(paths[k])) for k in chosen]
        self.widths = [channels[l1] for l1, _ in self.sources]
        self.even = sum(width for width, (_, odd) in zip(self.widths, self.sources, strict=True) if not odd)
        self._register("column", [columns[k] for k in chosen])
        self._register("row", [rows[k] for k in chosen])
        self._register("place", [places[l1] for l1, _ in self.sources])
        factors = torch.tensor([_factor(*paths[k], order) for k in chosen])
        factors = factors.repeat_interleave(torch.tensor(self.widths))[:, None]
        self.register_buffer("factor", factors, persistent=False)

    def _register(self, name: str, starts: Sequence[int]) -> None:
        """Register the indices of all channels of the paths, shape ``(K,)``, as a buffer."""
        index = [torch.arange(width) + start for width, start in zip(self.widths, starts, strict=True)]
        self.register_buffer(name, torch.cat(index), persistent=False)


def _is_odd(path: Degrees) -> bool:
    return sum(path) % 2 == 1


def _factor(l1: int, l2: int, l3: int, order: int) -> float:
    """Matrix element of a path in an edge's frame, from ``m`` (even) or ``-m`` (odd path) to ``m``."""
    source = -order if _is_odd((l1, l2, l3)) else order
    return float(wigner(l1, l2, l3)[l1 + source, l2, l3 + order]) * ((2 * l3 + 1) * (2 * l2 + 1)) ** 0.5


class DepthwiseProduct(nn.Module):
    r"""Depth-wise product with harmonics (Section 4.1) in the frames of the edges, then a linear layer.

    A path :math:`(l_1, l_2, l_3)` couples degree :math:`l_1` of a feature with
    :math:`Y_{l_2}(\hat r)` to degree :math:`l_3` by :math:`\sqrt{2 l_3 + 1}` times the Wigner 3j symbol.
    Channels do not mix, and every path has its own weights. The channels of degree ``l3`` that enter the
    linear layer are those of all paths into ``l3``, in the order of the paths.

    Features by order are lists. Entry ``m`` has shape ``(E, 1, C)`` for ``m = 0``, else ``(E, 2, C)``, with
    ``-m`` before ``m``; its channels are those of all degrees ``l >= m``, concatenated.
    """

    def __init__(self, channels: Sequence[int], paths: Sequence[Degrees]) -> None:
        super().__init__()
        degrees = range(len(channels))
        self.channels = channels
        self.path_channels = [channels[l1] for l1, _, _ in paths]
        self.out_channels = [sum(channels[l1] for l1, _, l3 in paths if l3 == degree) for degree in degrees]
        self.parts = nn.ModuleList(
            nn.ModuleList(Part(channels, paths, l3, m) for l3 in degrees[m:]) for m in degrees
        )

    def message_maps(self, linear: Linear, radial: RadialFunction, largest: int) -> list[list[Map]]:
        """Matrix of the linear layer, and weight and bias of the path weights, of every part needed."""
        last = radial[-1]
        return [
            [  # type: ignore[var-annotated]  # to torch, what a list of modules holds is any module
                (linear.weights[l3][p.row] * p.factor, last.weight[p.column], last.bias[p.column])
                for l3, p in enumerate(parts, m)  # type: ignore[arg-type]
            ]
            for m, parts in enumerate(self.parts[: largest + 1])
        ]

    def value_maps(self, linear: Linear, largest: int) -> list[Tensor]:
        """One matrix per order for product and linear layer together, as no weight depends on the edge."""
        return [self._value_map(linear, m, largest) for m in range(largest + 1)]

    def _value_map(self, linear: Linear, m: int, largest: int) -> Tensor:
        evens, odds = [], []
        for l3, part in enumerate(self.parts[m][: largest + 1 - m], m):
            weights = (linear.weights[l3] * linear.scales[l3])[part.row] * part.factor
            zero = weights.new_zeros(sum(self.channels[m:]), weights.shape[1])
            evens.append(zero.index_add(0, part.place[: part.even], weights[: part.even]))
            odds.append(zero.index_add(0, part.place[part.even :], weights[part.even :]))
        even, odd = torch.cat(evens, dim=1), torch.cat(odds, dim=1)
        if m == 0:
            return even
        return torch.cat([torch.cat([even, odd], dim=1), torch.cat([-odd, even], dim=1)])

    def forward(
        self, x: Sequence[Tensor], rotations: Sequence[Tensor], hidden: Tensor, maps: Sequence[Sequence[Map]]
    ) -> list[list[Tensor]]:
        """Product by order, each entry a list of degrees, of ``x`` on edges with :meth:`message_maps`."""
        rows = self._rotate(x, rotations)
        return [
            [self._couple(rows, m, part, hidden, *map_) for part, map_ in zip(parts, some, strict=True)]  # type: ignore[call-overload]
            for m, (parts, some) in enumerate(zip(self.parts, maps, strict=False))
        ]

    @staticmethod
    def _couple(
        rows: dict[tuple[int, int, bool], Tensor],
        m: int,
        part: Part,
        hidden: Tensor,
        matrix: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        features = torch.cat([rows[degree, m, odd] for degree, odd in part.sources], dim=-1)
        weighted = features * nn.functional.linear(hidden, weight, bias)[:, None]
        return (weighted.flatten(0, 1) @ matrix).unflatten(0, weighted.shape[:2])

    @staticmethod
    def _rotate(x: Sequence[Tensor], rotations: Sequence[Tensor]) -> dict[tuple[int, int, bool], Tensor]:
        """Rows of the rotated features by (degree, order, whether the row is turned)."""
        rows = {(0, 0, False): x[0]}
        for degree, (feature, d) in enumerate(zip(x[1:], rotations, strict=True), 1):
            orders = range(1, degree + 1)
            keys = [(degree, 0, False), *((degree, m, odd) for odd in (False, True) for m in orders)]
            sizes = [1] + [2] * (d.shape[1] // 2)
            rows |= zip(keys, (d @ feature).split(sizes, dim=1), strict=False)
        return rows
