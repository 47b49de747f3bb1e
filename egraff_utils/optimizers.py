r"""Which way is down? Adam, and Muon for the matrices of a network.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) moves a weight matrix along its momentum
with all singular values set to about one, so that every direction of a layer learns at one rate. Adam moves
everything else, such as biases, embeddings and the weights of contractions, at the same rate.
"""

import torch
from e3nn import o3
from torch import nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
r"""Of the odd polynomial :math:`a x + b x^3 + c x^5`, whose iteration moves singular values towards one
(Jordan et al.)."""
ITERATIONS = 5
ROOT_MEAN_SQUARE = 0.2
"""Of the step of a matrix, in learning rates."""
NOT_LINEAR = ("embedding", "logit_weights", "tps.")
"""Parts of names of weights with two dimensions that are no matrices of a linear layer: they are rows of a
table, or one number for each channel and path."""


def make(network, hyperparameters):
    """The optimiser of a training, with the network's parameters.

    Parameters
    ----------
    network
        ``torch.nn.Module``.
    hyperparameters
        :class:`~egraff_utils.cards.TrainingHyperparameters`.
    """
    hyper = hyperparameters
    options = {"lr": hyper.learning_rate, "weight_decay": hyper.weight_decay, "amsgrad": hyper.amsgrad}
    if hyper.optimizer == "muon":
        return Muon(network, momentum=hyper.momentum, **options)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[hyper.optimizer](network.parameters(), fused=True, **options)


def matrices(network):
    """Matrices of linear layers among a network's weights: a dict from a parameter to its blocks.

    A block is a slice of the flattened parameter, ``None`` for all of it, and a shape. The weight of one of
    e3nn's linear layers is a vector with a block for each irrep.

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

    Matrices are taken together in stacks of similar size, filled up by zeros, which change nothing: one by
    one they take longer than the network.

    Parameters
    ----------
    network
        ``torch.nn.Module``.
    lr
        Learning rate of both. A step of a matrix has a root mean square of 0.2 learning rates, which is about
        that of Adam, so that one rate serves both (Liu et al., arXiv:2502.16982).
    momentum
        Decay of the mean of the gradients, of which the look-ahead (Nesterov) is taken.
    weight_decay, amsgrad
        Of Adam; matrices shrink by ``lr * weight_decay`` a step.
    """

    def __init__(self, network, *, lr, momentum=0.95, weight_decay=0.0, amsgrad=False):
        blocks = matrices(network)
        others = [p for p in network.parameters() if p not in blocks]
        groups = [{"params": others}, {"params": list(blocks), "momentum": momentum}]
        super().__init__(groups, lr=lr, weight_decay=weight_decay, amsgrad=amsgrad, fused=True)
        self._stacks = _stacks(blocks)

    @torch.no_grad()
    def step(self, closure=None):
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
    """Matrices of similar size, with the longer side last."""

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
        """Move the weights against their gradients' means, with a look ahead."""
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
    """The corner of a matrix of a stack that holds one of a shape, turned back if that stands upright."""
    rows, columns = sorted(shape)
    corner = matrix[:rows, :columns]
    return corner if tuple(shape) == (rows, columns) else corner.T


def _stacks(blocks):
    """One stack for each size of the sides, in powers of two."""
    by_size = {}
    for weight, parts in blocks.items():
        for part, shape in parts:
            size = tuple((side - 1).bit_length() for side in sorted(shape))
            by_size.setdefault(size, []).append((weight, part, shape))
    return [_Stack(same) for _, same in sorted(by_size.items())]


def orthogonalised(stack):
    """Matrices of a stack, shape ``(B, m, n)`` with m up to n, with their singular values moved towards one.

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
