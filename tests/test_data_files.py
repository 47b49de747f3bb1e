"""What is read from files as users have them? Boxes, masses, other names and units, faults in any split."""

import dataclasses

import ase.io
import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import cards, data, train

# -- periodicity ------------------------------------------------------------------------------------------


def box_card(folder, frames, system="molecule", **changes):
    """Card of a file of these frames."""
    ase.io.write(folder / "box.xyz", frames, format="extxyz")
    fixed = {"temperature": 300, "timestep": 0.5, "files": {"all": "box.xyz"}, "splits": {"train": "all"}}
    numbers = sorted({int(z) for atoms in frames for z in atoms.numbers})
    return cards.DatasetCard(name="box", system=system, elements=numbers, folder=folder, **(fixed | changes))


def labelled(atoms, energy=-1.0):
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.ones((len(atoms), 3)))
    return atoms


@pytest.mark.parametrize("cell", [10 * np.eye(3), [[10, 0, 0], [3, 10, 0], [1, 2, 10]]])
def test_a_molecule_wrapped_into_its_cell_is_put_together(tmp_path, cell):
    ethanol = molecule("CH3CH2OH", cell=cell, pbc=True)
    frames = []
    for shift in ([5, 9.8, 5], [0.1, 5, 9.9], [5, 5, 5]):
        atoms = ethanol.copy()
        atoms.positions += shift
        atoms.wrap()
        frames.append(labelled(atoms))
    for atoms in data.load(box_card(tmp_path, frames), "train"):
        assert not atoms.pbc.any()
        np.testing.assert_allclose(atoms.get_all_distances(), ethanol.get_all_distances(), atol=1e-6)


def test_a_liquid_is_no_molecule_and_a_slab_is_neither(tmp_path):
    crystal = labelled(bulk("Cu", cubic=True) * 2)
    with pytest.raises(ValueError, match=r"box.xyz, frame 0 is periodic \(pbc T T T\), but .* system: bulk"):
        data.load(box_card(tmp_path, [crystal]), "train")
    assert data.load(box_card(tmp_path, [crystal], "bulk"), "train")[0].pbc.all()
    slab = labelled(crystal.copy())
    slab.pbc = [True, True, False]
    for system in ("bulk", "molecule"):
        with pytest.raises(ValueError, match=r"periodic in some directions only \(pbc T T F\); slabs"):
            data.load(box_card(tmp_path, [slab], system), "train")
    slab.pbc = False
    with pytest.raises(ValueError, match=r"is not periodic \(pbc F F F\), but the card says system: bulk"):
        data.load(box_card(tmp_path, [labelled(slab)], "bulk"), "train")


def test_masses_momenta_stress_and_virial_of_a_file_are_kept(tmp_path):
    heavy = molecule("H2O", cell=9 * np.eye(3))
    heavy.set_masses([16, 2.014, 2.014])
    heavy.set_velocities(np.full((3, 3), 0.1))
    heavy.info["virial"] = np.eye(3)
    calc = SinglePointCalculator(heavy, energy=-1.0, forces=np.ones((3, 3)), stress=np.arange(6) / 10)
    heavy.calc = calc
    changes = {"units": {"energy": "kcal/mol"}, "files": {"all": "box.traj"}}
    card = box_card(tmp_path, [heavy], **changes)
    ase.io.write(tmp_path / "box.traj", [heavy])
    atoms = data.load(card, "train")[0]
    np.testing.assert_allclose(atoms.get_masses(), [16, 2.014, 2.014])
    np.testing.assert_allclose(atoms.get_velocities(), 0.1)
    kcal = units.kcal / units.mol
    np.testing.assert_allclose(atoms.get_stress(), kcal * np.arange(6) / 10)
    np.testing.assert_allclose(atoms.info["virial"], kcal * np.eye(3))


# -- files as users have them -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["box.traj", "box.db", "box.xyz.gz", "box.EXTXYZ"])
def test_files_that_ase_writes_are_read_by_their_ending(tmp_path, name):
    frames = [labelled(molecule(kind), -energy) for kind, energy in (("H2O", 1.5), ("CH4", 2.5))]
    card = box_card(tmp_path, frames, files={"all": name})
    ase.io.write(tmp_path / name, frames, format="extxyz" if "EXT" in name else None)
    found = data.load(card, "train")
    assert [atoms.get_potential_energy() for atoms in found] == [-1.5, -2.5]
    assert [len(atoms) for atoms in found] == [3, 5]
    np.testing.assert_allclose(found[1].positions, frames[1].positions, atol=1e-7)


def test_a_source_may_have_several_files(tmp_path):
    frames = [labelled(molecule("H2O"), -float(k)) for k in range(4)]
    card = box_card(tmp_path, frames, files={"all/first": "box.xyz", "all/second": "more.traj"})
    ase.io.write(tmp_path / "more.traj", frames[:2])
    with pytest.raises(ValueError, match="its files are read differently: ase, extxyz"):
        data.load(card, "train")
    ase.io.write(tmp_path / "more.xyz", frames[:2], format="extxyz")
    card = box_card(tmp_path, frames, files={"all/first": "box.xyz", "all/second": "more.xyz"})
    assert [a.get_potential_energy() for a in data.load(card, "train")] == [0, -1, -2, -3, 0, -1]


def test_energies_under_another_name_are_found_and_said(tmp_path):
    atoms = molecule("H2O")
    atoms.info |= {"REF_energy": -5.0, "dft_energy": -7.0}
    atoms.arrays["REF_forces"] = np.ones((3, 3))
    card = box_card(tmp_path, [atoms])
    with pytest.warns(
        UserWarning, match="box.xyz: energies are taken from 'REF_energy'; name them under keys"
    ):
        assert data.load(card, "train")[0].get_potential_energy() == -5
    named = dataclasses.replace(card, keys={"energy": "dft_energy"})
    assert data.load(named, "train")[0].get_potential_energy() == -7
    assert data.load(named, "train")[0].get_forces()[0, 0] == 1


def test_forces_may_have_a_unit_of_their_own(tmp_path):
    card = box_card(
        tmp_path, [labelled(molecule("H2O"))], units={"energy": "Hartree", "forces": "Hartree/Bohr"}
    )
    atoms = data.load(card, "train")[0]
    assert atoms.get_potential_energy() == pytest.approx(-27.2114, abs=1e-4)
    assert atoms.get_forces()[0, 0] == pytest.approx(51.422, abs=1e-3)


# -- before a training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["no forces", "empty", "nan"])
def test_a_fault_in_any_split_is_told_before_a_training(tmp_path, monkeypatch, fault):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    frames = [labelled(molecule("H2O"), -float(k)) for k in range(8)]
    for k, atoms in enumerate(frames):
        atoms.positions[0, 2] += 0.01 * k
    if fault == "no forces":
        del frames[-1].calc.results["forces"]
    if fault == "nan":
        frames[-1].calc.results["energy"] = np.nan
    parts = {"train": ":4", "val": "40:60" if fault == "empty" else "4:6", "test": "6:"}
    card = box_card(tmp_path, frames, splits={k: {"source": "all", "slice": v} for k, v in parts.items()})
    monkeypatch.setattr(train, "new_learner", None)
    told = {"no forces": "box/test: frame 1 .* no forces", "empty": "box/val has no frames"}
    with pytest.raises(ValueError, match=told.get(fault, "box/test: frame 1 .* holds energy not finite")):
        train.fit(train.TrainConfig("mace", card, preset="tiny", max_steps=1, progress=False))


def test_a_file_that_changes_under_its_name_has_another_digest(tmp_path):
    card = box_card(tmp_path, [labelled(molecule("H2O"))])
    before = data.digest(card, ("train",)), data.scene_digest(card, "train")
    box_card(tmp_path, [labelled(molecule("H2O"), -2.0)])
    after = data.digest(card, ("train",)), data.scene_digest(card, "train")
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert data.load(card, "train")[0].get_potential_energy() == -2
    told = dataclasses.replace(card, oracle="emt")
    assert data.scene_digest(told, "train") != after[1]
    assert data.digest(told, ("train",)) == after[0]
