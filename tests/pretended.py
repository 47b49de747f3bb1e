"""A GPU that is not there: tensors that say they are on it, and refuse to meet those that are not."""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
MAY_MIX = {aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten.index_put_.default}
MAY_MIX |= {aten.tensor_split.tensor_indices_or_sections}  # indices are read on the processor


class There(torch.Tensor):
    """A tensor on the pretended GPU; ``held`` has its numbers."""

    @staticmethod
    def __new__(cls, held):
        options = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        with torch.inference_mode(False):
            return torch.Tensor._make_wrapper_subclass(cls, held.shape, **options)

    def __init__(self, held):
        self.held = held

    @property
    def device(self):
        return GPU

    def __repr__(self):
        return f"There({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        raise AssertionError("outside of pretended.gpu()")


def held(value):
    """What is behind a tensor on the pretended GPU; anything else as it is."""
    return value.held if isinstance(value, There) else value


def _is_gpu(device):
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"


class _Operators(TorchDispatchMode):
    """Every operator computes on the processor, and its result is where its arguments are."""

    strict = True  # except where autograd makes zeros of its own, which are always on the processor here

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        tensors = [t for t in tree_leaves((arguments, options)) if isinstance(t, torch.Tensor)]
        there = any(isinstance(t, There) for t in tensors)
        if there and self.strict and function not in MAY_MIX:
            mixed = [tuple(t.shape) for t in tensors if not isinstance(t, There) and t.dim()]
            if mixed:
                raise RuntimeError(f"{function} meets tensors of shapes {mixed} that are not on the GPU")
        device = options.get("device")
        to_gpu = there if device is None else _is_gpu(device)

        def bare(value):
            return CPU if isinstance(value, torch.device) else held(value)

        found = function(*tree_map(bare, arguments), **tree_map(bare, options))
        for place, expected in enumerate(function._schema.arguments if function._schema.is_mutable else ()):
            if expected.alias_info is not None and expected.alias_info.is_write:
                return arguments[place] if place < len(arguments) else options[expected.name]
        return tree_map(lambda v: There(v) if to_gpu and isinstance(v, torch.Tensor) else v, found)


class _Functions(TorchFunctionMode):
    """Functions that ask C++ where a tensor is, which knows the truth."""

    def __init__(self, operators):
        super().__init__()
        self.operators = operators

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        first = arguments[0] if arguments else None
        if function is torch.Tensor.to:
            return self._moved(*arguments, **options)
        if function is torch.tensor and _is_gpu(options.get("device")):
            return There(torch.tensor(*arguments, **(options | {"device": CPU})))
        if function is torch.Tensor.new_tensor and isinstance(first, There):
            return There(first.held.new_tensor(*arguments[1:], **options))
        if function is torch.nn.functional.one_hot and isinstance(first, There):
            return There(function(first.held, *arguments[1:], **options))
        if function in (torch.Tensor.cpu, torch.Tensor.tolist):
            return function(held(first))
        if function is torch.Tensor.numpy and isinstance(first, There):
            raise TypeError("a tensor on a GPU has no numpy array")
        if function is torch.autograd.grad:
            with mock.patch.object(self.operators, "strict", False):
                return function(*arguments, **options)
        return function(*arguments, **options)

    def _moved(self, tensor, *arguments, device=None, dtype=None, **options):
        """``Tensor.to``, with the GPU named by its index: else C++ asks the driver for it."""
        for wanted in arguments:
            if isinstance(wanted, torch.Tensor):
                device, dtype = wanted.device, wanted.dtype
            elif isinstance(wanted, torch.dtype):
                dtype = wanted
            elif isinstance(wanted, (str, torch.device)):
                device = wanted
        if device is not None and not _is_gpu(device) and isinstance(tensor, There):
            tensor, device = tensor.held, None
        device = GPU if _is_gpu(device) and not isinstance(tensor, There) else None
        return tensor.to(device=device, dtype=dtype, **options)


@contextmanager
def gpu():
    """While it lasts, ``"cuda"`` is a device; operators that mix devices raise."""
    operators = _Operators()
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter cannot change its class
    try:
        with mock.patch("torch.cuda._lazy_init"), operators, _Functions(operators):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
