"""What takes a force field's time? Tensor products, written for matrix multiplication.

The upstream packages build every path of a tensor product from outer products of features. Here the products
of an edge with all paths out of one kind of features are one small matrix, which multiplies all channels at
once, and channels stand last, so that memory is read in order. The results are the same up to rounding, in
the forward pass, its derivative and the derivative of that.

Symbols: N atoms, E edges, P paths, U channels, K components of all paths together.
"""

import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import groupby

import torch
from e3nn import o3
from torch import nn
from torch.autograd.function import once_differentiable

_plain = ContextVar("plain", default=False)
_threads = ContextVar("threads", default=None)


@contextmanager
def plain():
    """Networks built in this ``with`` block evaluate tensor products as the upstream packages do."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def is_plain():
    """Whether a network built now is to be plain."""
    return _plain.get()


def replace(module, kind, make):
    """Put ``make(part)`` in the place of every part of a class, unless the network is to be plain."""
    for name, part in module.named_children():
        if not isinstance(part, kind):
            replace(part, kind, make)
        elif not is_plain():
            setattr(module, name, make(part))


class Kept:
    """Something made of the weights of modules, kept from call to call while these are frozen.

    A copy keeps nothing.
    """

    def __init__(self, *modules):
        self._modules, self._owners = modules, None
        self._state = self._made = None

    def __reduce__(self):
        return Kept, self._modules

    @property
    def weights(self):
        """All parameters, a list; modules are searched once, which takes longer than a small layer."""
        if self._owners is None:
            parts = [part for module in self._modules for part in module.modules()]
            self._owners = [part._parameters for part in parts if part._parameters]
        return [weight for owner in self._owners for weight in owner.values() if weight is not None]

    def are_frozen(self):
        """Whether no parameter wants a gradient."""
        return not any(weight.requires_grad for weight in self.weights)

    def get(self, make):
        """``make()``, or what it gave when it was last called with the same frozen weights."""
        weights = self.weights
        if any(weight.requires_grad for weight in weights):
            return make()
        state = [(weight.data_ptr(), weight._version) for weight in weights]
        if state != self._state:
            self._state, self._made = state, make()
        return self._made


def share_directions(module):
    """Let a module that reads lengths of edges alone be evaluated on one direction of every pair.

    The second half of the edges is the first reversed (:class:`~egraff_utils.graph.AtomicGraph`), so of E
    rows the first E/2 go in, and what comes out is repeated.
    """
    module.register_forward_pre_hook(_first_half)
    module.register_forward_hook(_for_both)


def _first_half(module, arguments):
    (rows,) = arguments
    return rows[: len(rows) // 2]


def _for_both(module, arguments, rows):
    return torch.cat([rows, rows])


@contextmanager
def one_thread():
    """Operators in this ``with`` block use one thread: arrays stay in the cache of one core.

    With two, each waits for what the other wrote, and a thread that has nothing to do keeps its core busy for
    milliseconds, which :func:`in_threads` needs.
    """
    before = torch.get_num_threads()
    token = _threads.set(_threads.get() or before)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _threads.reset(token)


def threads():
    """How many threads torch has, outside :func:`one_thread`."""
    return _threads.get() or torch.get_num_threads()


def in_threads(function, calls):
    """Results of ``function(*arguments)`` for every call, each in a thread and with one thread of torch.

    The function is compiled by TorchScript, so that its operators do not wait for the interpreter. No
    derivative is recorded.
    """
    compiled = _compiled(function)

    def call(arguments):
        with one_thread(), torch.no_grad():
            return compiled(*arguments)

    with one_thread():
        others = [_pool().submit(call, arguments) for arguments in calls[1:]]
        return [call(calls[0]), *(other.result() for other in others)]


@cache
def _compiled(function):
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of what might replace it, nothing frees the interpreter
        return torch.jit.script(function)


@cache
def _pool():
    return ThreadPoolExecutor(os.cpu_count())


class Matrix:
    """A constant matrix, called with rows to be multiplied by it, in one part or several side by side.

    Large ones on a processor are kept in the order in which oneDNN reads them, which saves a copy in each
    product, both in the forward pass and in its derivative. The product can be differentiated once.
    """

    LEAST = 128
    """Rows and columns from which the order pays."""

    def __init__(self, matrix):
        kind = (matrix.dtype, matrix.device.type)
        wide = min(matrix.shape) >= self.LEAST and kind == (torch.float32, "cpu")
        self.packed = self.matrix = None
        if wide and hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available():
            self.packed = [_packed(matrix.T), _packed(matrix)]
        else:
            self.matrix = matrix.contiguous()

    def __call__(self, *parts):
        if self.packed is not None:
            x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
            return _Times.apply(x, *self.packed)
        (x, matrix), *others = zip(parts, self.matrix.split([part.shape[1] for part in parts]), strict=True)
        total = x @ matrix
        for x, matrix in others:
            total = total.addmm_(x, matrix)
        return total


def _packed(matrix):
    """For products with rows times the transpose of a matrix."""
    return torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous())


def _times(x, matrix):
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), matrix, None, "none", [], "")


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, matrix, transposed):
        ctx.transposed = transposed
        return _times(x, matrix)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return _times(gradient, ctx.transposed), None, None


class Radial(torch.autograd.Function):
    r"""Functions :math:`c\, u(r / r_c) \sin(k_n r) / r`, shape ``(E, n)``, of edge vectors, ``(E, 3)``.

    The envelope is :math:`u(x) = 1 - (p+1)(p+2) x^p / 2 + p (p+2) x^{p+1} - p (p+1) x^{p+2} / 2` below one.
    """

    @staticmethod
    def forward(ctx, vectors, roots, prefactor, cutoff, p):
        """``roots``: the n numbers k, 1/Å; ``prefactor``, ``cutoff``, ``p``: c, the cutoff in Å, p."""
        lengths = vectors.norm(dim=1, keepdim=True)
        x = (lengths / cutoff).clamp(max=1)  # at one the envelope and its slope are zero
        power = x.pow(p - 1)
        bracket = (p + 1) * (p + 2) / 2 + x * (x * (p * (p + 1) / 2) - p * (p + 2))
        envelope = 1 - x * power * bracket
        slope = power * (x - 1).square() * (-p * (p + 1) * (p + 2) / (2 * cutoff))
        scale, angles = prefactor / lengths, lengths * roots
        sines, factor = angles.sin(), envelope * scale
        by_length = (angles.cos() * (roots * factor)).addcmul_(sines, slope * scale - factor / lengths)
        ctx.save_for_backward(by_length, vectors / lengths)
        return sines * factor

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        by_length, directions = ctx.saved_tensors
        return (gradient * by_length).sum(1, keepdim=True) * directions, *[None] * 4


class Convolution(nn.Module):
    r"""Sum over neighbours of weighted tensor products of their features with an edge's harmonics.

    .. math:: m_{i,p,u,k} = \sum_{j} w_{ij,p,u} \sum_{ab} C^p_{abk}\, x_{j,u,a}\, Y_{ij,b}

    Parameters
    ----------
    product
        ``e3nn.o3.TensorProduct`` with unshared weights, the same number U of channels in every part of its
        first argument, one in the second, and instructions of the kind ``uvu`` with an output each.

    Raises
    ------
    ValueError
        If it is another kind of product.
    """

    def __init__(self, product):
        super().__init__()
        self._buffers.update(product._buffers)  # not used: the state dict stays the upstream package's
        self._modules.update(product._modules)
        self.instructions = instructions = product.instructions
        self.irreps_in1, self.irreps_in2 = product.irreps_in1, product.irreps_in2
        self.irreps_out = product.irreps_out
        channels = {part.mul for part in product.irreps_in1}
        if len(channels) > 1 or any(i.connection_mode != "uvu" for i in instructions):
            raise ValueError(f"{product} is no product of one number of channels with an edge's harmonics")
        outputs = [product.irreps_out[i.i_out].ir.l for i in instructions]
        order = sorted(range(len(instructions)), key=lambda p: (instructions[p].i_in1, outputs[p]))
        heights = [2 * outputs[p] + 1 for p in order]
        inputs = [instructions[p].i_in1 for p in order]
        self.channels, self.order, self.heights = product.irreps_in1[0].mul, order, heights
        self.sizes = [part.dim for part in product.irreps_in1]
        self.groups = [
            [
                (len(list(same)), k)
                for k, same in groupby(k for k, i in zip(heights, inputs, strict=True) if i == n)
            ]
            for n in range(len(self.sizes))
        ]
        self.widths = [sum(paths * k for paths, k in groups) for groups in self.groups]
        self.places = sorted(range(len(order)), key=lambda n: instructions[order[n]].i_out)
        coupling = torch.cat([path_coupling(product, instructions[p]) for p in order], dim=1)
        self.register_buffer("coupling", coupling.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x, harmonics, weights, edges):
        """Messages, shape ``(N, K * U)``, in the layout of the product's output.

        Parameters
        ----------
        x
            Features of the atoms, in the layout of the product's first argument.
        harmonics
            Of the edges, shape ``(E, (l_max + 1)^2)``.
        weights
            Of the edges, shape ``(E, P * U)``.
        edges
            Neighbour and centre of each, two of shape ``(E,)``.
        """
        neighbour, centre = edges
        messages = torch.cat(list(self._messages(x, harmonics, weights, neighbour)), dim=1)
        total = messages.new_zeros(len(x), messages.shape[1]).index_add(0, centre, messages)
        paths = total.split([k * self.channels for k in self.heights], dim=1)
        parts = [paths[n].view(len(x), self.heights[n], self.channels).transpose(1, 2) for n in self.places]
        return torch.cat([part.reshape(len(x), -1) for part in parts], dim=1)

    def _messages(self, x, harmonics, weights, neighbour):
        """Of every edge, ``(E, paths * k * U)`` for the paths of one input and one number k of components."""
        u, dims = self.channels, [size // self.channels for size in self.sizes]
        couplings = (harmonics @ self.coupling).split(
            [k * d for k, d in zip(self.widths, dims, strict=True)], 1
        )
        columns = weights.split(u, dim=1)
        ordered = torch.cat([columns[p] for p in self.order], dim=1)
        weights = iter(ordered.split([paths * u for groups in self.groups for paths, _ in groups], dim=1))
        for part, coupling, d, groups in zip(
            x.split(self.sizes, 1), couplings, dims, self.groups, strict=True
        ):
            if not groups:
                continue
            near = part.view(-1, u, d).transpose(1, 2).contiguous().index_select(0, neighbour)
            products = torch.bmm(coupling.unflatten(1, (-1, d)), near)
            for product, (paths, k) in zip(
                products.split([p * k for p, k in groups], 1), groups, strict=True
            ):
                weighted = product.view(-1, paths, k, u) * next(weights).view(-1, paths, 1, u)
                yield weighted.flatten(1)


def path_coupling(product, instruction, dtype=None):
    """Coefficients of a path, shape ``((l_max + 1)^2, k * a)``: harmonics times them are matrices."""
    harmonics, i = product.irreps_in2, instruction
    x, y, out = (product.irreps_in1[i.i_in1].ir, harmonics[i.i_in2].ir, product.irreps_out[i.i_out].ir)
    coefficients = o3.wigner_3j(x.l, y.l, out.l, dtype=dtype).permute(1, 2, 0) * i.path_weight
    block = coefficients.new_zeros(harmonics.dim, out.dim * x.dim)
    block[harmonics.slices()[i.i_in2]] = coefficients.reshape(y.dim, -1)
    return block


class Coupling:
    r"""The sum of :class:`Convolution` with one multiply-add of long rows for each coefficient.

    Channels stand last, and before them the components of all kinds of features, or of messages: of a kind
    ``(2l + 1, paths)``. Harmonics and filters are those of one direction of P pairs of atoms; the other has
    the same filters, and harmonics of odd degree with the opposite sign. The sum can be differentiated once.

    Parameters
    ----------
    product
        :class:`Convolution`, or what it takes.
    like
        A tensor of the type and on the device of the features.
    """

    CACHE = 2**18
    """Bytes of a component of the messages of a block of pairs: what was just made is then at hand."""

    def __init__(self, product, like):
        inputs, harmonics, outputs = product.irreps_in1, product.irreps_in2, product.irreps_out
        kinds, starts = [ir for _, ir in outputs], [s.start // inputs[0].mul for s in inputs.slices()]
        signs = [(-1.0) ** ir.l for _, ir in harmonics for _ in range(ir.dim)][1:]
        self.signs = torch.stack([like.new_ones(len(signs)), like.new_tensor(signs)], dim=1).unsqueeze(2)
        self.scales, self.terms, factors = [], [], {}
        self.size = width = sum(ir.dim for _, ir in inputs)
        for path, i in enumerate(product.instructions):
            x, y, out = inputs[i.i_in1].ir, harmonics[i.i_in2].ir, kinds[i.i_out]
            coefficients = o3.wigner_3j(x.l, y.l, out.l, dtype=torch.float64)
            self.scales.append(coefficients.flatten()[coefficients.abs().argmax()].item())
            coefficients = coefficients / self.scales[-1]
            self.scales[-1] *= i.path_weight
            for k in range(out.dim):
                place = kinds.index(out), k, i.i_out
                if y.l == 0:
                    factors[place] = starts[i.i_in1] + k, path
                    continue
                for a, b in coefficients[:, :, k].nonzero().tolist():
                    value = round(coefficients[a, b, k].item(), 14)
                    y_place = harmonics.slices()[i.i_in2].start + b - 1
                    self.terms.append((self.size, starts[i.i_in1] + a, y_place, value))
                factors[place] = self.size, path
                self.size += 1
        self.products = self.size - width
        """Of features with harmonics: sums of terms (place, feature, harmonic, coefficient)."""
        self.factors = [factors[place] for place in sorted(factors)]
        """Of each message: a feature or, behind these, a product, and the path of its filter."""

    def __call__(self, x, harmonics, filters, pairs):
        """Sums of messages, shape ``(N, components, U)``.

        Parameters
        ----------
        x
            Features of the atoms, shape ``(N, components, U)``.
        harmonics
            From degree one on, shape ``(P, (l_max + 1)^2 - 1)``; that of degree zero is one.
        filters
            Shape ``(P, paths, U)``, times the ``scales`` of the paths.
        pairs
            Centre and neighbour, shape ``(2, P)``, in the direction of the harmonics.
        """
        return _Messages.apply(x, harmonics, filters, pairs, self)

    def blocks(self, x, harmonics, filters, pairs):
        """:class:`_Block` after block; on a GPU one."""
        count, size = pairs.shape[1], self.CACHE // (2 * x.shape[2] * x.element_size())
        if x.device.type == "cpu" and count > size:
            count = math.ceil(count / round(count / max(size, 1)))
        x = x.transpose(0, 1).contiguous()
        for start in range(0, pairs.shape[1], max(count, 1)):
            yield _Block(self, slice(start, start + count), x, harmonics, filters, pairs)


class _Block:
    """What the messages of B pairs, in both directions, are products of: arrays of shape ``(2, B, U)``."""

    def __init__(self, coupling, part, x, harmonics, filters, pairs):
        self.part, pairs = part, pairs[:, part]
        self.centre, self.neighbour = pairs.flatten(), pairs.flip(0).flatten()
        self.harmonics = (harmonics[part].T.unsqueeze(1) * coupling.signs).unsqueeze(3).unbind()
        self.filters = filters[part].transpose(0, 1).contiguous().unbind()
        near = _gather(x, self.neighbour)
        terms = [(n, near[i], self.harmonics[j], value) for n, i, j, value in coupling.terms]
        self.factors = _add([*near, *[None] * coupling.products], terms)


def _gather(x, index):
    """Arrays ``(2, B, U)`` of components of atoms, shape ``(components, N, U)``, by an index ``(2B,)``."""
    rows = torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=x.device).unsqueeze(1) + index
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(len(x), 2, -1, x.shape[2]).unbind()


class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, harmonics, filters, pairs, coupling):
        ctx.coupling = coupling
        ctx.save_for_backward(x, harmonics, filters, pairs)
        total = x.new_zeros(len(x), len(coupling.factors), x.shape[2])
        for block in coupling.blocks(x, harmonics, filters, pairs):
            messages = x.new_empty(2, len(block.centre) // 2, *total.shape[1:])
            for out, (n, p) in zip(messages.unbind(2), coupling.factors, strict=True):
                torch.mul(block.factors[n], block.filters[p], out=out)
            total.index_add_(0, block.centre, messages.flatten(0, 1))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, harmonics, filters, pairs = ctx.saved_tensors
        coupling, width, of_atoms = ctx.coupling, x.shape[1], ctx.needs_input_grad[0]
        gradient = gradient.transpose(0, 1).contiguous()
        of_x, of_harmonics, of_filters = (torch.zeros_like(t) for t in (x, harmonics, filters))
        for block in coupling.blocks(x, harmonics, filters, pairs):
            factors, ws, ys = block.factors, block.filters, block.harmonics
            messages = [
                (g, n, p) for g, (n, p) in zip(_gather(gradient, block.centre), coupling.factors, strict=True)
            ]
            of_ws = [(p, g[way], factors[n][way], 1) for g, n, p in messages for way in (0, 1)]
            torch.stack(_add([None] * len(ws), of_ws), dim=1, out=of_filters[block.part])
            of_factors = [(n, g, ws[p], 1) for g, n, p in messages if of_atoms or n >= width]
            of_factors = _add([None] * coupling.size, of_factors)
            of_ys = [(j, of_factors[n], factors[i], value) for n, i, j, value in coupling.terms]
            of_ys = _full(_add([None] * len(ys), of_ys), factors[0])
            if ys:
                of_ys = torch.stack([of_y.sum(2) for of_y in of_ys])
                of_harmonics[block.part] = (of_ys * coupling.signs).sum(1).T
            if of_atoms:
                _add(of_factors, [(i, of_factors[n], ys[j], value) for n, i, j, value in coupling.terms])
                rows = torch.stack(_full(of_factors[:width], factors[0]), dim=2)
                of_x.index_add_(0, block.neighbour, rows.flatten(0, 1))
        return of_x, of_harmonics, of_filters, None, None


def _add(totals, terms):
    """Add products to a list of sums: a term is a place in it, two factors and a coefficient."""
    for place, a, b, value in terms:
        if totals[place] is None:
            totals[place] = a * (b if value == 1 else b * value)
        else:
            totals[place].addcmul_(a, b, value=value)
    return totals


def _full(totals, like):
    """Zeros in the place of empty sums."""
    return [torch.zeros_like(like) if total is None else total for total in totals]
