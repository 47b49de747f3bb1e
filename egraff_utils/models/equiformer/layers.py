"""Which layers act on an atom or an edge alone? Linear maps, normalisation, activations, radial functions."""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class Linear(nn.Module):
    """Linear layer for each degree (Section 4.1); only scalars have a bias; weights have variance 1/fan-in.

    With ``scaled``, each input channel has one more weight, that of a depth-wise product whose weights do not
    depend on the distance.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        *,
        bias: bool = True,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        pairs = list(zip(in_channels, out_channels, strict=False))
        self.weights = nn.ParameterList([torch.randn(i, o) / i**0.5 for i, o in pairs])
        self.scales = nn.ParameterList([torch.randn(i, 1) for i, _ in pairs] if scaled else [])
        self.bias = nn.Parameter(torch.zeros(out_channels[0])) if bias else None

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        weights = list(self.weights)
        if len(self.scales):
            weights = [w * s for w, s in zip(weights, self.scales, strict=True)]
        y = [feature @ w for feature, w in zip(x, weights, strict=False)]
        if self.bias is not None:
            y[0] = y[0] + self.bias
        return y


class EquivariantLayerNorm(nn.Module):
    """Layer normalisation (Section 4.1): each degree is divided by its root mean square."""

    def __init__(self, channels: Sequence[int], epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weights = nn.ParameterList([torch.ones(n) for n in channels])
        self.bias = nn.Parameter(torch.zeros(channels[0]))

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        centred = [x[0] - x[0].mean(dim=-1, keepdim=True), *x[1:]]
        y = [self._normalise(t) * w for t, w in zip(centred, self.weights, strict=False)]
        return [y[0] + self.bias, *y[1:]]

    def _normalise(self, t: Tensor) -> Tensor:
        return t * (t.square().mean(dim=(1, 2), keepdim=True) + self.epsilon).rsqrt()


class UnitVariance(nn.Module):
    """Activation scaled to a mean square of one for standard normal input.

    >>> round(UnitVariance(torch.nn.functional.silu).gain, 3)
    1.677
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.gain = function, _gain(function)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) * self.gain


@cache
def _gain(function: Callable[[Tensor], Tensor]) -> float:
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2)
    return float((density.sum() / (density * function(z) ** 2).sum()) ** 0.5)


def smooth_leaky_relu(x: Tensor, slope: float = 0.2) -> Tensor:
    """Leaky ReLU without a kink, used on attention logits (Section 4.2)."""
    return (1 + slope) / 2 * x + (1 - slope) / 2 * x * (2 * torch.sigmoid(x) - 1)


class Gate(nn.Module):
    """Gate activation (Section 4.1): SiLU for scalars, a sigmoid of a scalar for each other channel."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(channels)
        self.in_channels = (sum(channels), *channels[1:])
        self.scalar, self.gate = UnitVariance(silu), UnitVariance(torch.sigmoid)

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        scalars, gates = x[0].split([self.sizes[0], sum(self.sizes[1:])], dim=-1)
        gates = self.gate(gates).split(self.sizes[1:], dim=-1)
        return [self.scalar(scalars), *(t * g for t, g in zip(x[1:], gates, strict=False))]


class RadialFunction(nn.Sequential):
    """Multilayer perceptron from the radial basis to weights of tensor products (Section 4.3).

    Because of its biases, above all the last one, the weights do not vanish at the cutoff.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        layers = []
        for before, after in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.SiLU()]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1]))
        for layer in layers[::3]:
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def hidden(self, basis: Tensor) -> Tensor:
        """Activations before the last layer, shape ``(E, hidden)``."""
        for layer in list(self)[:-1]:
            basis = layer(basis)
        return basis


class ExponentialNormalBasis(nn.Module):
    r"""Radial basis :math:`\phi(r) e^{-\beta (e^{-5r/r_c} - \mu_k)^2}` of PhysNet, with a cosine envelope.

    The centres are evenly spaced between :math:`e^{-r_c}` and one.
    """

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        start = math.exp(-cutoff)
        self.cutoff = cutoff
        self.beta = (2 / size * (1 - start)) ** -2
        self.register_buffer("centres", torch.linspace(start, 1, size), persistent=False)

    def envelope(self, distances: Tensor) -> Tensor:
        """Cosine envelope, zero with zero slope at the cutoff; same shape as ``distances``, Å."""
        return 0.5 * (torch.cos(distances * (math.pi / self.cutoff)) + 1) * (distances < self.cutoff)

    def forward(self, distances: Tensor) -> Tensor:
        """Basis functions, shape ``(E, K)``, of distances ``(E,)``, Å."""
        r = distances[:, None]
        closeness = torch.exp(-5 / self.cutoff * r)
        return self.envelope(r) * torch.exp(-self.beta * (closeness - self.centres) ** 2)
