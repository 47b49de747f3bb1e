r"""Products with constant matrices and what runs them: threads, and TorchScript in place of the interpreter.

.. math::

    Y = X W, \quad \bar X = \bar Y W^\top; \qquad
    y = x\,\sigma(x), \quad \bar x = \bar y\,\sigma(x) \left( 1 + x \left( 1 - \sigma(x) \right) \right)

Here :math:`\bar x` is always the gradient of the sum of all energies with respect to :math:`x`. A function
``on_x`` finds it from the gradients with respect to what was computed from :math:`x`.
"""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

_threads = ContextVar("threads", default=None)

silu_backward = torch.ops.aten.silu_backward


@contextmanager
def one_thread():
    """Operators in this ``with`` block use one thread: arrays stay in the cache of one core.

    With two, each waits for what the other wrote. Also, a thread that has nothing to do keeps its core busy
    for some 8 ms, and :func:`in_threads` needs that core (``tried.csv``: "blocks shared out among two Python
    threads").
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
    """How many threads torch has outside :func:`one_thread`."""
    return _threads.get() or torch.get_num_threads()


def in_threads(function, calls):
    """Results of ``function(*arguments)`` for every call, each in a thread and with one thread of torch.

    The function is compiled by TorchScript, so that its operators do not wait for the interpreter. It runs in
    inference mode: no derivative is recorded, and autograd refuses its results.
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
    with warnings.catch_warnings():  # nothing that is to replace TorchScript frees the interpreter
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)


@cache
def _pool():
    return ThreadPoolExecutor(os.cpu_count())


LEAST = 128
"""Rows and columns of a matrix from which the order of oneDNN pays (``tried.csv``: "wide constant matrices
kept in the order of oneDNN")."""


def both(matrix):
    """A constant matrix and its transpose, as :func:`times` takes them, a list.

    On a processor large ones are kept in the order in which oneDNN reads them, which saves a copy in each
    product.
    """
    kind = (matrix.dtype, matrix.device.type)
    wide = min(matrix.shape) >= LEAST and kind == (torch.float32, "cpu")
    if wide and hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available():
        return [_packed(matrix.T), _packed(matrix)]
    return [matrix.contiguous(), matrix.T]


def _packed(matrix):
    """The matrix in the order of oneDNN, whose operator multiplies rows by its transpose."""
    return torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous())


def times(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Rows times a matrix, in torch's order or in that of oneDNN."""
    if matrix.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), matrix, None, "none", [], "")
    return x @ matrix
