r"""How are operators run? By products with constant matrices, threads and TorchScript.

.. math::

    Y = X W, \quad \bar X = \bar Y W^\top; \qquad
    y = x\,\sigma(x), \quad \bar x = \bar y\,\sigma(x) \left( 1 + x \left( 1 - \sigma(x) \right) \right)

Throughout the package, :math:`\bar x` is the gradient of the sum of all energies with respect to :math:`x`. A
function ``on_x`` computes it from the gradients with respect to the quantities that were computed from
:math:`x`.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TypeVar

import torch

Made = TypeVar("Made")
_threads: ContextVar[int | None] = ContextVar("threads", default=None)

silu_backward = torch.ops.aten.silu_backward


@contextmanager
def one_thread() -> Iterator[None]:
    """Context in which operators use one thread, so that arrays stay in the cache of one core.

    With two threads, each waits for what the other wrote. An idle thread also keeps its core busy for about 8
    ms, and :func:`in_threads` needs that core (``tried.csv``: "blocks shared out among two Python threads").
    """
    before = torch.get_num_threads()
    token = _threads.set(_threads.get() or before)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _threads.reset(token)


def threads() -> int:
    """Number of torch's threads outside :func:`one_thread`."""
    return _threads.get() or torch.get_num_threads()


def in_threads(function: Callable[..., Made], calls: Sequence[tuple]) -> list[Made]:
    """Results of ``function(*arguments)`` for every call, each run in a Python thread with one torch thread.

    The function is compiled by TorchScript, so that its operators do not wait for the interpreter. It runs in
    inference mode, so its outputs cannot be used in autograd.
    """
    code = _compiled(function)

    def call(arguments: tuple) -> Made:
        with one_thread(), torch.inference_mode():
            return code(*arguments)

    with one_thread():
        others = [_pool().submit(call, arguments) for arguments in calls[1:]]
        return [call(calls[0]), *(other.result() for other in others)]


def compiled(function: Callable[..., Made], device: torch.device) -> Callable[..., Made]:
    """The function compiled by TorchScript, whose operators do not wait for the interpreter.

    The operators keep their threads. On a GPU the function is returned unchanged, as the compiler would fuse
    operators.
    """
    return _compiled(function) if device.type == "cpu" else function


@cache
def _compiled(function: Callable[..., Made]) -> Callable[..., Made]:
    with warnings.catch_warnings():  # deprecated, but what replaces TorchScript holds the interpreter's lock
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


LEAST = 128
"""Smallest number of rows and columns for which the memory layout of oneDNN is faster (``tried.csv``: "wide
constant matrices kept in the order of oneDNN")."""


def both(matrix: torch.Tensor) -> list[torch.Tensor]:
    """A constant matrix and its transpose for :func:`times`, a list.

    On a CPU, large matrices are stored in the memory layout of oneDNN, which saves a copy in every product.
    """
    kind = (matrix.dtype, matrix.device.type)
    wide = min(matrix.shape) >= LEAST and kind == (torch.float32, "cpu")
    if wide and hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available():
        return [_packed(matrix.T), _packed(matrix)]
    return [matrix.contiguous(), matrix.T]


def _packed(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix in the memory layout of oneDNN, whose operator multiplies rows by the transpose."""
    return torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous())


def times(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Rows times a matrix that is stored in torch's or in oneDNN's memory layout."""
    if matrix.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), matrix, None, "none", [], "")
    return x @ matrix
