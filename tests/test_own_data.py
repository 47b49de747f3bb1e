"""Is what a file of frames holds found without being told, and is a card written that works?"""

import base64
import re
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.velocitydistribution import thermalize_momenta

from egraff_utils import cards, data, readers
from egraff_utils.__main__ import main
from egraff_utils.checks import own_data

FREE = {"H2O": -76.4, "CH4": -40.5, "NH3": -56.6}
"""Total energy with all electrons, Hartree."""


def frames(energy=1.0, force=1.0, length=1.0, kinds=("H2O", "CH4")):
    """Molecules with a total energy in Hartree and forces of 1 eV/Å, times factors."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(20):
        atoms = molecule(kinds[k % len(kinds)])
        atoms.positions = (atoms.positions + 0.03 * rng.normal(size=(len(atoms), 3))) * length
        forces = force * rng.normal(size=(len(atoms), 3))
        total = energy * (FREE[kinds[k % len(kinds)]] + 0.01 * rng.normal())
        atoms.calc = SinglePointCalculator(atoms, energy=total, forces=forces)
        found.append(atoms)
    return found


HARTREE = units.Hartree
CASES = {
    "eV and Å": (HARTREE, 1.0, 1.0, {"energy": "eV", "length": "Å"}),
    "kcal/mol": (HARTREE * units.mol / units.kcal, 23.06, 1.0, {"energy": "kcal/mol", "length": "Å"}),
    "atomic": (1.0, units.Bohr / HARTREE, 1 / units.Bohr, {"energy": "Hartree", "length": "Bohr"}),
    "mixed": (1.0, 1.0, 1.0, {"energy": "Hartree", "length": "Å", "forces": "eV/Å"}),
}


@pytest.mark.parametrize("case", CASES)
def test_units_are_guessed_and_said(tmp_path, case):
    *factors, expected = CASES[case]
    ase.io.write(tmp_path / "mine.xyz", frames(*factors), format="extxyz")
    found = own_data.describe(tmp_path / "mine.xyz")
    assert found.card.units == expected
    assert not found.problems
    assert found.facts["compositions"] == "H2O (10), CH4 (10)"
    card = cards.dataset(found.write_card())
    train = data.load(card, "train")
    assert len(train) == 16
    assert train[0].get_potential_energy() == pytest.approx(FREE["H2O"] * HARTREE, rel=0.01)
    assert 0.5 < np.sqrt(np.mean(train[0].get_forces() ** 2)) < 2
    assert "# guessed: energy:" in (tmp_path / "mine.yml").read_text()
    with pytest.raises(FileExistsError, match="is there already"):
        found.write_card()


def along_a_path(energy, force, length, count=30, repeat=2):
    """Copper at the energies of EMT, moved in small steps, as in a relaxation; labels times factors."""
    rng, atoms, found = np.random.default_rng(0), bulk("Cu", cubic=True) * repeat, []
    shift = 0.002 * rng.normal(size=atoms.positions.shape)
    for _ in range(count):
        atoms.positions += shift + 0.0005 * rng.normal(size=shift.shape)
        atoms.calc = EMT()
        copy = atoms.copy()
        copy.set_cell(atoms.cell * length, scale_atoms=True)
        labels = {"energy": energy * atoms.get_potential_energy(), "forces": force * atoms.get_forces()}
        copy.calc = SinglePointCalculator(copy, **labels)
        found.append(copy)
    return found


@pytest.mark.parametrize(
    ("energy", "force", "length", "expected"),
    [
        (1.0, 1.0, 1.0, {"energy": "eV", "length": "Å"}),
        (1 / HARTREE, units.Bohr / HARTREE, 1 / units.Bohr, {"energy": "Hartree", "length": "Bohr"}),
        (1.0, units.mol / units.kcal, 1.0, {"energy": "eV", "length": "Å", "forces": "kcal/mol/Å"}),
    ],
)  # fmt: skip
def test_units_follow_from_the_work_of_forces_of_unusual_size(tmp_path, energy, force, length, expected):
    """Forces of 0.05 eV/Å, near a minimum, look like such in Hartree/Bohr by their size."""
    ase.io.write(tmp_path / "mine.xyz", along_a_path(energy, force, length), format="extxyz")
    found = own_data.describe(tmp_path / "mine.xyz")
    ratio = own_data.work_ratio(readers.raw("extxyz", [tmp_path / "mine.xyz"]))
    assert ratio == pytest.approx(energy / force / length, rel=0.05)
    assert found.card.units == expected, found


def test_units_of_the_output_of_a_program_are_known():
    """Three frames of silicon at rest, whose forces would be usual in Hartree/Bohr."""
    found = own_data.describe(Path(ase.__file__).parent / "test" / "testdata" / "castep" / "md.castep")
    assert found.card.units == {"energy": "eV", "length": "Å"}
    assert found.guesses["energy"] == "eV; as ASE reads it from castep-castep"


def test_forces_with_the_sign_of_the_gradient_are_a_problem(tmp_path):
    ase.io.write(tmp_path / "mine.xyz", along_a_path(1.0, -1.0, 1.0), format="extxyz")
    found = own_data.describe(tmp_path / "mine.xyz")
    assert "the energy rises along the forces" in found.problems[-1]
    assert found.card.units == {"energy": "eV", "length": "Å"}


def test_energies_per_atom_are_asked_for(tmp_path):
    ase.io.write(tmp_path / "mine.xyz", along_a_path(1 / 4, 1.0, 1.0, repeat=1), format="extxyz")
    found = own_data.describe(tmp_path / "mine.xyz")
    assert "check both units; are these energies per atom?" in found.guesses["forces"]


def test_the_work_of_forces_outweighs_the_size_of_energies(tmp_path):
    """Copper by EMT, moved to the total of free atoms in Rydberg, which are eV nevertheless."""
    moved = along_a_path(1.0, 1.0, 1.0)
    for atoms in moved:
        atoms.calc.results["energy"] -= 32 * 29**2.41
    ase.io.write(tmp_path / "mine.xyz", moved, format="extxyz")
    found = own_data.describe(tmp_path / "mine.xyz")
    assert found.card.units == {"energy": "eV", "length": "Å"}
    assert "eV; by the work of the forces, though as Rydberg" in found.guesses["energy"]


def test_free_atoms_among_the_frames_are_read(tmp_path):
    """As in files for mace, whose first frames give the energies of the elements."""
    rows = [Atoms(symbol) for symbol in "HCO"] + frames(HARTREE)
    for atoms in rows:
        results = atoms.calc.results if atoms.calc else {"energy": -13.0, "forces": np.zeros((1, 3))}
        atoms.info |= {"REF_energy": results["energy"], "config_type": "any"}
        atoms.arrays["REF_forces"] = results["forces"]
        atoms.calc = None
    ase.io.write(tmp_path / "mine.xyz", rows, format="extxyz")
    found = own_data.describe(tmp_path / "mine.xyz")
    assert not found.problems
    assert "energies are taken from 'REF_energy'" in found.remarks[0]


def test_of_few_frames_no_split_is_empty(tmp_path):
    rows = frames(HARTREE, kinds=("H2O",))
    for count in (3, 5, 9):
        ase.io.write(tmp_path / "few.xyz", rows[:count], format="extxyz")
        assert not own_data.describe(tmp_path / "few.xyz").problems
    ase.io.write(tmp_path / "few.xyz", rows[:2], format="extxyz")
    with pytest.raises(ValueError, match="few.xyz holds 2 frames, but train, val and test need one each"):
        own_data.describe(tmp_path / "few.xyz")


def test_independent_frames_show_no_work():
    rows = [readers.Frame(np.ones(2, int), p, np.zeros((3, 3)), e, f) for p, e, f in zip(
        *(np.random.default_rng(k).normal(size=(20, *shape)) for k, shape in enumerate([(2, 3), (), (2, 3)])),
        strict=True)]  # fmt: skip
    assert own_data.work_ratio(rows) is None


@pytest.mark.parametrize("form", ["data", "early schnetpack"])
def test_labels_in_the_data_of_a_database_are_found(tmp_path, form):
    """Both versions of SchNetPack keep them there; the early one as texts in base64."""
    with ase.db.connect(tmp_path / "mine.db") as database:
        for atoms in frames(HARTREE):
            values = {name: np.atleast_1d(atoms.calc.results[name]) for name in ("energy", "forces")}
            if form != "data":
                values = {key: text for name, value in values.items() for key, text in (
                    (name, base64.b64encode(value.tobytes()).decode()), (f"_shape_{name}", value.shape),
                    (f"_dtype_{name}", "float64"))}  # fmt: skip
            database.write(Atoms(atoms.numbers, atoms.positions), data=values)
    found = own_data.describe(tmp_path / "mine.db")
    assert not found.problems
    assert found.card.units == {"energy": "eV", "length": "Å"}
    last = data.load(cards.dataset(found.write_card()), "test")[-1]
    assert np.allclose(last.get_forces(), atoms.calc.results["forces"])
    assert last.get_potential_energy() == atoms.calc.results["energy"]


def test_a_card_that_cannot_be_written_whole_is_not_there(tmp_path, monkeypatch):
    ase.io.write(tmp_path / "mine.xyz", frames(HARTREE), format="extxyz")
    found = own_data.describe(tmp_path / "mine.xyz")
    whole = found.card_text()
    with monkeypatch.context() as patch:
        patch.setattr(own_data.Description, "card_text", lambda self: f"{whole}# \ud800")  # no such character
        with pytest.raises(UnicodeEncodeError):
            found.write_card()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.xyz"]
    assert found.write_card().read_text() == whole


def test_names_that_are_known_to_the_card_alone_are_taken_from_it(tmp_path):
    rows = frames(HARTREE)
    for atoms in rows:
        atoms.info["mine"], atoms.arrays["push"] = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
    ase.io.write(tmp_path / "mine.xyz", rows, format="extxyz")
    with pytest.raises(ValueError, match="holds no 'energy'.*set keys"):
        own_data.describe(tmp_path / "mine.xyz")
    keys = {"energy": "mine", "forces": "push"}
    found = own_data.describe(tmp_path / "mine.xyz", keys=keys)
    assert not found.problems
    assert cards.dataset(found.write_card()).keys == keys


def test_a_file_is_checked_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    ase.io.write(tmp_path / "mine.xyz", frames(HARTREE), format="extxyz")
    assert main(["data", "check", str(tmp_path / "mine.xyz"), "--write-card", "--temperature", "350"]) == 0
    assert "compositions  H2O (10), CH4 (10)" in capsys.readouterr().out
    assert cards.dataset(tmp_path / "mine.yml").temperature == 350
    assert main(["data", "check", str(tmp_path / "mine.yml")]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"(train|val|test) +(\d+) frames", shown) == [
        ("train", "16"),
        ("val", "2"),
        ("test", "2"),
    ]
    assert main(["data", "check", str(tmp_path / "absent.xyz")]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert main(["data", "check", "ethanol", "--write-card"]) == 2


def test_a_crystal_is_told_from_a_molecule_in_a_box(tmp_path):
    rng = np.random.default_rng(0)
    copper = [bulk("Cu", cubic=True) * 2 for _ in range(10)]
    for atoms in copper:
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_forces()
    ase.io.write(tmp_path / "cu.db", copper)
    found = own_data.describe(tmp_path / "cu.db")
    assert (found.card.system, found.card.elements) == ("bulk", [29])
    assert found.card.units == {"energy": "eV", "length": "Å"}
    boxed = frames(HARTREE)
    for atoms in boxed:
        atoms.calc.atoms.set_cell([12, 12, 12])
        atoms.calc.atoms.pbc = True
        atoms.set_cell([12, 12, 12])
        atoms.pbc = True
    ase.io.write(tmp_path / "boxed.traj", boxed)
    assert own_data.describe(tmp_path / "boxed.traj").card.system == "molecule"


def test_what_is_wrong_is_told_with_the_frame(tmp_path):
    wrong = frames(HARTREE)
    del wrong[19].calc.results["forces"]
    ase.io.write(tmp_path / "mine.xyz", wrong, format="extxyz")
    found = own_data.describe(tmp_path / "mine.xyz")
    assert "mine/test: frame 1 (frame 19 of source all) holds no forces" in found.problems[0]
    assert "forces in 19 frames" in found.facts["labels"]
    assert found.problems[0] in repr(found)
    (tmp_path / "empty.xyz").write_text("")
    with pytest.raises(ValueError, match="empty.xyz"):
        own_data.describe(tmp_path / "empty.xyz")
    with pytest.raises(ValueError, match="there is no file .*absent.xyz; correct its path"):
        own_data.describe(tmp_path / "absent.xyz")


def test_of_two_cards_written_at_once_one_is_kept(tmp_path, monkeypatch):
    ase.io.write(tmp_path / "mine.xyz", frames(), format="extxyz")
    found, other = (own_data.describe(tmp_path / "mine.xyz", temperature=t) for t in (300, 400))
    text = found.card_text()

    def meanwhile():
        monkeypatch.setattr(found, "card_text", lambda: text)
        other.write_card()
        return text

    monkeypatch.setattr(found, "card_text", meanwhile)
    with pytest.raises(FileExistsError, match="is there already"):
        found.write_card()
    assert cards.dataset(tmp_path / "mine.yml").temperature == 400


@pytest.mark.slow
def test_the_page_of_a_dataset_shows_a_mixed_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in ("RESULTS", "RUNS"):
        monkeypatch.setenv(f"EGRAFF_{variable}", str(tmp_path / variable.lower()))
    ase.io.write(tmp_path / "mixed.xyz", frames(kinds=("H2O", "CH4", "NH3")), format="extxyz")
    assert main(["data", "check", "mixed.xyz", "--write-card"]) == 0
    assert main(["run", "yours/dataset", "-p", "dataset", "mixed.yml", "--quiet"]) == 0
    (record,) = (tmp_path / "results" / "yours" / "dataset").glob("*.json")
    assert "one frame, which have no floor: " in record.read_text()


def test_the_temperature_is_that_of_the_velocities_in_the_file(tmp_path):
    """Drawn at 600 K for 320 atoms in all; a file with a frame at rest says nothing."""
    found = [bulk("Cu", cubic=True).repeat(2) for _ in range(10)]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.05, seed=seed)
        calculator = EMT()
        energy, forces = (calculator.get_property(name, atoms) for name in ("energy", "forces"))
        thermalize_momenta(atoms, 600, rng=np.random.default_rng(seed))
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    ase.io.write(tmp_path / "hot.xyz", found, format="extxyz")
    described = own_data.describe(tmp_path / "hot.xyz")
    assert described.card.temperature == pytest.approx(600, rel=0.1)
    assert re.search(r"temperature: (\d+) K; the velocities in the file have \1 K", str(described))
    assert own_data.describe(tmp_path / "hot.xyz", temperature=400).card.temperature == 400
    found[3].set_momenta(np.zeros((32, 3)))
    ase.io.write(tmp_path / "hot.xyz", found, format="extxyz")
    assert "temperature: 300 K; the file does not say" in str(own_data.describe(tmp_path / "hot.xyz"))
