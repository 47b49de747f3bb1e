"""Does a file say what its card says, in every frame and in every format? What contradicts is refused."""

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from egraff_utils import cards, data, readers


def written(folder, frames, name="f.xyz", **changes):
    """Card of a file of these frames, or of these arrays."""
    if isinstance(frames, dict):
        np.savez(folder / name, **frames)
    else:
        ase.io.write(folder / name, frames)
    fixed = {"system": "molecule", "elements": [1, 8], "temperature": 300, "timestep": 0.5}
    fixed |= {"files": {"all": name}, "splits": {"train": "all", "test": "all"}}
    return cards.DatasetCard(name="f", folder=folder, **(fixed | changes))


def water(count=3, **labels):
    frames = []
    for k in range(count):
        frames.append(molecule("H2O", positions=molecule("H2O").positions + 0.01 * k))
        frames[-1].calc = SinglePointCalculator(frames[-1], energy=-1.0, forces=np.ones((3, 3)), **labels)
    return frames


def arrays(frames, **more):
    found = {"pos": np.stack([atoms.positions for atoms in frames]), "atomic_numbers": frames[0].numbers}
    return found | {"energy": np.zeros(len(frames)), "forces": np.ones((len(frames), 3, 3))} | more


def test_the_cell_of_a_card_may_not_contradict_a_periodic_file(tmp_path):
    copper = bulk("Cu", a=3.6, cubic=True)
    copper.calc = SinglePointCalculator(copper, energy=0.0, forces=np.ones((4, 3)))
    same = {"system": "bulk", "elements": [29], "cell": 3.6 * np.eye(3)}
    assert len(data.load(written(tmp_path, [copper], **same), "train")) == 1
    card = written(tmp_path, [copper], **(same | {"cell": 4.0 * np.eye(3)}))
    with pytest.raises(ValueError, match=r"f.xyz, frame 0 has the cell .*3.6.* but the card says .*4.0"):
        data.load(card, "train")


@pytest.mark.parametrize(("cell", "edge"), [(None, readers.BOX), (12.0 * np.eye(3), 12.0)])
def test_a_molecule_without_a_cell_has_one_for_its_distributions(tmp_path, cell, edge):
    atoms = data.load(written(tmp_path, water(), cell=cell), "train")[0]
    np.testing.assert_allclose(atoms.cell.array, edge * np.eye(3))
    assert not atoms.pbc.any()


@pytest.mark.parametrize("stated", [{}, {"pbc": np.ones(3, bool)}])
def test_a_wrapped_molecule_of_an_npz_file_is_put_together(tmp_path, stated):
    frames = water()
    for atoms in frames:
        atoms.set_cell(10 * np.eye(3))
        atoms.pbc = True
        atoms.positions += [5, 9.9, 5]
        atoms.wrap()
    card = written(tmp_path, arrays(frames, cell=10 * np.eye(3), **stated), "f.npz")
    assert np.ptp(frames[0].positions[:, 1]) > 9
    assert np.ptp(data.load(card, "train")[0].positions[:, 1]) < 2


def test_masses_stress_and_virial_of_an_npz_file_are_kept(tmp_path):
    more = {"masses": [16.0, 2.0, 2.0], "stress": np.ones((3, 3, 3)), "virial": 2 * np.ones((3, 9))}
    atoms = data.load(written(tmp_path, arrays(water(), **more), "f.npz"), "test")[1]
    np.testing.assert_array_equal(atoms.get_masses(), [16, 2, 2])
    np.testing.assert_array_equal(atoms.get_stress(), np.ones(6))
    np.testing.assert_array_equal(atoms.info["virial"], 2 * np.ones(9))


@pytest.mark.filterwarnings("error")
def test_a_molecule_in_a_huge_cell_stays_as_it_is():
    """A list of neighbours would take gigabytes, of which matscipy warns."""
    positions = molecule("H2O").positions + 5000
    assert readers.whole(positions, 1e4 * np.eye(3)) is positions


@pytest.mark.parametrize("name", ["f.traj", "f.db", "f.xyz"])
def test_fixed_atoms_are_not_kept_and_it_is_said(tmp_path, name):
    frames = water()
    for atoms in frames[1:]:
        atoms.set_constraint(FixAtoms([0]))
    columns = {"columns": ["symbols", "positions", "forces", "move_mask"]} if name == "f.xyz" else {}
    card = written(tmp_path, frames, name)
    ase.io.write(tmp_path / name, frames[1:], **columns)
    with pytest.warns(
        UserWarning, match=f"{name}: 2 of 2 frames have constraints, .* not kept: .* all atoms move"
    ):
        found = data.load(card, "train")
    assert not found[0].constraints
    np.testing.assert_array_equal(found[0].get_forces(), np.ones((3, 3)))


def test_a_dump_of_lammps_has_no_energies(tmp_path):
    """ASE gives its frames the energy 0, on which a training would go on."""
    boxes = "ITEM: NUMBER OF ATOMS\n1\nITEM: BOX BOUNDS pp pp pp\n0 3\n0 3\n0 3\n"
    rows = "ITEM: ATOMS id type x y z fx fy fz\n1 1 {0} 0 0 {0} 1 1\n"
    text = "".join(f"ITEM: TIMESTEP\n{k}\n{boxes}{rows.format(k / 10)}" for k in range(3))
    (tmp_path / "f.lammpstrj").write_text(text)
    with pytest.raises(ValueError, match="f.lammpstrj cannot be read as ase: its energies are all 0"):
        readers.raw("ase", [tmp_path / "f.lammpstrj"])


def test_a_file_in_an_unknown_format_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "spice.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ValueError, match="spice.hdf5 is in no format that ASE reads .* write its frames as"):
        readers.raw("ase", [tmp_path / "spice.hdf5"])


def test_a_gradient_is_not_taken_for_forces(tmp_path):
    found = arrays(water())
    found["dft_total_gradient"] = -found.pop("forces")
    card = written(tmp_path, found, "f.npz", keys={"forces": "dft_total_gradient"})
    with pytest.raises(ValueError, match="f.npz: 'dft_total_gradient' is a gradient, and forces are minus"):
        data.load(card, "train")


@pytest.mark.parametrize("quantity", ["velocities", "momenta"])
def test_velocities_of_an_npz_file_are_not_read_and_it_is_said(tmp_path, quantity):
    card = written(tmp_path, arrays(water(), **{quantity: np.ones((3, 3, 3))}), "f.npz")
    with pytest.warns(UserWarning, match=f"f.npz: its {quantity} are not read, .* unit; write .*traj"):
        assert not data.load(card, "train")[0].has("momenta")


@pytest.mark.parametrize("name", ["f.xyz", "f.traj"])
def test_a_file_with_two_names_of_the_energy_is_refused(tmp_path, name):
    frames = water(8)
    frames[5].info["REF_energy"] = -999.0
    del frames[5].calc.results["energy"]
    with pytest.raises(
        ValueError, match=f"{name} cannot be read as .*: frame 5: it holds no 'energy'; .*REF_"
    ):
        data.load(written(tmp_path, frames, name), "train")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda atoms: atoms.calc.results["stress"].put(0, np.nan), "stress not finite"),
        (lambda atoms: atoms.set_velocities(np.full((3, 3), np.nan)), "momenta not finite"),
        (lambda atoms: atoms.set_masses([16, 0, 1]), "an atom without a mass"),
        (lambda atoms: atoms.set_masses([16, np.nan, 1]), "masses not finite"),
        (lambda atoms: atoms.calc.results.update(stress=np.zeros(4)), "a stress of 4 numbers, not 6"),
        (lambda atoms: atoms.info.update(virial=np.zeros(6)), "a virial of 6 numbers, not 9"),
    ],
)
def test_what_a_frame_holds_beside_energy_and_forces_is_checked(tmp_path, change, told):
    frames = data.load(written(tmp_path, water(stress=np.zeros(6))), "test")
    change(frames[1])
    with pytest.raises(ValueError, match=rf"f/test: frame 1 \(frame 1 of source all\) holds {told}"):
        data.check_splits(written(tmp_path, water()), {"test": frames})
