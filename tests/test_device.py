"""Nothing stays behind when a network goes to a GPU, here a `pretended` one; `test_gpu` needs a real one."""

import numpy as np
import pretended
import pytest
import torch
from test_fast import ELEMENTS, starts

from egraff_utils import models
from egraff_utils.graph import build_graph
from egraff_utils.md.calculator import ForceFieldCalculator
from egraff_utils.md.dynamics import Newtonian, simulate
from egraff_utils.models.frozen import allegro


def force_field(name, preset="small"):
    torch.manual_seed(1)
    ff = models.build(name, preset, ELEMENTS, dtype=torch.float64)
    ff.set_reference({}, 0.02)
    return ff


@pytest.mark.parametrize(("preset", "training"), [("small", True), ("small", False), ("paper", False)])
@pytest.mark.parametrize("name", models.NAMES)
def test_same_energies_and_forces(name, preset, training):
    graph = build_graph(starts(2))
    here, there = (force_field(name, preset).train(training).requires_grad_(training) for _ in range(2))
    expected = here(graph)
    with pretended.gpu():
        found = there.to("cuda")(graph.to("cuda"))
    assert found.forces.device == found.energy.device == pretended.GPU
    torch.testing.assert_close(found.energy.held, expected.energy, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.forces.held, expected.forces, rtol=1e-10, atol=1e-12)


def test_blocks_of_atoms(monkeypatch):
    monkeypatch.setattr(allegro, "EDGES", {"cpu": 8000, "cuda": 40})
    graph = build_graph(starts(3))
    here, there = (force_field("allegro").eval().requires_grad_(False) for _ in range(2))
    expected = here(graph)
    with pretended.gpu():
        found = there.to("cuda")(graph.to("cuda"))
    torch.testing.assert_close(found.forces.held, expected.forces, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", models.NAMES)
def test_same_trajectory(name):
    """Neighbour lists, kept over steps and searched anew, go along."""
    options = {"thermostat": Newtonian(0.5), "steps": 5}
    expected = simulate(starts(2), lambda n: ForceFieldCalculator(force_field(name), replicas=n), **options)
    with pretended.gpu():
        moved = force_field(name)
        found = simulate(
            starts(2), lambda n: ForceFieldCalculator(moved, "cuda", replicas=n, skin=0.01), **options
        )
    np.testing.assert_allclose(found.positions, expected.positions, rtol=0, atol=1e-8)


def test_mixed_devices_are_seen():
    with pretended.gpu():
        there = torch.ones(3).to("cuda")
        assert (there + 1).device == pretended.GPU
        with pytest.raises(RuntimeError, match="not on the GPU"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert there.cpu().numpy().sum() == 3
