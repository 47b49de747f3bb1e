"""How far is an MD step from the limits of the machine? Operations and bytes are divided by measured rates.

A step of five replicas, as in a rollout, is executed once under `Operations`, which records every operator
that torch dispatches: floating-point operations of matrix products (by torch's formulas), bytes read and
written, and the number of operators. Each count divided by the measured rate of the machine is the shortest
time that it could take on its own; the ratio of this time to that of a step shows how close the limit is.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

from benchmarks import Settings, measured
from egraff_utils.config import Key
from egraff_utils.records import Metric, Record

TITLE = "The limit: operations and bytes of an MD step over the rates of the machine"
MODELS = ("mace", "nequip", "allegro", "botnet", "torchmd_net", "equiformer")
CELLS = (("small", "ethanol"), ("small", "lips"), ("paper", "ethanol"))
CAMPAIGN = "cpu"  # campaign whose weights are used for the preset small
REPLICAS = 5
COLD = 10.0  # K; with untrained weights a warmer molecule would break
SIDE = 2048  # rows and columns of the matrices that are multiplied
LENGTH = 2**26  # float32 numbers that are copied, 268 MB
OPERATORS = 1000  # additions of a single number


def run(settings: Settings) -> Iterator[Record]:
    """Yield records of kind ``bench_limit`` (preset small) and ``bench_limit_paper``, by system and model.

    Metrics: ``flop_per_step`` (of matrix products), ``bytes_per_step``, ``operators_per_step``; the rates
    ``matmul_rate`` (flop/s), ``copy_rate`` (B/s), ``operator_rate`` (1/s); ``ms_per_step``; and the fractions
    ``compute_fraction``, ``memory_fraction`` and ``operator_fraction`` of a step that would suffice at these
    rates. The fraction of memory may exceed one, as arrays in a cache are read faster than they are copied.
    """
    began = time.monotonic()
    rates = machine_rates(settings)
    for preset, system in CELLS[:1] if settings.quick else CELLS:
        for model in MODELS[:1] if settings.quick else MODELS:
            if not settings.quick and time.monotonic() - began > settings.share("limit"):
                print(f"no time left for {model} on {system}, preset {preset}")
                continue
            yield _cell(settings, preset, system, model, rates)


def machine_rates(settings: Settings) -> dict[str, Metric]:
    """Best rates of float32 matrix products (flop/s), copies (B/s) and the smallest operators (1/s)."""
    import torch

    a, x = (torch.rand(*shape, device=settings.device) for shape in ((SIDE, SIDE), (LENGTH,)))
    b, y, one = torch.empty_like(a), torch.empty_like(x), torch.zeros(1, device=settings.device)

    def add():
        for _ in range(OPERATORS):
            one.add(1)

    times = {
        "matmul_rate": (2 * SIDE**3, "flop/s", lambda: torch.mm(a, a, out=b)),
        "copy_rate": (2 * 4 * LENGTH, "B/s", lambda: y.copy_(x)),
        "operator_rate": (OPERATORS, "1/s", add),
    }
    return {
        name: Metric(name, work / min(_times(call, settings, 5)), unit)
        for name, (work, unit, call) in times.items()
    }


class Operations:
    """Counts of the operators that torch executes within a ``with`` block of :meth:`counted`.

    Matrix products are counted by the formulas of ``torch.utils.flop_counter`` (its ``FlopCounterMode``
    cannot handle ``autograd.grad``), and bytes as the sizes of all inputs and outputs of every operator that
    is not a view. An array that is repeated by a stride of zero counts once. Composite operators, which are
    dispatched as a whole in inference mode, are counted by their parts.
    """

    def __init__(self) -> None:
        self.flop = self.bytes = self.operators = 0

    @contextmanager
    def counted(self) -> Iterator["Operations"]:
        """Context in which everything is counted."""
        from torch.utils._python_dispatch import TorchDispatchMode

        count = self

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                if _is_made_of_others(function):
                    with self:
                        return function.decompose(*args, **(kwargs or {}))
                found = function(*args, **(kwargs or {}))
                count._add(function, args, kwargs or {}, found)
                return found

        with Mode():
            yield self

    def _add(self, function, args, kwargs, found):
        from torch import Tensor, ops
        from torch.utils._pytree import tree_leaves

        self.operators += 1
        if function.is_view or function.overloadpacket is ops.aten._unsafe_view:
            return
        if formula := _formulas().get(function.overloadpacket):
            self.flop += formula(*args, **kwargs, out_val=found)
        read = [v for name, v in kwargs.items() if name not in _outputs(function)]
        tensors = [t for t in tree_leaves((args, read, found)) if isinstance(t, Tensor)]
        self.bytes += sum(_size(t) for t in tensors)


@cache
def _is_made_of_others(function):
    """Whether an operator, such as ``matmul``, is composed of others and has no kernel of its own."""
    from torch._C import _dispatch_has_kernel_for_dispatch_key as has

    name = function.name()
    return has(name, "CompositeImplicitAutograd") and not (has(name, "CPU") or has(name, "CUDA"))


@cache
def _outputs(function):
    """Names of arguments that are only written, such as ``out``, and are returned as the result."""
    return {argument.name for argument in function._schema.arguments if argument.is_out}


@cache
def _formulas():
    """Formulas for the floating-point operations of operators that multiply matrices."""
    from torch import ops
    from torch.utils.flop_counter import flop_registry

    found = flop_registry | {ops.aten.addmm_: flop_registry[ops.aten.addmm]}
    if hasattr(ops.mkldnn, "_linear_pointwise"):
        found[ops.mkldnn._linear_pointwise] = lambda x, *_, out_val: 2 * x.numel() * out_val.shape[-1]
    return found


def _size(tensor):
    """Bytes of memory that a tensor covers."""
    if tensor.is_mkldnn:  # its memory layout has no strides
        return tensor.numel() * tensor.element_size()
    shape = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return int(np.prod(shape, dtype=np.int64)) * tensor.element_size() if tensor.numel() else 0


def _cell(settings, preset, system, model, rates):
    from egraff_utils import weights

    trained = preset == "small"
    kind = "bench_limit" if trained else f"bench_limit_{preset}"
    parameters = {"preset": preset, "replicas": REPLICAS, "weights": CAMPAIGN if trained else "fresh"}
    hashes = {"weights": weights.digest(_run(system, model))} if trained else {}

    def measure():
        return _measure(settings, _force_field(preset, system, model), system, trained, rates)

    return measured(settings, kind, system, model, parameters, measure, **hashes)


def _run(system, model):

    return Key("training", CAMPAIGN, system, model)


def _force_field(preset, system, model):
    import torch

    from egraff_utils import models, weights
    from egraff_utils.cards import dataset

    if preset == "small":
        return weights.load(_run(system, model))
    torch.manual_seed(0)
    force_field = models.build(model, preset, dataset(system).elements)
    force_field.set_reference({}, 1e-3)
    return force_field


def _measure(settings, force_field, system, trained, rates):
    from egraff_utils import data
    from egraff_utils.running import cost

    frame = data.load(system, "test")[0]
    warmth = {} if trained else {"temperature": COLD}
    step = cost.stepper(force_field, frame, replicas=REPLICAS, device=settings.device, **warmth)
    for _ in range(2):
        step()
    operations = Operations()
    with operations.counted():
        step()
    times = np.array(_times(step, settings, 3 if settings.quick else 10))
    return _metrics(operations, float(np.median(times)), rates), {"times": times}


def _metrics(operations, seconds, rates):
    counts = {"matmul_rate": operations.flop, "copy_rate": operations.bytes}
    counts["operator_rate"] = operations.operators
    least = {name: count / rates[name].value for name, count in counts.items()}
    return [
        Metric("flop_per_step", operations.flop, "flop"),
        Metric("bytes_per_step", operations.bytes, "B"),
        Metric("operators_per_step", operations.operators, "1"),
        Metric("ms_per_step", 1e3 * seconds, "ms"),
        Metric("compute_fraction", least["matmul_rate"] / seconds, "1"),
        Metric("memory_fraction", least["copy_rate"] / seconds, "1"),
        Metric("operator_fraction", least["operator_rate"] / seconds, "1"),
        *rates.values(),
    ]


def _times(call, settings, count):
    """Times of calls after one untimed call, s."""
    wait = settings.synchronize or (lambda: None)
    times = []
    for _ in range(count + 1):
        wait()
        began = settings.clock()
        call()
        wait()
        times.append(settings.clock() - began)
    return times[1:]
