"""What takes a force field's time? Tensor products, written for matrix multiplication.

The upstream packages build every path of a tensor product from outer products of features. Here the products
of an edge with all paths out of one kind of features are one small matrix, which multiplies all channels at
once, and channels stand last, so that memory is read in order. The results are the same up to rounding, in
the forward pass, its derivative and the derivative of that.

Symbols: N atoms, E edges, P paths, U channels, K components of all paths together.
"""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import groupby
from typing import NamedTuple

import torch
from e3nn import o3
from torch import nn
from torch.nn.functional import silu

_plain = ContextVar("plain", default=False)
_threads = ContextVar("threads", default=None)

silu_backward = torch.ops.aten.silu_backward


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

    def get(self, make):
        """``make()``, or what it gave for the same weights when last called; None if they can change."""
        state = [(weight.requires_grad, weight.data_ptr(), weight._version) for weight in self.weights]
        if state != self._state:
            if any(wants for wants, *_ in state):
                return None
            with torch.no_grad():
                self._state, self._made = state, make()
        return self._made


class Frozen:
    """A network with the weights that it has now, which finds energies together with their gradient."""

    def __call__(self, graph, vectors):
        """Energy of each atom, shape ``(N,)``, and the gradient of their sum, shape ``(E / 2, 3)``.

        ``vectors`` are those of :meth:`~egraff_utils.graph.AtomicGraph.pair_vectors`. To be called in
        inference mode.
        """
        raise NotImplementedError

    def has_threads(self, graph):
        """Whether the work on a graph is shared out among threads here, not by the operators of torch."""
        return False


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

    The function is compiled by TorchScript, so that its operators do not wait for the interpreter. It runs in
    inference mode: no derivative is recorded, and its results are for no derivative to be recorded of.
    """
    code = _compiled(function)

    def call(arguments):
        with one_thread(), torch.inference_mode():
            return code(*arguments)

    with one_thread():
        others = [_pool().submit(call, arguments) for arguments in calls[1:]]
        return [call(calls[0]), *(other.result() for other in others)]


def compiled(function, device):
    """The function as TorchScript, whose operators do not wait for the interpreter; they keep their threads.

    On a GPU the compiler would fuse operators: there it is the function as it is.
    """
    return _compiled(function) if device.type == "cpu" else function


@cache
def _compiled(function):
    with warnings.catch_warnings():  # of what is to replace TorchScript, nothing frees the interpreter
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)


@cache
def _pool():
    return ThreadPoolExecutor(os.cpu_count())


LEAST = 128
"""Rows and columns of a matrix from which the order of oneDNN pays."""


def both(matrix):
    """A constant matrix and its transpose, as :func:`times` takes them, a list.

    Large ones on a processor are kept in the order in which oneDNN reads them, which saves a copy in each
    product.
    """
    kind = (matrix.dtype, matrix.device.type)
    wide = min(matrix.shape) >= LEAST and kind == (torch.float32, "cpu")
    if wide and hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available():
        return [_packed(matrix.T), _packed(matrix)]
    return [matrix.contiguous(), matrix.T]


def _packed(matrix):
    """For products with rows times the transpose of a matrix."""
    return torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous())


def times(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Rows times a matrix, in torch's order or in that of oneDNN."""
    if matrix.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), matrix, None, "none", [], "")
    return x @ matrix


class RadialBasis(NamedTuple):
    r"""Functions :math:`c\, u(r / r_c) \sin(k_n r) / r` of a length r.

    The envelope is :math:`u(x) = 1 - (p+1)(p+2) x^p / 2 + p (p+2) x^{p+1} - p (p+1) x^{p+2} / 2` below one.
    """

    roots: torch.Tensor
    """The B numbers k, 1/Å."""
    prefactor: float
    """c."""
    cutoff: float
    """Å."""
    p: float


def polar(
    vectors: torch.Tensor, basis: RadialBasis
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Radial functions of vectors and, for :func:`on_vectors`, their derivatives, directions and lengths."""
    lengths, p = torch.linalg.vector_norm(vectors, dim=[1], keepdim=True), basis.p
    x = (lengths / basis.cutoff).clamp(max=1)  # at one the envelope and its slope are zero
    power = x.pow(p - 1)
    bracket = (p + 1) * (p + 2) / 2 + x * (x * (p * (p + 1) / 2) - p * (p + 2))
    envelope = 1 - x * power * bracket
    slope = power * (x - 1).square() * (-p * (p + 1) * (p + 2) / (2 * basis.cutoff))
    scale, angles = basis.prefactor / lengths, lengths * basis.roots
    sines, factor = angles.sin(), envelope * scale
    by_length = (angles.cos() * (basis.roots * factor)).addcmul_(sines, slope * scale - factor / lengths)
    return sines * factor, by_length, vectors / lengths, lengths


def on_vectors(
    on_values: torch.Tensor,
    on_directions: torch.Tensor,
    by_length: torch.Tensor,
    directions: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """Gradient of vectors from those of radial functions and directions, and from what :func:`polar` gave."""
    across = on_directions / lengths
    along = (on_values * by_length).sum(1, keepdim=True) - (across * directions).sum(1, keepdim=True)
    return across.addcmul_(along, directions)


def couplings(harmonics, like):
    """Matrices that make the harmonics of a degree of those of the one below and of the first degree.

    Parameters
    ----------
    harmonics
        ``e3nn.o3.SphericalHarmonics`` of all degrees, which gives the normalisation.
    like
        Tensor whose type and device the matrices are to have.
    """
    degrees = range(harmonics.irreps_out.lmax + 1)
    point = torch.tensor([[0.6, 0.48, 0.64]], dtype=torch.float64)
    known = [y.flatten() for y in harmonics(point).split([2 * degree + 1 for degree in degrees], 1)]
    found = []
    for n in degrees[2:]:
        coupling = o3.wigner_3j(n - 1, 1, n, dtype=torch.float64).flatten(0, 1)
        made = torch.outer(known[n - 1], known[1]).flatten() @ coupling
        found.append((coupling * (known[n] @ made) / (made @ made)).to(like))
    return found


def harmonics_by_degree(directions: torch.Tensor, matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """Harmonics of degree zero, one and one more for each matrix of :func:`couplings`."""
    first = directions * 3**0.5
    parts = [torch.ones_like(first[:, :1]), first]
    for matrix in matrices:
        parts.append((parts[-1].unsqueeze(2) * first.unsqueeze(1)).flatten(1) @ matrix)
    return parts


def on_directions(
    slope: torch.Tensor, parts: list[torch.Tensor], matrices: list[torch.Tensor]
) -> torch.Tensor:
    """Gradient of the directions from that of all harmonics or of degree zero alone, side by side."""
    if slope.shape[1] == 1:
        return torch.zeros_like(parts[1])
    slopes = list(slope.split([part.shape[1] for part in parts], 1))
    first, on_first = parts[1].unsqueeze(1), slopes[1].clone()
    for n in range(len(matrices) - 1, -1, -1):
        below = parts[n + 1].unsqueeze(2)
        on_products = (slopes[n + 2] @ matrices[n].T).view(len(slope), parts[n + 1].shape[1], 3)
        on_first += (on_products * below).sum(1)
        on_below = (on_products * first).sum(2)
        if n > 0:
            slopes[n + 1] = slopes[n + 1] + on_below
        else:
            on_first += on_below
    return on_first * 3**0.5


class RadialNetworks(NamedTuple):
    """From radial functions to weights of edges for L layers; what these share is evaluated as one."""

    first: torch.Tensor | None
    """Side by side, shape ``(n, L * width)``."""
    hidden: list[torch.Tensor]
    """Each of shape ``(L, width, width)``."""
    last: list[torch.Tensor]
    """Of each layer, for the paths that it wants."""

    @classmethod
    def of(cls, networks, messages):
        """From the matrices of each network, with a silu between two of them, and :class:`Messages`.

        All networks have the same depth and width.
        """
        *hidden, last = zip(*networks, strict=True)
        return cls(
            first=torch.cat(hidden[0], dim=1) if hidden else None,
            hidden=[torch.stack(same) for same in hidden[1:]],
            last=[
                matrix.unflatten(1, (-1, of.channels))[:, of.paths].flatten(1)
                for matrix, of in zip(last, messages, strict=True)
            ],
        )


def radial_weights(of: RadialNetworks, radial: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights for each layer, shape ``(E, P * U)``, of radial functions, shape ``(E, n)``.

    With them comes what :func:`on_radial` needs: what went into the nonlinearities.
    """
    first, count = of.first, len(of.last)
    before: list[torch.Tensor] = []
    parts = [radial for _ in of.last]
    if first is not None:
        before.append(radial @ first)
        x = silu(before[0]).view(len(radial), count, first.shape[1] // count)
        for matrices in of.hidden:
            before.append(torch.bmm(x.transpose(0, 1), matrices))
            x = silu(before[-1]).transpose(0, 1)
        parts = x.unbind(1)
    return [parts[n] @ last for n, last in enumerate(of.last)], before


def on_radial(of: RadialNetworks, on_weights: list[torch.Tensor], before: list[torch.Tensor]) -> torch.Tensor:
    """Gradient of the radial functions from that of all weights."""
    first, count = of.first, len(of.last)
    if first is None:
        return torch.cat(on_weights, 1) @ torch.cat(of.last, 1).T
    slope = torch.empty_like(before[-1])
    parts = slope.unbind(0) if slope.dim() == 3 else slope.chunk(count, 1)
    for n, last in enumerate(of.last):
        torch.mm(on_weights[n], last.T, out=parts[n])
    for n in range(len(of.hidden) - 1, -1, -1):
        slope = torch.bmm(silu_backward(slope, before[n + 1]), of.hidden[n].transpose(1, 2))
    if slope.dim() == 3:
        slope = slope.transpose(0, 1).flatten(1)
    return silu_backward(slope, before[0]) @ first.T


class Geometry(NamedTuple):
    """From vectors of pairs to their harmonics and weights."""

    radial_basis: RadialBasis
    couplings: list[torch.Tensor]
    """Of the harmonics, see :func:`couplings`."""
    size: int
    """Number of harmonics."""
    networks: RadialNetworks


def of_pairs(
    of: Geometry, vectors: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor], list[list[torch.Tensor]]]:
    """Harmonics and weights of pairs, from vectors ``(E / 2, 3)``, and three lists for :func:`on_pairs`."""
    radial, by_length, directions, lengths = polar(vectors, of.radial_basis)
    by_degree = harmonics_by_degree(directions, of.couplings)
    weights, before = radial_weights(of.networks, radial)
    kept = [[by_length, directions, lengths], by_degree, before]
    return torch.cat(by_degree, 1)[:, : of.size], weights, kept


def on_pairs(
    of: Geometry, on_harmonics: torch.Tensor, on_weights: list[torch.Tensor], kept: list[list[torch.Tensor]]
) -> torch.Tensor:
    """Gradient of the vectors of one direction from those of harmonics and weights."""
    lengths, by_degree, before = kept
    on_radii = on_radial(of.networks, on_weights, before)
    on_units = on_directions(on_harmonics, by_degree, of.couplings)
    return on_vectors(on_radii, on_units, lengths[0], lengths[1], lengths[2])


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


class Messages:
    """Constants of the sum of :class:`Convolution` with channels last, see :func:`messages`.

    The K components of the messages are ordered by kind, component and path; D are those of the features.
    The two edges of a pair of atoms stand side by side. Pairs are taken in blocks, whose arrays stay in the
    cache. Where scalars alone are wanted, the components of a product whose sum is a scalar are the messages:
    small sums are slow.

    Parameters
    ----------
    product
        :class:`Convolution`, or what it takes.
    kinds
        Irreps that are wanted of the messages.
    like
        Tensor whose type and device the constants are to have.
    """

    BLOCK = {"cpu": 2**18, "cuda": 2**27}
    """Numbers in the largest array of a block, by device: it stays in the cache, or on a GPU in memory."""

    def __init__(self, product, kinds, like):
        inputs, harmonics = product.irreps_in1, product.irreps_in2
        paths = sorted(enumerate(product.instructions), key=lambda path: path[1].i_out)
        of_kind = [[(p, i) for p, i in paths if product.irreps_out[i.i_out].ir == kind] for kind in kinds]
        self.inputs = [ir.dim for _, ir in inputs]
        self.channels = inputs[0].mul
        self.paths = [p for same in of_kind for p, _ in same]
        sizes = [(kind.dim, same) for kind, same in zip(kinds, of_kind, strict=True)]
        places = [p for size, same in sizes for _ in range(size) for p, _ in same]
        heights = [size * len(same) for size, same in sizes]
        widths = [len(same) * self.channels for same in of_kind]
        self.sizes = [height * self.channels for height in heights]
        there = torch.cat([_couplings(product, same, size) for size, same in sizes], dim=2)
        self.scalar = len(kinds) == 1 and [i.i_in1 for _, i in of_kind[0]] == list(range(len(inputs)))
        if self.scalar:
            there = there.sum(2, keepdim=True)
            heights, widths = self.inputs, [self.channels] * len(inputs)
            places = [p for p, size in zip(self.paths, self.inputs, strict=True) for _ in range(size)]
            self.sizes = [sum(self.inputs) * self.channels]
        if len(places) <= 2 * len(self.paths):  # a row of weights for every component is quicker then
            self.paths, heights = places, [len(places)]
            widths = [len(places) * self.channels]
        signs = torch.cat([torch.full((ir.dim, 1, 1), (-1) ** ir.l) for _, ir in harmonics])
        self.sums = Sums(
            coupling=torch.stack([there, there * signs], dim=1).flatten(1).to(like),
            components=sum(self.inputs),
            channels=self.channels,
            scalar=self.scalar,
            heights=heights,
            widths=widths,
            block=max(1, self.BLOCK[like.device.type] // (2 * sum(heights) * self.channels)),
        )

    def on_rows(self, matrix):
        """A matrix whose rows are paths and channels of a kind, with rows of what the messages hold."""
        if not self.scalar:
            return matrix
        of_inputs = [p for p, size in enumerate(self.inputs) for _ in range(size)]
        return matrix.unflatten(0, (-1, self.channels))[of_inputs].flatten(0, 1)


def _couplings(product, paths, size):
    """Coefficients of paths to a kind of a size, shape ``((l_max + 1)^2, D, size * paths)``."""
    dims = [ir.dim for _, ir in product.irreps_in1]
    couplings = torch.zeros(product.irreps_in2.dim, sum(dims), size, len(paths), dtype=torch.float64)
    for n, (_, i) in enumerate(paths):
        start = sum(dims[: i.i_in1])
        coupling = path_coupling(product, i, torch.float64).unflatten(1, (size, -1))
        couplings[:, start : start + dims[i.i_in1], :, n] = coupling.transpose(1, 2)
    return couplings.flatten(2)


class Sums(NamedTuple):
    """Constants of :class:`Messages`."""

    coupling: torch.Tensor
    """From the harmonics of a pair to the matrices of its two edges."""
    components: int
    """D."""
    channels: int
    """U."""
    scalar: bool
    """Whether scalars alone are wanted."""
    heights: list[int]
    """Number of components that the messages have of each kind."""
    widths: list[int]
    """Of a row of weights for each kind."""
    block: int
    """Pairs in a block."""


class Given(NamedTuple):
    """What messages are made of."""

    x: torch.Tensor
    """Features of the atoms, shape ``(N, D, U)``."""
    harmonics: torch.Tensor
    """Of pairs, shape ``(E / 2, (l_max + 1)^2)``."""
    weights: torch.Tensor
    """Of pairs, those of ``Messages.paths``, shape ``(E / 2, P * U)``."""
    neighbour: torch.Tensor
    """Shape ``(E,)``: of each pair in the direction of the harmonics, then reversed."""
    centre: torch.Tensor


def messages(of: Sums, given: Given) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Sums of messages, shape ``(N, K * U)``, and what :func:`on_messages` needs of them."""
    total = given.x.new_zeros([len(given.x), sum(of.heights) * of.channels])
    kept: list[torch.Tensor] = []
    pairs, size = len(given.harmonics), _block(of, given)
    for start in range(0, pairs, size):
        y, factors, source, target = _part(given, start, min(start + size, pairs))
        near = given.x.index_select(0, source)
        coupling, products = _products(of, y, near)
        weighted = products
        if size >= pairs:  # of more blocks they would not stay in the cache
            kept, weighted = [near, coupling, products], torch.empty_like(products)
        _weigh(of, products, factors, weighted)
        total.index_add_(0, target, weighted.flatten(1))
    return total, kept


def on_messages(
    of: Sums,
    given: Given,
    kept: list[torch.Tensor],
    gradient: torch.Tensor,
    on_x: torch.Tensor | None,
    on_harmonics: torch.Tensor,
) -> torch.Tensor:
    """Gradient of the weights from that of the sums; those of features and harmonics are added up."""
    on_weights = torch.empty_like(given.weights)
    pairs, size = len(given.harmonics), _block(of, given)
    for start in range(0, pairs, size):
        stop = min(start + size, pairs)
        y, factors, source, target = _part(given, start, stop)
        if len(kept) > 0:
            near, coupling, products = kept
        else:
            near = given.x.index_select(0, source)
            coupling, products = _products(of, y, near)
        slope = gradient.index_select(0, target).view_as(products)
        _on_weights(of, products, slope, on_weights[start:stop])
        _weigh(of, slope, factors, slope)
        on_coupling = _on_coupling(of, near, slope).view(stop - start, -1)
        on_harmonics[start:stop].addmm_(on_coupling, of.coupling.T)
        if on_x is not None:
            on_x.index_add_(0, source, _on_near(of, coupling, slope))
    return on_weights


def _block(of: Sums, given: Given) -> int:
    """Pairs in a block; what is kept of a single one has to outweigh the cache before there are several."""
    pairs = len(given.harmonics)
    return of.block if pairs > 2 * of.block else max(1, pairs)


def _part(
    given: Given, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Harmonics and weights of a block of pairs, neighbours and centres of its edges."""
    y, factors, source, target = given.harmonics, given.weights, given.neighbour, given.centre
    if stop - start < len(y):
        y, factors = y[start:stop], factors[start:stop]
        source, target = source[2 * start : 2 * stop], target[2 * start : 2 * stop]
    return y, factors, source, target


def _products(of: Sums, harmonics: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices of edges, ``(E, D, K)``, and their products with features, ``(E, K, U)``.

    Where no product has a sum, the matrices are columns, shape ``(E, K, 1)``.
    """
    coupling = harmonics @ of.coupling
    if of.scalar or of.components == 1:
        coupling = coupling.view(len(near), -1, 1)
        return coupling, coupling * near
    coupling = coupling.view(len(near), of.components, -1)
    return coupling, torch.bmm(coupling.transpose(1, 2), near)


def _on_coupling(of: Sums, near: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Gradient by the matrices, of that by the products."""
    if of.scalar and of.components > 1:
        return (near * gradient).sum(2)
    return torch.bmm(near, gradient.transpose(1, 2))


def _on_near(of: Sums, coupling: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Gradient by the features, ``(E, D, U)``, of that by the products."""
    if of.scalar:
        return coupling * gradient
    if of.components == 1:
        return (coupling * gradient).sum(1, keepdim=True)
    return torch.bmm(coupling, gradient)


def _by_kind(of: Sums, rows: torch.Tensor) -> list[torch.Tensor]:
    """Views of rows of edges, ``(E, K, U)``, for each kind: ``(E / 2, 2, components, paths * U)``."""
    pairs = len(rows) // 2
    if len(of.widths) == 1:
        return [rows.view(pairs, 2, -1, of.widths[0])]
    parts = rows.view(pairs, 2, -1, of.channels).split(of.heights, 2)
    return [part.view(pairs, 2, -1, of.widths[n]) for n, part in enumerate(parts)]


def _weights_by_kind(of: Sums, weights: torch.Tensor) -> list[torch.Tensor]:
    """Views of weights of pairs, ``(E / 2, P * U)``, for each kind: ``(E / 2, 1, 1, paths * U)``."""
    weights = weights.unsqueeze(1).unsqueeze(1)
    return list(weights.split(of.widths, 3)) if len(of.widths) > 1 else [weights]


def _weigh(of: Sums, rows: torch.Tensor, weights: torch.Tensor, out: torch.Tensor):
    """Multiply rows of edges, shape ``(E, K, U)``, by weights of pairs."""
    found, factors = _by_kind(of, out), _weights_by_kind(of, weights)
    for n, row in enumerate(_by_kind(of, rows)):
        torch.mul(row, factors[n], out=found[n])


def _on_weights(of: Sums, rows: torch.Tensor, gradient: torch.Tensor, out: torch.Tensor):
    """Gradient by the weights, of that by weighted rows."""
    found, slopes = _weights_by_kind(of, out), _by_kind(of, gradient)
    for n, row in enumerate(_by_kind(of, rows)):
        given = slopes[n]
        if row.shape[2] > 1:
            torch.sum(row * given, [1, 2], keepdim=True, out=found[n])
        else:  # a sum of two is quicker as such
            torch.mul(row[:, :1], given[:, :1], out=found[n]).addcmul_(row[:, 1:], given[:, 1:])


def path_coupling(product, instruction, dtype=None):
    """Coefficients of a path, shape ``((l_max + 1)^2, k * a)``: harmonics times them are matrices."""
    harmonics, i = product.irreps_in2, instruction
    x, y, out = (product.irreps_in1[i.i_in1].ir, harmonics[i.i_in2].ir, product.irreps_out[i.i_out].ir)
    coefficients = o3.wigner_3j(x.l, y.l, out.l, dtype=dtype).permute(1, 2, 0) * i.path_weight
    block = coefficients.new_zeros(harmonics.dim, out.dim * x.dim)
    block[harmonics.slices()[i.i_in2]] = coefficients.reshape(y.dim, -1)
    return block
