r"""Which way is down? The optimisers are Adam, and Muon for the matrices of a network.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) updates a weight matrix by its momentum
with all singular values set to about one, so that all directions of a layer learn at the same rate. Adam
updates everything else, such as biases, embeddings and the weights of contractions, at the same rate.
"""

from collections.abc import Callable
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from egraff_utils.hyperparameters import TrainingHyperparameters

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
r"""Coefficients of the odd polynomial :math:`a x + b x^3 + c x^5`, whose iteration moves singular values
towards one (Jordan et al.)."""
ITERATIONS = 5
ROOT_MEAN_SQUARE = 0.2
"""Root mean square of the step of a matrix, in learning rates (Liu et al., arXiv:2502.16982)."""
NOT_LINEAR = ("embedding", "logit_weights", "tps.")
"""Parts of the names of two-dimensional weights that are not matrices of a linear layer but rows of a table,
or one number for each channel and path."""


def make(network: nn.Module, hyperparameters: TrainingHyperparameters) -> torch.optim.Optimizer:
    """Optimiser of a training for the parameters of a network.

    Parameters
    ----------
    network
        ``torch.nn.Module``.
    hyperparameters
        :class:`~egraff_utils.hyperparameters.TrainingHyperparameters`.
    """
    hyper = hyperparameters
    options: dict[str, Any] = {
        "lr": hyper.learning_rate,
        "weight_decay": hyper.weight_decay,
        "amsgrad": hyper.amsgrad,
    }
    if hyper.optimizer == "muon":
        optimizer: torch.optim.Adam = Muon(network, momentum=hyper.momentum, **options)
    else:
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        optimizer = kinds[hyper.optimizer](network.parameters(), fused=True, **options)
    # A fused step leaves the versions of the weights as they are, by which caches know that weights changed.
    weights = list(network.parameters())
    optimizer.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(weights))
    return optimizer


def matrices(network: nn.Module) -> dict:
    """Matrices of linear layers among the weights of a network, a dict from a parameter to its blocks.

    A block is a slice of the flattened parameter (``None`` for all of it) and a shape. The weight of an e3nn
    linear layer is a vector with one block per irrep.

    >>> len(matrices(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))))
    1
    """
    found = {}
    for prefix, module in network.named_modules():
        for name, weight in module.named_parameters(prefix, recurse=False):
            if isinstance(module, nn.Embedding) or any(part in name for part in NOT_LINEAR):
                continue
            if isinstance(module, o3.Linear) and weight.ndim == 1 and name.endswith("weight"):
                blocks = [(part.slice_1D, part.shape_2D) for part in module.weight_index_slices]
            else:
                blocks = [(None, weight.shape)] if weight.ndim == 2 else []
            blocks = [(place, tuple(shape)) for place, shape in blocks if min(shape) > 1]
            if blocks:
                found[weight] = blocks
    return found


class Muon(torch.optim.Adam):
    """Orthogonalised momentum for matrices, Adam for everything else.

    Matrices of similar size are padded with zeros, which do not change the result, and treated in one stack;
    treating them one by one takes longer than the network.

    Parameters
    ----------
    network
        ``torch.nn.Module``.
    lr
        Learning rate of both. The step of a matrix has a root mean square of 0.2 learning rates, about that
        of Adam, so that one rate serves both (Liu et al., arXiv:2502.16982).
    momentum
        Decay of the running mean of the gradients, which is used with look-ahead (Nesterov).
    weight_decay, amsgrad
        Options of Adam; matrices shrink by ``lr * weight_decay`` per step.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        blocks = matrices(network)
        others = [p for p in network.parameters() if p not in blocks]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": list(blocks), "momentum": momentum}]
        super().__init__(groups, lr=lr, weight_decay=weight_decay, amsgrad=amsgrad, fused=True)
        self._stacks = _stacks(blocks)

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        groups = self.param_groups
        self.param_groups = groups[:1]
        try:
            super().step()
        finally:
            self.param_groups = groups
        self._move(groups[1])
        return loss

    def _move(self, group):
        weights = group["params"]
        for p in weights:
            if not self.state[p]:
                self.state[p] |= {"momentum": torch.zeros_like(p), "step": torch.zeros(())}  # Adam reads step
        means = {p: self.state[p]["momentum"] for p in weights}
        torch._foreach_lerp_(list(means.values()), [p.grad for p in weights], 1 - group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        for stack in self._stacks:
            stack.move(means, group["momentum"], group["lr"])


class _Stack:
    """Stack of matrices of similar size, with the longer side last."""

    def __init__(self, blocks):
        self.blocks = blocks
        shapes = [shape for *_, shape in blocks]
        sides = zip(*map(sorted, shapes), strict=True)
        like = blocks[0][0].detach()
        self.filled = like.new_zeros(len(blocks), *map(max, sides))
        self.places = [_lying(self.filled[n], shape) for n, shape in enumerate(shapes)]
        self.weights = self._parts({weight: weight.detach() for weight, *_ in blocks})
        scales = [-ROOT_MEAN_SQUARE * max(shape) ** 0.5 for shape in shapes]
        self.scales = like.new_tensor(scales)[:, None, None]

    def move(self, means, momentum, rate):
        """Update the weights along their negative momentum, with look-ahead."""
        torch._foreach_copy_(self.places, self._parts({weight: weight.grad for weight in means}))
        torch._foreach_lerp_(self.places, self._parts(means), momentum)
        torch.mul(orthogonalised(self.filled), self.scales * rate, out=self.filled)
        torch._foreach_add_(self.weights, self.places)

    def _parts(self, tensors):
        return [
            tensors[weight] if part is None else tensors[weight].view(-1)[part].view(shape)
            for weight, part, shape in self.blocks
        ]


def _lying(matrix, shape):
    """The corner of a stacked matrix that holds a matrix of this shape, transposed back if that is tall."""
    rows, columns = sorted(shape)
    corner = matrix[:rows, :columns]
    return corner if tuple(shape) == (rows, columns) else corner.T


def _stacks(blocks):
    """One stack for every pair of side lengths, rounded up to powers of two."""
    by_size = {}
    for weight, parts in blocks.items():
        for part, shape in parts:
            size = tuple((side - 1).bit_length() for side in sorted(shape))
            by_size.setdefault(size, []).append((weight, part, shape))
    return [_Stack(same) for _, same in sorted(by_size.items())]


def orthogonalised(stack: Tensor) -> Tensor:
    """Matrices of a stack, shape ``(B, m, n)`` with m <= n, with singular values moved towards one.

    >>> values = torch.linalg.svdvals(orthogonalised(torch.randn(2, 3, 5)))
    >>> bool((values > 0.6).all() and (values < 1.3).all())
    True
    """
    a, b, c = COEFFICIENTS
    x = stack / (torch.linalg.matrix_norm(stack, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x
