"""Does the gate find each fault, and that fault only? A made-up potential for every check."""

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes

from egraff_utils import models, records
from egraff_utils.checks import gate
from egraff_utils.checks.gate import GateConfig, conservation, consistency, edges, smoothness
from egraff_utils.graph import build_graph
from egraff_utils.md.calculator import ForceFieldCalculator
from egraff_utils.models import ForceField

CUTOFF = 5.0


class Morse(torch.nn.Module):
    """Morse pairs with an envelope that is smooth at the cutoff; ``stretch`` and ``chiral`` are faults."""

    def __init__(self, stretch=1.0, chiral=0.0):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.stretch, self.chiral = stretch, chiral

    def forward(self, graph, vectors):
        vectors = vectors * torch.tensor([1.0, 1.0, self.stretch], dtype=vectors.dtype)
        r = vectors.norm(dim=1)
        envelope = (1 - (r / CUTOFF).clamp(max=1) ** 2) ** 3
        well = torch.exp(-2 * (r - 2.7)) - 2 * torch.exp(-(r - 2.7))
        pairs = 0.1 * self.one * well * envelope
        atomic = pairs.new_zeros(len(graph.positions)).index_add(0, graph.edge_index[0], pairs)
        sums = [
            vectors.new_zeros(len(atomic), 3).index_add(0, graph.edge_index[0], w[:, None] * vectors)
            for w in (envelope, envelope / r, envelope * r)
        ]
        return atomic + self.chiral * torch.linalg.cross(sums[0], sums[1]).mul(sums[2]).sum(1)


def force_field(**fault):
    return ForceField(Morse(**fault), range(1, 100), cutoff=CUTOFF)


class Altered(Calculator):
    """Morse with results changed by ``change(atoms, energy, forces)``."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, change):
        super().__init__()
        self.change, self.morse = change, ForceFieldCalculator(force_field())

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy, forces = consistency.predict(self.morse, atoms)
        self.results = dict(zip(("energy", "forces"), self.change(atoms, energy, forces), strict=True))


def crystal(symbols="Cu4"):
    atoms = ase.Atoms(symbols, bulk("Cu", a=3.8, cubic=True).positions, cell=3 * [3.8], pbc=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def cluster():
    corners = 1.9 * np.vstack([np.eye(3), -np.eye(3)])
    atoms = ase.Atoms("Cu6", corners)
    atoms.rattle(0.1, seed=1)
    atoms.positions += np.array([0.55, 0, 0]) - atoms.positions.mean(0)
    return atoms


def five():
    frames = [crystal() for _ in range(5)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    return frames


def scaled_forces(atoms, energy, forces):
    return energy, 1.001 * forces


def place_matters(atoms, energy, forces):
    return energy + 0.1 * len(atoms) * np.floor(10 * atoms.positions[:, 0].mean() % 500), forces


def order_matters(atoms, energy, forces):
    if not atoms.pbc.any():
        return energy, forces
    return energy + 1e-3 * len(atoms) * (atoms.numbers[:4] @ np.arange(4)), forces


def images_matter(atoms, energy, forces):
    """A term in the second fractional coordinate, of twice the period of the cell."""
    if not atoms.pbc.any():
        return energy, forces
    inverse = np.linalg.inv(atoms.cell.array)
    s = atoms.positions @ inverse[:, 1]
    angle = np.pi * (s - s.mean())
    pull = np.sin(angle) - np.sin(angle).mean()
    return energy + 0.1 * np.cos(angle).sum(), forces + 0.1 * np.pi * pull[:, None] * inverse[:, 1]


def not_additive(atoms, energy, forces):
    return energy + 0.01 * energy**2, (1 + 0.02 * energy) * forces


def lonely(atoms, energy, forces):
    return energy + 0.1 * (len(atoms) == 1), forces


def truncated(atoms, energy, forces):
    return energy - 1e-4 * build_graph(atoms, CUTOFF).edge_index.shape[1] / 2, forces


def broken_frame(atoms, energy, forces):
    bad = five()[2].positions
    same = atoms.positions.shape == bad.shape and np.allclose(atoms.positions, bad, atol=1e-9)
    return np.nan if same else energy, forces


class Accelerated:
    """Pushes along the motion since the last call where it is that of a time step."""

    def __init__(self):
        self.last = np.zeros((0, 3))

    def __call__(self, atoms, energy, forces):
        same = self.last.shape == atoms.positions.shape
        move = atoms.positions - self.last if same else np.zeros_like(forces)
        self.last = atoms.positions.copy()
        return energy, forces + 20 * move * (1e-3 < np.abs(move).max() < 0.1)


FAULTS = {
    "finite": (lambda: Altered(broken_frame), five),
    "gradient": (lambda: Altered(scaled_forces), crystal),
    "rotation": (lambda: ForceFieldCalculator(force_field(stretch=1.01)), crystal),
    "reflection": (lambda: ForceFieldCalculator(force_field(chiral=0.05)), crystal),
    "translation": (lambda: Altered(place_matters), cluster),
    "permutation": (lambda: Altered(order_matters), lambda: crystal("CuAgAuPt")),
    "images": (lambda: Altered(images_matter), crystal),
    "extensivity": (lambda: Altered(not_additive), crystal),
    "isolated": (lambda: Altered(lonely), crystal),
    "jump": (lambda: Altered(truncated), crystal),
    "drift": (lambda: Altered(Accelerated()), crystal),
}


def look(calculator, atoms, **options):
    short = {"cutoff": CUTOFF, "structures": 1, "runs": 2, "run_steps": 30, "timestep": 2.0}
    return gate.examine(calculator, atoms, **short | options)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_gate_names_the_fault(fault):
    make, atoms = FAULTS[fault]
    record = look(make(), atoms())
    assert gate.badge(record) == fault
    assert record["passed"] == 0
    assert record.message.startswith(f"{fault}; skipped: ")


def test_every_check_has_a_fault():
    assert set(FAULTS) | {"edges"} == set(gate.CHECKS)


def test_a_sound_calculator_passes():
    record = look(ForceFieldCalculator(force_field()), crystal())
    assert gate.badge(record) == "pass"
    assert record.message == "skipped: edges (a calculator shows no graph)"
    assert record["jump"] < 1e-6


def test_the_size_of_the_jump_is_that_of_one_pair():
    record = look(Altered(truncated), crystal())
    assert record["jump"] == pytest.approx(0.1, rel=1e-4)
    assert record.curves["jump_pairs"][0] == pytest.approx([0.1, 0.1, 0.1], rel=0.2)


def test_an_edge_that_is_missing_or_twice_is_counted():
    atoms = crystal()
    graph = build_graph(atoms, CUTOFF)
    assert edges.edge_errors(atoms, CUTOFF, graph) == 0
    fewer = graph._replace(edge_index=graph.edge_index[:, 2:], shifts=graph.shifts[2:])
    assert edges.edge_errors(atoms, CUTOFF, fewer) == 2
    rows = torch.cat([torch.arange(len(graph.shifts)), torch.tensor([0])])
    twice = graph._replace(edge_index=graph.edge_index[:, rows], shifts=graph.shifts[rows])
    assert edges.edge_errors(atoms, CUTOFF, twice) == 1


def test_edges_of_positions_with_few_digits_are_right():
    """Vectors of six decimals lie between two roundings to five; one edge is then led astray."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.positions += np.random.default_rng(0).normal(0, 0.1, atoms.positions.shape)
    atoms.positions[:] = atoms.positions.round(6)
    assert edges.edge_errors(atoms, CUTOFF) == 0
    graph = build_graph(atoms, CUTOFF)
    graph.shifts[3, 0] += 0.01
    assert edges.edge_errors(atoms, CUTOFF, graph) == 1


def test_edges_without_images_are_found():
    atoms = crystal()
    bare = atoms.copy()
    bare.pbc = False
    missing = len(edges.brute_force_edges(atoms, CUTOFF)[0]) - len(edges.brute_force_edges(bare, CUTOFF)[0])
    assert missing > 100
    assert edges.edge_errors(atoms, CUTOFF, build_graph(bare, CUTOFF)) == missing


def test_velocity_verlet_on_a_spring():
    """A fluctuation of second order in the time step, and no drift."""
    found = {}
    for timestep in (1.0, 2.0):
        record = look(
            ForceFieldCalculator(force_field()), crystal(), timestep=timestep, run_steps=int(100 / timestep)
        )
        found[timestep] = record["fluctuation"]
    assert 2.5 < found[2.0] / found[1.0] < 6.0


def test_slope_of_a_known_line():
    times = np.linspace(0, 2, 50)
    slope, scatter = conservation.slopes(times, np.array([3 * times + 1, np.nan * times]))
    assert slope[0] == pytest.approx(3)
    assert scatter[0] == pytest.approx(0, abs=1e-12)
    assert np.isnan(slope[1])


def test_a_run_that_breaks_fails_the_drift():
    def breaks(atoms, energy, forces):
        far = np.abs(atoms.positions - crystal().positions).max() if len(atoms) == 4 else 0
        return energy, forces * (np.nan if 0.02 < far < 1 else 1.0)

    assert "drift" in gate.failed(look(Altered(breaks), crystal(), tolerances={"images": 1.0}))


def test_without_a_cutoff_the_jump_is_skipped():
    record = look(Altered(truncated), cluster(), cutoff=None)
    assert gate.badge(record) == "pass"
    assert "jump (no cutoff is known)" in record.message
    assert "images (nothing is periodic)" in record.message


@pytest.mark.parametrize("name", models.NAMES)
def test_models_with_random_weights(name, tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    monkeypatch.setattr(smoothness, "WINDOW", np.array([-0.01, 0.01]))
    torch.manual_seed(0)
    ff = models.build(name, "tiny", [29]).eval()
    with torch.no_grad():
        for parameter in ff.network.parameters():  # biases are zero before training
            parameter += 0.1 * torch.randn_like(parameter)
    config = GateConfig(name, "copper_emt", structures=1, runs=1, run_steps=5)
    record = gate.check(config, force_field=ff)
    jumps = name in ("equiformer", "torchmd_net")
    assert set(gate.failed(record)) - {"drift"} == ({"jump"} if jumps else set())
    assert set(gate.CHECKS) <= {metric.name for metric in record.metrics}
    assert record.path.is_file()
    assert record.message == gate.badge(record).replace("pass", "")
    assert gate.check(config, force_field=ff).provenance == record.provenance


def test_errors_name_what_is_wrong():
    calculator, at_rest = ForceFieldCalculator(force_field()), bulk("Cu", a=3.8)
    with pytest.raises(ValueError, match="forces vanish"):
        look(calculator, at_rest)
    with pytest.raises(TypeError, match="no ASE calculator"):
        look("mace", crystal())
    with pytest.raises(ValueError, match="no frame"):
        look(calculator, [])
    with pytest.raises(ValueError, match="frame 1 is Cu6, not Cu4 like frame 0"):
        look(calculator, [crystal(), cluster()])
    for change, text in (
        (lambda atoms: atoms.set_cell(3 * [3.9]), "frame 1 has the cell"),
        (lambda atoms: atoms.set_masses(4 * [2.0]), "frame 1 has the masses"),
    ):
        other = crystal()
        change(other)
        with pytest.raises(ValueError, match=text):
            look(calculator, [crystal(), other])
    with pytest.raises(ValueError, match="unknown check 'jumps'; did you mean 'jump'"):
        look(calculator, crystal(), tolerances={"jumps": 1.0})
    with pytest.raises(ValueError, match="run_steps must be positive and finite, not 0"):
        GateConfig("mace", "copper_emt", run_steps=0)
    with pytest.raises(FileNotFoundError, match="is not trained on"):
        gate.check(GateConfig("mace", "copper_emt", campaign="nowhere"))


def test_tolerances_are_part_of_the_parameters():
    limits = GateConfig("mace", "ethanol").parameters()["tolerances"]
    assert limits["jump"] == gate.CHECKS["jump"].tolerance
    stored = records.Record("gate", "demo", "ethanol", "mace", 0, {"tolerances": limits})
    assert gate.badge(stored) == "pass"
