"""Do the benchmarks of scaling, limit and precision measure what they say? Counts are checked by hand."""

import copy

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from e3nn import nn, o3

from benchmarks import Settings, limit, precision, scaling
from egraff_utils import data, models, weights
from egraff_utils.graph import build_graph
from egraff_utils.models.frozen import operators
from egraff_utils.running import cost

ATOMS, EDGES, WIDTH = 4, 6, 8
QUICK = Settings(quick=True)


@pytest.fixture
def copper(tmp_path, monkeypatch):
    """A tiny force field in place of every trained one, and a frame of copper in place of every dataset."""
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    frame = bulk("Cu", cubic=True)
    frame.rattle(0.05, seed=0)
    frame.calc = SinglePointCalculator(frame, energy=0.0, forces=np.ones((len(frame), 3)))
    monkeypatch.setattr(data, "load", lambda *_: [frame] * 5)

    def trained(*_):
        torch.manual_seed(0)
        return models.build("torchmd_net", "tiny", [29])

    monkeypatch.setattr(weights, "load", trained)


def counted(call):
    operations = limit.Operations()
    with operations.counted():
        call()
    return operations


class Layer(torch.nn.Module):
    """A convolution as NequIP and MACE have it: 4 scalars and 4 vectors, to one energy per atom."""

    def __init__(self):
        super().__init__()
        self.linear = o3.Linear("4x0e + 4x1o", "4x0e + 4x1o")
        paths = [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True)]
        arguments = ("4x0e + 4x1o", "1x0e + 1x1o", "4x0e + 4x0e", paths)
        self.product = o3.TensorProduct(*arguments, shared_weights=False, internal_weights=False)
        self.radial = nn.FullyConnectedNet([3, WIDTH, self.product.weight_numel], torch.nn.functional.silu)
        self.readout = o3.Linear("4x0e + 4x0e", "1x0e")

    def forward(self, x, vectors, centre, neighbour):
        weights = self.radial(vectors)
        harmonics = torch.cat([torch.ones(EDGES, 1), vectors], dim=1)
        messages = self.product(self.linear(x)[neighbour], harmonics, weights)
        return self.readout(torch.zeros(ATOMS, 8).index_add(0, centre, messages))


def test_operations_of_an_equivariant_layer_are_those_counted_by_hand():
    layer = Layer().requires_grad_(False)
    vectors = torch.rand(EDGES, 3, requires_grad=True)
    centre, neighbour = torch.randint(ATOMS, (2, EDGES))
    linear = 2 * ATOMS * (4 * 4 + 3 * 4 * 4)  # scalars, and each component of the vectors
    radial = 2 * EDGES * (3 * WIDTH + WIDTH * 8)  # to 8 weights, of 4 channels and 2 paths
    product = 2 * EDGES * 3 * 4  # 4 vectors times the direction; scalars are multiplied one by one
    readout = 2 * ATOMS * 8
    forward = linear + radial + product + readout
    backward = radial + product + readout  # as much again; the features depend on no vector
    x = torch.rand(ATOMS, 16)
    assert counted(lambda: layer(x, vectors, centre, neighbour)).flop == forward

    def gradient():
        torch.autograd.grad(layer(x, vectors, centre, neighbour).sum(), vectors)

    assert counted(gradient).flop == forward + backward


def test_compiled_operators_are_seen():
    plain = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.SiLU(), torch.nn.Linear(16, 4))
    plain.requires_grad_(False)
    x = torch.rand(7, 8, requires_grad=True)
    for module in (plain, torch.jit.script(plain)):
        for _ in range(3):  # the compiler rewrites the code after its first runs
            found = counted(lambda module=module: torch.autograd.grad(module(x).sum(), x))
        assert found.flop == 2 * 2 * 7 * (8 * 16 + 16 * 4)


@pytest.mark.parametrize("width", [8, 256])
def test_products_with_constant_matrices_are_counted(width):
    """In the order of torch, or in that of oneDNN."""
    there, back = operators.both(torch.rand(2 * width, width))
    found = counted(lambda: operators.times(operators.times(torch.rand(7, 2 * width), there), back))
    assert found.flop == 2 * 2 * 7 * 2 * width * width


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_operators_made_of_others_are_counted_as_those(mode):
    """In inference mode a linear layer or an einsum arrives whole."""
    x, y, weight, bias = torch.rand(7, 8), torch.rand(3, 5, 8), torch.rand(4, 8), torch.rand(4)

    def products():
        return (x @ weight.T, torch.nn.functional.linear(y, weight, bias), torch.einsum("ak,bk->ab", x, x))

    with mode():
        found = counted(products)
        alone = counted(lambda: torch.ops.aten.silu_backward(x, x))  # has a program of its own as well
    assert found.flop == 2 * (7 * 8 * 4 + 15 * 8 * 4 + 7 * 8 * 7)
    assert (alone.operators, alone.bytes) == (1, 3 * 4 * 7 * 8)


def test_bytes_are_those_of_what_is_read_and_written():
    x, row = torch.rand(5, 3), torch.rand(1, 3)
    assert counted(lambda: x + row.expand(5, 3)).bytes == 4 * (15 + 3 + 15)
    assert counted(lambda: torch.mul(x, row, out=x.clone())).bytes == 4 * (15 + 15 + 15 + 3 + 15)
    assert counted(lambda: x.add_(row)).bytes == 4 * (15 + 3 + 15)
    found = counted(lambda: x.T.view(3, 5))
    assert (found.bytes, found.flop) == (0, 0)
    assert found.operators > 0


def test_fractions_are_counts_over_rates(copper):
    rates = limit.machine_rates(QUICK)
    assert all(rate.value > 0 for rate in rates.values())
    record = limit._cell(QUICK, "small", "copper_emt", "torchmd_net", rates)
    assert record.message == ""
    seconds = record["ms_per_step"] / 1e3
    limits = {
        "compute": ("flop", "matmul"),
        "memory": ("bytes", "copy"),
        "operator": ("operators", "operator"),
    }
    for name, (count, rate) in limits.items():
        share = record[f"{count}_per_step"] / record[f"{rate}_rate"] / seconds
        assert record[f"{name}_fraction"] == pytest.approx(share)


def test_float32_stays_near_float64(copper, monkeypatch):
    monkeypatch.setattr(precision, "PAIRS", 1)
    monkeypatch.setitem(precision.SYSTEMS, "copper_emt", (2, 10))
    record = precision._cell(QUICK, "copper_emt", "torchmd_net")
    assert record.message == ""
    assert 0 < record["force_difference_over_error_float32"] < 1e-4
    assert abs(record["drift_difference_float32"]) < 0.1 < abs(record["drift_float64"]) + 1
    assert record.curves["energy_float32"].shape == (2, 21)
    assert 0 < record["plain_difference_float64"] < 1e-10
    assert 0 < record["plain_difference_over_error_float32"] < 1e-4


def test_the_plain_form_of_equiformer():
    ff = models.build("equiformer", "tiny", [29], dtype=torch.float64).eval()
    frame = bulk("Cu", cubic=True)
    frame.rattle(0.05, seed=0)
    found = ff(build_graph([frame], ff.cutoff)).forces
    plain = precision._plain(copy.deepcopy(ff), "cpu").eval()
    assert type(plain.network) is not type(ff.network)
    torch.testing.assert_close(plain(build_graph([frame], ff.cutoff)).forces, found, rtol=1e-9, atol=1e-12)


def test_a_scaling_record_holds_what_ended_it(copper, monkeypatch):
    curves = {name: np.array([32.0, 512.0]) for name in ("atoms", "milliseconds", "memory")}
    found = cost._metrics(curves, 1000.0), curves, "ended before 2048 atoms"
    monkeypatch.setattr(cost, "grow", lambda _, runs: found)
    monkeypatch.setattr(weights, "digest", lambda _: "weights")
    (record,) = scaling.run(QUICK)
    assert record["time_exponent"] == pytest.approx(1)
    assert record.message == "ended before 2048 atoms"
    monkeypatch.setattr(cost, "grow", lambda _, runs: ([], {}, "too large"))
    (record,) = scaling.run(Settings(quick=True, anew=True))
    assert (record.status, record.message) == ("failed", "RuntimeError: too large")
