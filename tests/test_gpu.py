"""A GPU changes speed, not results; without one these tests are skipped."""

import numpy as np
import pytest
import torch
from test_fast import ELEMENTS, starts

from egraff_utils import models
from egraff_utils.graph import build_graph
from egraff_utils.md.calculator import ForceFieldCalculator
from egraff_utils.md.dynamics import Newtonian, simulate
from egraff_utils.models.frozen import allegro
from egraff_utils.train import TrainConfig, fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TOLERANCES = {torch.float64: 1e-10, torch.float32: 3e-5}  # of the largest force


def on_both(name, preset="small", dtype=torch.float64):
    """The same force field on the CPU and on the GPU."""
    made = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        made.append(models.build(name, preset, ELEMENTS, dtype=dtype).to(device))
        made[-1].set_reference({}, 0.02)
    return made


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("preset", ["small", "paper"])
@pytest.mark.parametrize("name", models.NAMES)
def test_same_energies_and_forces(name, preset, dtype):
    """With frozen weights, as in a rollout, and in training."""
    here, there = on_both(name, preset, dtype)
    graph = build_graph(starts(3), dtype=dtype)
    for training in (True, False):
        for ff in (here, there):
            ff.train(training).requires_grad_(training)
        expected, found = here(graph), there(graph.to("cuda"))
        largest = expected.forces.abs().max().item()
        torch.testing.assert_close(found.energy.cpu(), expected.energy, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            found.forces.cpu(), expected.forces, rtol=0, atol=TOLERANCES[dtype] * largest
        )


@pytest.mark.parametrize("edges", [40, 100])
def test_blocks_of_atoms(edges, monkeypatch):
    monkeypatch.setattr(allegro, "EDGES", {"cpu": 8000, "cuda": edges})
    graph = build_graph(starts(3))
    here, there = (ff.eval().requires_grad_(False) for ff in on_both("allegro"))
    expected, found = here(graph), there(graph.to("cuda"))
    torch.testing.assert_close(found.forces.cpu(), expected.forces, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", models.NAMES)
def test_same_trajectory(name):
    trajectories = [
        simulate(
            starts(3),
            lambda replicas, ff=ff: ForceFieldCalculator(ff, replicas=replicas),
            thermostat=Newtonian(0.5),
            steps=20,
        )
        for ff in on_both(name)
    ]
    here, there = (trajectory.positions for trajectory in trajectories)
    np.testing.assert_allclose(there, here, atol=1e-8)


@pytest.mark.parametrize("name", models.NAMES)
def test_training(name, monkeypatch, tmp_path):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path / "runs"))
    record = fit(TrainConfig(name, "copper_emt", preset="tiny", max_steps=30, device="cuda", progress=False))
    assert record.status == "complete", record.message
    assert record["force_mae"] < 2 * record["zero_force_mae"]
    assert torch.cuda.get_device_name() in record.provenance["hardware"]
