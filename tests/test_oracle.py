"""Errors on a model's own frames, with references whose distance from the model is known exactly."""

import dataclasses

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator, CalculatorError
from ase.calculators.singlepoint import SinglePointCalculator
from test_calculator import SoftSpheres

from egraff_utils import cards, reference
from egraff_utils.md import own_frames, rollout
from egraff_utils.md.calculator import ForceFieldCalculator
from egraff_utils.md.dynamics import Trajectory
from egraff_utils.md.rollout import RolloutConfig, roll_out


class Spring(Calculator):
    """Every atom on a spring of 2 eV/Å² to the origin; gives up where one is farther than 3 Å."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        if np.abs(atoms.positions).max() > 3:
            raise CalculatorError("too far")
        self.results = {"energy": float(np.square(atoms.positions).sum()), "forces": -2 * atoms.positions}


class Cable(BaseCalculator):
    """As :class:`Spring`, without what only a ``Calculator`` has, such as ``reset``."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms, properties, system_changes):
        spring = Spring()
        spring.calculate(atoms, properties)
        self.results = spring.results


class Stiffer(ForceFieldCalculator):
    """The soft spheres of the test model with forces half as large again, and 0.2 eV more."""

    def __init__(self):
        super().__init__(SoftSpheres([29]))

    def calculate(self, *arguments, **keywords):
        super().calculate(*arguments, **keywords)
        self.results = {"energy": self.results["energy"] + 0.2, "forces": 1.5 * self.results["forces"]}


class Incomplete(Calculator):
    """Energies only."""

    implemented_properties = ["energy"]


def trajectory(positions, energy_error, factor=1.1, stable=None):
    """A model whose forces are ``factor`` times those of :class:`Spring`."""
    replicas, frames = positions.shape[:2]
    stable = [frames - 1] * replicas if stable is None else stable
    behind = np.arange(frames) > np.array(stable)[:, None]
    energy = np.square(positions).sum((2, 3)) + energy_error
    positions, forces = positions.astype(np.float32), (-2 * factor * positions).astype(np.float32)
    for array in (positions, forces, energy):
        array[behind] = np.nan
    kelvin = np.zeros((replicas, frames))
    return Trajectory(
        np.arange(frames),
        positions,
        forces,
        energy,
        kelvin,
        kelvin[..., None],
        np.array(stable),
        ["broke" if step < frames - 1 else "" for step in stable],
        np.zeros(frames - 1),
    )


@pytest.fixture
def positions():
    """Of two replicas, 41 frames, two atoms, Å."""
    return np.random.default_rng(0).uniform(0.5, 1.5, (2, 41, 2, 3))


def test_known_errors_are_found(positions):
    """Forces off by a tenth; energies off by 0.4 eV, and by 0.02 eV up and down in turn."""
    swing = np.where(np.arange(41) // 2 % 2, 0.02, -0.02)
    found, curves = own_frames.label(trajectory(positions, 0.4 + swing), Atoms("H2"), Spring())
    values = {metric.name: metric.value for metric in found}
    assert curves["oracle_steps"].tolist() == list(range(2, 41, 2))
    np.testing.assert_allclose(curves["oracle_fv"], 0.1 / 2.1, rtol=1e-5)
    assert values["oracle_fv"] == pytest.approx(0.1 / 2.1)
    chosen = positions[:, 2::2]
    assert values["oracle_force_mae"] == pytest.approx(0.1 * np.abs(2 * chosen).mean() * 1000, rel=1e-5)
    assert values["oracle_energy_mae_per_atom"] == pytest.approx(400 / 2, rel=1e-5)
    assert values["oracle_energy_mae_shifted_per_atom"] == pytest.approx(20 / 2, rel=1e-4)
    true = np.square(chosen).sum((2, 3))
    error = 0.4 + swing[2::2]
    expected = error / np.sqrt(true**2 + (true + error) ** 2)
    np.testing.assert_allclose(curves["oracle_ev_root"], expected, rtol=1e-5)
    assert values["oracle_labelled"] == 1


def test_a_replica_counts_up_to_its_end_only(positions):
    found, curves = own_frames.label(trajectory(positions, 0.4, stable=[40, 5]), Atoms("H2"), Spring())
    assert np.isfinite(curves["oracle_fv"]).sum(1).tolist() == [20, 2]
    assert curves["oracle_sound"].tolist() == [20, 2]
    assert {metric.n for metric in found} == {2}


def test_replicas_without_own_frames_have_no_error(positions):
    found, curves = own_frames.label(trajectory(positions, 0.4, stable=[0, 0]), Atoms("H2"), Spring())
    assert curves["oracle_fv"].shape == (2, 0)
    assert {(metric.value, metric.n) for metric in found} == {(None, 0)}


@pytest.mark.parametrize("calculator", [Spring(), Cable()], ids=["calculator", "without reset"])
def test_frames_that_the_reference_cannot_do_are_counted(positions, calculator):
    positions[1, 20:] += 5
    found, curves = own_frames.label(trajectory(positions, 0.4), Atoms("H2"), calculator)
    assert np.isfinite(curves["oracle_energy_error"]).sum(1).tolist() == [20, 9]
    values = {metric.name: metric.value for metric in found}
    assert values["oracle_labelled"] == pytest.approx((1 + 9 / 20) / 2)
    assert values["oracle_fv"] == pytest.approx(0.1 / 2.1)


@pytest.fixture
def copper(tmp_path, monkeypatch):
    """Card of a copper dataset with stored frames of its own and a reference from this file."""
    for name in ("results", "runs", "generated"):
        monkeypatch.setenv(f"EGRAFF_{name.upper()}", str(tmp_path / name))
    return _card(tmp_path, {"calculator": "test_oracle.Stiffer"})


def _card(folder, own):
    rng, frames = np.random.default_rng(0), []
    for _ in range(6):
        atoms = Atoms(
            "Cu4", [[0, 0, 0], [0, 1.9, 1.9], [1.9, 0, 1.9], [1.9, 1.9, 0]], cell=[3.8] * 3, pbc=True
        )
        atoms.positions += 0.05 * rng.standard_normal((4, 3))
        atoms.calc = Stiffer()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    ase.io.write(folder / "copper.xyz", frames, format="extxyz")
    mapping = {"name": "copper_own", "system": "bulk", "elements": [29], "temperature": 900, "timestep": 2.0,
               "reader": "extxyz", "files": {"all": "copper.xyz"}, "oracle": own,
               "temperatures": {"hot": 1800},
               "splits": {split: {"source": "all"} for split in ("train", "val", "test", "hot")}}  # fmt: skip
    path = folder / "copper.yml"
    path.write_text(yaml.safe_dump(mapping))
    return cards.dataset(path)


@pytest.mark.parametrize("split", ["test", "hot"])
@pytest.mark.parametrize("protocol", ["corrected", "as_coded"])
def test_own_errors_are_apart_from_the_divergence(copper, split, protocol):
    """The error on own frames is the same at every step; the trajectories part, and FV with them."""
    config = RolloutConfig(
        "own", "copper_own", "test", replicas=2, steps=60, split=split, protocol=protocol, progress=False
    )
    record = roll_out(config, force_field=SoftSpheres([29]))
    assert record["oracle_energy_mae_per_atom"] == pytest.approx(200 / 4, rel=1e-4)
    assert record["oracle_energy_mae_shifted_per_atom"] == pytest.approx(0, abs=0.01)
    np.testing.assert_allclose(record.curves["oracle_fv"], 0.2, rtol=1e-3)
    assert np.ptp(record.curves["fv"]) > 0.05


def test_a_named_calculator_labels_as_it_does_itself(copper):
    """Any ASE calculator, here one of ASE's, with its arguments."""
    own = {"calculator": "ase.calculators.lj.LennardJones", "arguments": {"sigma": 2.0, "rc": 3.0}}
    made = reference.calculator(dataclasses.replace(copper, oracle=own))
    pair = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.0 * 2 ** (1 / 6)]])
    pair.calc = made
    shift = 4 * ((2 / 3) ** 12 - (2 / 3) ** 6)  # the potential is zero at its end
    assert pair.get_potential_energy() == pytest.approx(-1 - shift)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("gfn3", "unknown oracle of the card of copper_own 'gfn3'; did you mean 'gfn2'"),
        ({"calculater": "ase.calculators.emt.EMT"}, "did you mean 'calculator'"),
        ({"calculator": "EMT"}, "write the calculator as package.module.Class, not 'EMT'"),
    ],
)
def test_a_card_with_a_wrong_oracle_is_not_read(copper, own, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(copper, oracle=own)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("ase.calculators.emmt.EMT", "cannot import ase.calculators.emmt"),
        ("ase.calculators.emt.EMTT", "ase.calculators.emt has no EMTT"),
        ("ase.calculators.emt.parameters", "is not the class of an ASE calculator"),
        ("ase.Atoms", "is not the class of an ASE calculator"),
        ("test_oracle.Stiffer", "Stiffer does not take {'stiff': 3}"),
        ("test_oracle.Incomplete", "gives no forces"),
        ("test_oracle.Spring", "copper_own, test_oracle.Spring, fails on Cu2: CalculatorError: too far"),
    ],
)
def test_a_reference_that_cannot_be_had_says_why(copper, own, message):
    arguments = {"stiff": 3} if own == "test_oracle.Stiffer" else {}
    card = dataclasses.replace(copper, oracle={"calculator": own, "arguments": arguments})
    with pytest.raises(ValueError, match=message):
        reference.calculator(card, Atoms("Cu2", [[0, 0, 0], [0, 0, 4]]))


def test_what_is_no_calculator_is_never_called(copper, tmp_path):
    command = {"calculator": "os.system", "arguments": {"command": f"touch {tmp_path}/ran"}}
    with pytest.raises(ValueError, match="os.system is not the class of an ASE calculator"):
        reference.calculator(dataclasses.replace(copper, oracle=command))
    assert not (tmp_path / "ran").exists()


def test_an_element_without_a_reference_is_an_error_before_the_simulation(tmp_path, monkeypatch):
    """The soft spheres know copper as manganese here, of which EMT has no parameters."""
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    card = _card(tmp_path, "emt")
    text = (tmp_path / "copper.xyz").read_text().replace("Cu ", "Mn ")
    (tmp_path / "copper.xyz").write_text(text)
    (tmp_path / "copper.yml").write_text((tmp_path / "copper.yml").read_text().replace("- 29", "- 25"))
    card = cards.dataset(tmp_path / "copper.yml")
    monkeypatch.setattr(rollout, "simulate", None)  # would be a TypeError
    config = RolloutConfig("own", card.name, "test", replicas=2, protocol="as_coded", progress=False)
    with pytest.raises(
        ValueError, match=r"oracle of copper_own, ase.calculators.emt.EMT, fails on Mn4: .*Mn"
    ):
        roll_out(config, force_field=SoftSpheres([25]))
