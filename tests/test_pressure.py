"""Pressure of rollouts against the derivative of the energy by the volume, and displacements of elements."""

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import calculated, cards
from egraff_utils.md import analysis, pressure
from egraff_utils.md.calculator import ReplicaCalculator
from egraff_utils.md.dynamics import Trajectory
from egraff_utils.md.rollout import RolloutConfig, roll_out
from egraff_utils.records import Record
from egraff_utils.report import plots


def copper(seed, *, stress=True):
    atoms = bulk("Cu", a=3.5, cubic=True).repeat(2)
    atoms.rattle(0.05, seed=seed)
    atoms.calc = EMT()
    names = ("energy", "forces", "stress") if stress else ("energy", "forces")
    results = {name: atoms.calc.get_property(name, atoms) for name in names}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def trajectory(frames, stable=None):
    """One replica that runs through these frames."""
    positions = np.array([[atoms.positions for atoms in frames]], np.float32)
    ones, last = np.ones((1, len(frames))), len(frames) - 1
    end = last if stable is None else stable
    return Trajectory(
        np.arange(len(frames)), positions, np.ones_like(positions), -ones, 300 * ones, 300 * ones[..., None],
        np.array([end]), ["bond" if end < last else ""], np.full(last, 0.01),
    )  # fmt: skip


def by_volume(atoms, temperature, step=1e-4):
    """Pressure as minus the derivative of the free energy of an ideal gas and of the energy by the volume."""
    energies, volumes = [], []
    for scale in (1 - step, 1 + step):
        copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, calculator=EMT())
        copy.set_cell(scale * atoms.cell, scale_atoms=True)
        energies.append(copy.get_potential_energy())
        volumes.append(copy.get_volume())
    ideal = len(atoms) * units.kB * temperature * np.diff(np.log(volumes))[0]
    return (ideal - np.diff(energies)[0]) / np.diff(volumes)[0] / units.GPa


def emt(replicas):
    return ReplicaCalculator([EMT() for _ in range(replicas)])


def test_the_pressure_is_the_derivative_by_the_volume():
    frames, visited = [copper(k) for k in range(3)], [copper(k) for k in range(10, 15)]
    metrics, curves = pressure.compare(trajectory(visited, stable=3), frames, emt, temperature=600)
    expected = [by_volume(atoms, 600) for atoms in visited[1:4]]
    assert curves["pressure"][0] == pytest.approx(expected, abs=1e-3)
    assert curves["pressure_steps"].tolist() == [1, 2, 3]
    found = {metric.name: metric.value for metric in metrics}
    assert found["pressure"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert found["pressure_reference"] == pytest.approx(
        np.mean([by_volume(a, 600) for a in frames]), abs=1e-3
    )


def test_there_is_none_without_a_stress_on_both_sides():
    frames = [copper(0), copper(1, stress=False)]
    assert pressure.compare(trajectory(frames), frames, emt, temperature=600) == ([], {})

    class Blind(EMT):
        implemented_properties = ("energy", "forces")

    blind = lambda n: ReplicaCalculator([Blind() for _ in range(n)])  # noqa: E731
    assert pressure.compare(trajectory(frames[:1] * 2), frames[:1], blind, temperature=600) == ([], {})


def test_a_rollout_of_frames_with_a_stress_has_a_pressure(tmp_path, monkeypatch):
    for name in ("RESULTS", "RUNS"):
        monkeypatch.setenv(f"EGRAFF_{name}", str(tmp_path / name))
    ase.io.write(tmp_path / "copper.xyz", [copper(k) for k in range(6)], format="extxyz")
    card = {"name": "pressed", "system": "bulk", "elements": [29], "temperature": 300, "timestep": 2.0,
            "files": {"all": "copper.xyz"}, "splits": {"train": "all", "test": "all"}}  # fmt: skip
    (tmp_path / "pressed.yml").write_text(yaml.safe_dump(card))
    name = cards.dataset(tmp_path / "pressed.yml").name
    record = roll_out(
        RolloutConfig("emt", name, campaign="test", replicas=2, steps=30, progress=False),
        force_field=calculated.of("emt", name),
    )
    assert record.metric("pressure").low < record["pressure"] < record.metric("pressure").high
    assert record["pressure"] == pytest.approx(record["pressure_reference"], abs=3)
    assert record.curves["pressure"].shape == (2, 15)


def test_displacements_of_elements_make_up_that_of_all_atoms():
    """Lithium moves by 3 Å and 4 Å, sulphur stays."""
    frames = [Atoms("Li2S", [[0, 0, 0], [2, 0, 0], [0, 2, 0]], cell=[9, 9, 9], pbc=True) for _ in range(2)]
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.ones((3, 3)))
    moved = [frames[0], frames[1].copy()]
    moved[1].positions += [[3, 0, 0], [0, 0, 4], [0, 0, 0]]
    against = analysis.Reference.from_frames(frames, np.array([[0, 1]]), contiguous=True)
    _, curves = analysis.measure(trajectory(moved), frames[0], against, timestep=1.0, steps=1)
    assert curves["species"].tolist() == ["Li", "S"]
    assert curves["msd_species"][0].tolist() == [[0, 12.5], [0, 0]]
    assert curves["rmsd"][0, 1] ** 2 == pytest.approx(12.5 * 2 / 3)
    assert curves["msd_species_reference"][0].tolist() == [[0, 0], [0, 0]]


def test_displacements_of_elements_are_drawn_beside_those_of_the_reference():
    curves = {
        "time": np.arange(3.0),
        "species": np.array(["Li", "S"]),
        "msd_species": np.array([[[0, 1, 4], [0, 0, 0]], [[0, 3, np.nan], [0, 2, np.nan]]], dtype=float),
        "msd_species_reference": np.array([[[0, np.nan, 5], [0, np.nan, 1]]], dtype=float),
    }
    record = Record(kind="rollout", campaign="demo", dataset="lips", model="mace", seed=0)
    record.__dict__["curves"] = curves
    lines = plots.plot_displacements(record).get_lines()
    assert [line.get_ydata().tolist() for line in lines] == [[0, 2, 4], [0, 5], [0, 1, 0], [0, 1]]
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--"]
    del curves["msd_species"]
    ax = plots.plot_displacements(record)
    assert not ax.get_lines()
    assert "not stored" in ax.texts[0].get_text()
