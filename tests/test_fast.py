"""Speed does not change results: networks as they run beside those of the packages."""

import copy
import pickle
from importlib.util import find_spec
from itertools import starmap

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch.utils._python_dispatch import TorchDispatchMode

from egraff_utils import models
from egraff_utils.graph import build_graph
from egraff_utils.md.calculator import ForceFieldCalculator
from egraff_utils.md.dynamics import Thermostat, simulate
from egraff_utils.models import frozen
from egraff_utils.models.frozen import allegro, operators, torchmd_net_messages
from egraff_utils.models.frozen.convolution import Convolution
from egraff_utils.models.frozen.messages import Messages

SHARED = {"botnet": "mace"}  # whose network is that of another file
NAMES = [
    name for name in models.NAMES if find_spec(f"{frozen.__name__}.{SHARED.get(name, name)}") is not None
]
ELEMENTS = [1, 6, 8]


def starts(count):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        found.append(molecule("CH3CH2OH"))
        found[-1].rattle(0.05, rng=rng)
        found[-1].set_momenta(np.zeros((9, 3)))
    return found


def pair(name, *, preset="tiny", dtype=torch.float64, **options):
    torch.manual_seed(1)
    degrees = {"l_max": 2} if preset == "tiny" and name in ("nequip", "botnet", "mace") else options
    with frozen.plain():
        plain = models.build(name, preset, ELEMENTS, dtype=dtype, **degrees)
    plain.set_reference({}, 0.02)  # eV: small enough for 200 steps
    quick = models.build(name, preset, ELEMENTS, dtype=dtype, **degrees)
    assert is_plain(plain)
    assert not is_plain(quick)
    quick.load_state_dict(plain.state_dict())  # all names, or an error
    return plain, quick


def is_plain(ff):
    """Whether nothing in a network is evaluated in another way than in its package."""
    parts = list(ff.network.modules())
    ours = any(type(part).__module__.startswith(frozen.__name__) for part in parts)
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    return not ours and not hooked and ff._freezer is None


def parameter_gradients(ff, graph):
    prediction = ff.train()(graph)
    (prediction.energy.sum() + prediction.forces.square().sum()).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in ff.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_same_energies_forces_and_gradients(name):
    plain, quick = pair(name)
    graph = build_graph(starts(2))
    for mode in (True, False):
        expected, found = plain.train(mode)(graph), quick.train(mode)(graph)
        torch.testing.assert_close(found.energy, expected.energy, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.forces, expected.forces, rtol=1e-10, atol=1e-10)
    gradients = zip(parameter_gradients(quick, graph), parameter_gradients(plain, graph), strict=True)
    for found, expected in gradients:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize("name", models.NAMES)
def test_atoms_without_neighbours(name, preset):
    """No edge anywhere, and atoms out of reach beside a molecule."""
    torch.manual_seed(1)
    ff = models.build(name, preset, ELEMENTS, dtype=torch.float64).eval()
    alone = [ff(build_graph(Atoms([z]))).energy.item() for z in (1, 6, 8)]
    apart = ff(build_graph(Atoms([1, 6, 8], [[20.0 * i, 0, 0] for i in range(3)])))
    assert apart.energy.item() == pytest.approx(sum(alone), abs=1e-10)
    assert apart.forces.abs().max() == 0


@pytest.mark.parametrize("smooth_cutoff", [False, True])
@pytest.mark.parametrize("cache", [2**10, 2**14, 2**30])
def test_blocks_of_messages(cache, smooth_cutoff, monkeypatch):
    """One pair a block, several, all in one; the self loops of several blocks in a block of their own."""
    monkeypatch.setattr(torchmd_net_messages, "CACHE", cache)
    plain, quick = pair("torchmd_net", smooth_cutoff=smooth_cutoff)
    carbon = bulk("C")
    carbon.rattle(0.05, seed=0)
    graph = build_graph([*starts(2), Atoms("H"), carbon])
    blocks = torchmd_net_messages.Block.all_of(
        graph.edge_index.chunk(2, dim=1)[0], graph.positions.new_zeros(21, 16)
    )
    pairs = sum(block.pairs for block in blocks)
    assert pairs == graph.edge_index.shape[1] // 2
    assert sum(len(block.centre) for block in blocks) == 2 * pairs + 21
    assert len(blocks) == {2**10: pairs, 2**14: round(pairs / 16), 2**30: 1}[cache]
    for mode in (True, False):
        expected, found = plain.train(mode)(graph), quick.train(mode)(graph)
        torch.testing.assert_close(found.energy, expected.energy, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.forces, expected.forces, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["torchmd_net", "allegro"])
def test_blocks_shared_out_among_threads(name, threads, monkeypatch):
    """In every thread operators have one thread; afterwards torch has as many as before."""
    monkeypatch.setattr(torchmd_net_messages, "CACHE", 2**12)
    monkeypatch.setattr(allegro, "LEAST", 1)
    plain, quick = (ff.requires_grad_(False) for ff in pair(name))
    graph, seen = build_graph(starts(2)), []
    in_threads = operators.in_threads
    monkeypatch.setattr(operators, "in_threads", lambda f, c: seen.append(len(c)) or in_threads(f, c))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected, found = plain.eval()(graph), quick.eval()(graph)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {threads}
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("edges", [1, 40, 200])
def test_blocks_of_atoms(edges, monkeypatch):
    """One atom a block, several, with atoms without neighbours between and behind them."""
    plain, quick = pair("allegro")
    plain, quick = (ff.eval().requires_grad_(False) for ff in (plain, quick))
    carbon = bulk("C")
    carbon.rattle(0.05, seed=0)
    graph = build_graph([starts(2)[0], Atoms("H"), carbon, starts(2)[1], Atoms("C")])
    whole = quick(graph)
    calls, in_threads = [], operators.in_threads
    monkeypatch.setattr(allegro, "EDGES", {"cpu": edges})
    monkeypatch.setattr(operators, "in_threads", lambda f, given: calls.extend(given) or in_threads(f, given))
    quick(graph)
    sizes = [len(block.centre) for _, blocks in calls for block in blocks]
    assert sum(sizes) == graph.edge_index.shape[1]
    assert len(sizes) == {1: 20, 40: 5, 200: 2}[edges]
    for other in (whole, plain(graph)):
        torch.testing.assert_close(quick(graph).forces, other.forces, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(quick(graph).energy, other.energy, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_products_at_once(preset, monkeypatch):
    """As on a GPU: the same as term by term."""
    plain, quick = pair("allegro", preset=preset)
    monkeypatch.setattr(allegro, "at_once", lambda x, terms: True)
    monkeypatch.setattr(operators, "in_threads", starmap)  # what is compiled would not ask
    graph = build_graph([*starts(2), Atoms("H")])
    expected, found = (ff.eval().requires_grad_(False)(graph) for ff in (plain, quick))
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-11, atol=1e-11)


def _inverse(x):
    return torch.linalg.inv(x)


def test_an_error_in_a_thread_is_raised():
    regular, singular = 2 * torch.eye(2), torch.zeros(2, 2)
    halves = operators.in_threads(_inverse, [(regular,), (4 * regular,)])
    assert [half[0, 0].item() for half in halves] == [0.5, 0.125]
    for calls in ([(regular,), (singular,)], [(singular,), (regular,)]):
        before = torch.get_num_threads()
        with pytest.raises(RuntimeError, match="singular"):
            operators.in_threads(_inverse, calls)
        assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["nequip", "allegro", "mace", "torchmd_net"])
def test_presets_of_the_paper_in_single_precision(name):
    plain, quick = pair(name, preset="paper", dtype=torch.float32)
    graph = build_graph(starts(1))
    expected, found = plain.eval()(graph).forces, quick.eval()(graph).forces
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_two_hundred_steps(name):
    """Replicas, plain networks and lists searched anew at every step all give one trajectory."""
    plain, quick = pair(name)
    thermostat = Thermostat(temperature=300, timestep=0.5)

    def run(ff, replicas, skin):
        chosen = [starts(2)[r] for r in replicas]
        make = lambda n: ForceFieldCalculator(ff, skin=skin, replicas=n)  # noqa: E731
        return simulate(chosen, make, thermostat=thermostat, steps=200, record_every=50, replicas=replicas)

    together = run(quick, [0, 1], 1.0)
    alone = run(plain, [1], 0.0)
    assert together.stable_step.tolist() == [200, 200]
    np.testing.assert_allclose(together.positions[1:], alone.positions, atol=1e-5)
    np.testing.assert_allclose(together.energy[1:], alone.energy, rtol=1e-8, atol=1e-8)


OPTIONS = {}, {"l_max": 2}, {"parity": False}, {"num_layers": 1}, {"l_max": 0}
FROZEN = [(name, options) for name in ("nequip", "allegro") for options in OPTIONS]
FROZEN += [
    ("allegro", options) for options in ({"num_layers": 3}, {"two_body_layers": 0}, {"latent_layers": 0})
]
FROZEN += [("botnet", options) for options in ({}, {"l_max": 2}, {"l_max": 3, "hidden_l_max": 2})]
FROZEN += [("mace", {"correlation": order, "l_max": 2}) for order in (1, 2, 3, 4)]
FROZEN += [("mace", {"num_interactions": 1}), ("mace", {"l_max": 1, "hidden_l_max": 2, "radial_layers": 3})]
FROZEN += [("mace", {"correlation": 1, "l_max": 1, "hidden_l_max": 2}), ("mace", {"hidden_l_max": 0})]
TORCHMD = (
    {},
    {"smooth_cutoff": True},
    {"neighbor_embedding": False},
    {"trainable_rbf": True},
    {"num_layers": 1},
)
FROZEN += [("torchmd_net", options) for options in TORCHMD]


@pytest.mark.parametrize(("name", "options"), FROZEN)
def test_frozen_weights(name, options):
    """Edges in any order, an atom out of reach, weights trained since the last call."""
    torch.manual_seed(1)
    with frozen.plain():
        plain = models.build(name, "tiny", ELEMENTS, dtype=torch.float64, **options).eval()
    quick = models.build(name, "tiny", ELEMENTS, dtype=torch.float64, **options).eval()
    quick.load_state_dict(plain.state_dict())
    alone = starts(1)[0] + Atoms([6], [[30.0, 0, 0]])
    graph = build_graph([alone, *starts(2)])
    pairs = graph.edge_index.shape[1] // 2
    order = torch.randperm(pairs)
    order = torch.cat([order + pairs, order])
    shuffled = graph._replace(edge_index=graph.edge_index[:, order], shifts=graph.shifts[order])
    for _ in range(2):
        expected = plain(graph)
        quick.requires_grad_(False)
        for given in (graph, shuffled):
            found = quick(given)
            assert quick.as_frozen() is not None
            assert not found.forces.is_inference(), "results can be used in what is differentiated"
            torch.testing.assert_close(found.energy, expected.energy, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(found.forces, expected.forces, rtol=1e-10, atol=1e-10)
        quick.requires_grad_(True)
        for ff in (plain, quick):
            gradients = parameter_gradients(ff, graph)
            with torch.no_grad():
                for parameter, gradient in zip(ff.parameters(), gradients, strict=True):
                    parameter -= 1e-3 * gradient
            ff.zero_grad()
            ff.eval()


@pytest.mark.parametrize("block", [1, 2**12, 2**30])
@pytest.mark.parametrize("name", ["nequip", "botnet", "mace"])
def test_blocks_of_pairs(name, block, monkeypatch):
    """One pair a block, several, all in one; elements that a structure lacks, and other atoms in between."""
    monkeypatch.setattr(Messages, "BLOCK", {"cpu": block})
    plain, quick = pair(name)
    plain.eval().requires_grad_(False)
    quick.eval().requires_grad_(False)
    graph = build_graph([*starts(2), molecule("O2")])
    of_oxygen = build_graph(molecule("O2"))
    swapped = graph._replace(species=graph.species.clone())
    for changed in (False, True, True):
        if changed:
            swapped.species.copy_(graph.species.flip(0))
        for given in (graph, of_oxygen, swapped, build_graph(Atoms("H"))):
            expected, found = plain(given), quick(given)
            torch.testing.assert_close(found.energy, expected.energy, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(found.forces, expected.forces, rtol=1e-12, atol=1e-12)


class Recorded(TorchDispatchMode):
    """Names of the operators that are called in a ``with`` block, a list."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


BY_HAND = [("torchmd_net", options) for options in (*TORCHMD, {"num_layers": 3})]
BY_HAND += [("botnet", {}), ("mace", {"l_max": 2}), ("nequip", {}), ("nequip", {"l_max": 2})]


@pytest.mark.parametrize(("name", "options"), BY_HAND)
def test_gradient_by_hand(name, options):
    """Of the sum of energies, by central differences; no operator waits for a GPU."""
    torch.manual_seed(1)
    ff = models.build(name, "tiny", ELEMENTS, dtype=torch.float64, **options).eval()
    ff.requires_grad_(False)
    carbon = bulk("C")
    carbon.rattle(0.05, seed=0)
    graph = build_graph([molecule("H2O"), Atoms("H"), carbon], cutoff=3.0)
    engine, vectors = ff.as_frozen(), graph.pair_vectors()
    with torch.inference_mode():
        energies, found = engine(graph, vectors)
        steps = 1e-5 * torch.eye(vectors.numel(), dtype=torch.float64).view(-1, *vectors.shape)
        ends = [[engine(graph, vectors + sign * step)[0].sum() for sign in (1, -1)] for step in steps]
    with torch.no_grad(), Recorded() as recorded:  # in inference mode operators made of others arrive whole
        engine(graph, vectors)
    expected = torch.tensor([(up - down) / 2e-5 for up, down in ends]).view_as(vectors)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(energies.clone(), ff.requires_grad_(True).network(graph, graph.edge_vectors()))
    assert not {"_local_scalar_dense", "nonzero", "item"} & set(recorded.names)


@pytest.mark.parametrize("name", ["nequip", "allegro", "botnet", "mace", "torchmd_net"])
def test_frozen_in_single_precision(name):
    plain, quick = pair(name, preset="paper", dtype=torch.float32)
    graph = build_graph(starts(2))
    expected, found = plain.eval()(graph).forces, quick.eval().requires_grad_(False)(graph).forces
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    copied = copy.deepcopy(quick)
    assert torch.equal(copied(graph).forces, found)
    apart = build_graph(Atoms([1, 6, 8], [[20.0 * i, 0, 0] for i in range(3)]))
    assert torch.equal(copied(apart).forces, torch.zeros(3, 3))
    restored = pickle.loads(pickle.dumps(quick))
    assert torch.equal(restored(graph).forces, found)
    torch.testing.assert_close(restored.double()(graph).forces.float(), found, rtol=1e-4, atol=1e-4)


def test_another_kind_of_product_is_refused():
    from e3nn import o3

    with pytest.raises(ValueError, match="equal width"):
        Convolution(o3.FullyConnectedTensorProduct("2x0e", "1x0e", "2x0e"))
