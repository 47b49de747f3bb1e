"""Are both sides of the dynamics benchmark the same physics, and is theirs really the upstream package's?"""

import os
import shutil
import time

import ase
import numpy as np
import pytest
import torch
from ase.build import molecule

from benchmarks import Settings, compiled, md
from benchmarks.compare import same
from benchmarks.elsewhere import Elsewhere
from benchmarks.plain_equiformer import PlainEquiformer
from benchmarks.upstream import calculators
from egraff_utils import models
from egraff_utils.graph import build_graph
from egraff_utils.records import Metric


def ethanol(seed=0):
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=seed)
    return atoms


def liquid():
    """Atoms in an oblique cell: rotated, the cell is what TorchMD-Net asks for."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3)[::3] / 4
    cell = [[11.5, 0, 0], [-2.0, 11.5, 0], [1.0, -1.5, 12.0]]
    atoms = ase.Atoms("HCO" * 7 + "H", scaled_positions=grid, cell=cell, pbc=True)
    atoms.positions += rng.normal(0, 0.2, (len(atoms), 3))
    return atoms


@pytest.fixture(params=models.NAMES)
def force_field(request):
    torch.manual_seed(1)
    made = models.build(request.param, "tiny", (1, 6, 8)).eval()
    made.set_reference({1: -10.0, 6: -1000.0, 8: -2000.0}, scale=2.0)
    return made


def scene(force_field, frame, count=2):
    starts = [md._start(frame, 300.0, seed) for seed in range(count)]
    return md.Scene(force_field, starts, temperature=300.0, timestep=0.5)


@pytest.mark.parametrize("frame", [ethanol(), liquid()], ids=["molecule", "periodic"])
def test_upstream_has_our_forces(force_field, frame):
    both = scene(force_field, frame)
    ours, theirs = md.Ours(both, "cpu"), md.Theirs(both, "cpu")
    assert same(ours.first_forces, theirs.first_forces, relative=1e-5) < 1e-5
    assert np.abs(theirs.first_forces).max() > 1e-3


def test_upstream_is_made_of_upstream_modules(force_field):
    name = force_field.build_arguments["name"]
    if name == "equiformer":
        pytest.skip("no upstream package")
    (calculator,) = calculators(force_field, 1)
    model = calculator.models[0] if hasattr(calculator, "models") else calculator.model
    assert not [m for m in model.modules() if type(m).__module__.startswith("egraff_utils")]


@pytest.mark.rare(3)
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_network_has_our_forces(tmp_path):
    """Also with other numbers of edges than those it was compiled with."""
    torch.manual_seed(1)
    force_field = models.build("nequip", "tiny", (1, 6, 8)).eval()
    force_field.set_reference({1: -10.0}, scale=2.0)
    library = tmp_path / "nequip.nequip.pt2"
    for frame in (liquid(), ethanol()):  # a cell is asked for while it is compiled
        both = scene(force_field, frame)
        theirs = compiled.Compiled(library, both, "cpu")
        assert same(md.Ours(both, "cpu").first_forces, theirs.first_forces, relative=1e-5) < 1e-5
        theirs.run(2)
    assert type(theirs.replicas[0].calc).__module__ == "nequip.integrations.ase"


def test_a_compilation_is_part_of_a_rollout_and_pays_back_where_the_step_is_faster():
    """60 s; five replicas make 5000 steps in 10 s (ours, behind 1 s) and 20 s; one a step in 2 and 1 ms."""
    names = ("ours_5", "theirs_5", "start_ours_5", "ours_1", "theirs_1")
    values = [Metric(*pair, "") for pair in zip(names, (500.0, 250.0, 1.0, 500.0, 1000.0), strict=True)]
    found = {metric.name: metric.value for metric in compiled.costs(values, 60.0)}
    assert found == {"compile_time": 60.0, "rollout_ratio": 80 / 11, "payback_steps": pytest.approx(60_000)}
    values[-1] = Metric("theirs_1", 400.0, "")
    assert compiled.costs(values, 60.0)[-1].value is None


def test_an_unknown_architecture_has_no_upstream():
    with pytest.raises(ValueError, match="no upstream calculator is known for None"):
        calculators(models.ForceField(torch.nn.Linear(1, 1), [1]), 1)


def test_both_sides_move_and_start_again_when_they_break():
    torch.manual_seed(0)
    both = scene(models.build("equiformer", "tiny", (1, 6, 8)).eval(), ethanol())
    for side in (md.Ours(both, "cpu"), md.Theirs(both, "cpu")):
        systems = getattr(side, "replicas", None) or [side.atoms]
        before = systems[0].positions.copy()
        side.run(2)
        moved = np.abs(systems[0].positions - before).max()
        assert 0 < moved < 1
        systems[0].set_momenta(1e3 + systems[0].get_momenta())
        side.run(1)
        assert systems[0].get_temperature() < side.limit
        assert np.abs(systems[0].positions - before).max() < moved


class Here:
    """Stands for another process, where a test would wait for it."""

    def __init__(self, settings):
        self.settings, self.clock = settings, settings.clock

    def make(self, maker, *arguments):
        self.made, answer = maker(*arguments)
        return answer

    def run(self, steps):
        self.made.run(steps)

    def stop(self):
        pass


def test_a_record_holds_every_number_of_replicas(monkeypatch, tmp_path):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    force_field = models.build("equiformer", "tiny", (1, 6, 8)).eval()
    monkeypatch.setattr(md.Scene, "of", lambda *cell: scene(force_field, ethanol(), cell[-1]))
    monkeypatch.setattr(md, "Elsewhere", Here)
    monkeypatch.setattr(md, "QUICK", (("small", "ethanol", (1, 2)),))
    monkeypatch.setattr(md, "MODELS", ("equiformer",))
    monkeypatch.setattr(md, "BRIEF", 0.01)
    (record,) = md.run(Settings(quick=True))
    assert (record.kind, record.status, record.message) == ("bench_md", "complete", "")
    named = {metric.name for metric in record.metrics}
    assert {"ratio_1", "ours_2", "theirs_2", "start_ours_1", "force_difference"} <= named
    assert record["ours_2"] > 0


class Sleeper:
    """Takes time without work, and fails when asked to take less than none."""

    def run(self, seconds):
        time.sleep(seconds)


def _make_sleeper(answer):
    return Sleeper(), (answer, os.environ.get("MALLOC_AS_IT_IS"))


def test_another_process_runs_and_says_what_failed():
    elsewhere = Elsewhere(Settings(threads=2))
    try:
        assert elsewhere.make(_make_sleeper, 5) == (5, "1")
        elsewhere.run(0.02)
        assert 0.02 <= elsewhere.seconds < 1
        with pytest.raises(RuntimeError, match="ValueError: sleep length must be non-negative"):
            elsewhere.run(-1)
    finally:
        elsewhere.stop()
    assert "MALLOC_AS_IT_IS" not in os.environ


def test_plain_equiformer_moves_to_another_device_whole():
    force_field = models.build("equiformer", "tiny", (1, 6, 8))
    network = PlainEquiformer(force_field.network).to("meta")
    graph = build_graph(ethanol(), dtype=torch.float32).to("meta")
    vectors = torch.zeros(graph.edge_index.shape[1], 3, device="meta")
    assert network(graph, vectors).shape == (9,)
