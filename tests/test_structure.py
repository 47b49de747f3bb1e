"""Radial distributions against ASE and brute force; the rules that call a trajectory broken."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.geometry.rdf import get_rdf

from egraff_utils import data, structure
from egraff_utils.structure import pairs


def frames_of(atoms, *, count=4, width=0.2, seed=0):
    rng = np.random.default_rng(seed)
    frames = [atoms.copy() for _ in range(count)]
    for frame in frames:
        frame.positions += rng.normal(scale=width, size=frame.positions.shape)
    return frames


@pytest.fixture
def salt():
    """Rattled, unwrapped NaCl in a skewed cell, whose smallest height is 8.98 Å."""
    atoms = bulk("NaCl", "rocksalt", a=5.64) * (3, 3, 3)
    atoms.set_cell(atoms.cell.array + [[0, 0, 0], [0.4, 0, 0], [0, 0.7, 0]], scale_atoms=True)
    atoms.positions[::5] += atoms.cell.array[1]
    return frames_of(atoms)


@pytest.fixture(scope="module")
def lips():
    return [atoms for split in ("train", "val", "test") for atoms in data.load("lips", split)]


def by_ase(frames, r_max, dr=0.05, pair=None):
    return get_rdf(frames, r_max, round(r_max / dr), elements=pair)[0]


@pytest.mark.parametrize("pair", [None, (11, 17), (17, 11), (11, 11)])
def test_equals_ase_in_a_skewed_periodic_cell(salt, pair):
    r, g = structure.radial_distribution(salt, 4.4, pair=pair)
    np.testing.assert_allclose(g, by_ase(salt, 4.4, pair=pair), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(r, 0.05 * np.arange(0.5, 88), rtol=1e-12)


@pytest.mark.parametrize("pbc", [False, (True, False, False), True])
def test_equals_ase_for_a_molecule(pbc):
    frames = frames_of(molecule("CH3CH2OH", vacuum=4.0, pbc=pbc))
    for pair in (None, ("C", "H"), ("H", "H")):
        _, g = structure.radial_distribution(frames, 4.0, pair=pair)
        np.testing.assert_allclose(g, by_ase(frames, 4.0, pair=pair), rtol=1e-10, atol=1e-10)


def test_equals_ase_where_cell_and_composition_change(salt):
    salt[1].set_cell(salt[1].cell * 1.1, scale_atoms=True)
    del salt[2][5]
    _, g = structure.radial_distribution(salt, 4.4, pair="Na-Cl")
    np.testing.assert_allclose(g, by_ase(salt, 4.4, pair=("Na", "Cl")), rtol=1e-10, atol=1e-10)


def test_one_cell_per_frame_equals_atoms(salt):
    for scale, atoms in zip((1.0, 1.02, 1.05, 1.1), salt, strict=True):
        atoms.set_cell(atoms.cell * scale, scale_atoms=True)
    found = structure.radial_distributions(
        [a.positions for a in salt], salt[0].numbers, cell=[a.cell for a in salt], pbc=True, r_max=4.4
    )
    np.testing.assert_allclose(found.total, structure.radial_distribution(salt, 4.4)[1], rtol=1e-12)


def test_exact_beyond_half_the_cell(salt):
    """Up to the cell's height: the distribution of the same crystal, repeated so that ASE accepts it."""
    _, g = structure.radial_distribution(salt, 8.0)
    repeated = [atoms * (2, 2, 2) for atoms in salt]
    np.testing.assert_allclose(g, by_ase(repeated, 8.0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_atoms(count):
    """Every pair of few atoms is counted once."""
    positions = np.random.default_rng(0).random((3, count, 3))
    numbers = [1, 6, 1, 8][:count]
    found = structure.radial_distributions(positions, numbers, cell=9 * np.eye(3), pbc=False, r_max=2.0)
    frames = [Atoms(numbers, frame, cell=[9, 9, 9]) for frame in positions]
    np.testing.assert_allclose(found.total, by_ase(frames, 2.0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("r_max", "step", "chosen"),
    [(3.0, 0.02, True), (4.4, 0.02, True), (8.0, 0.02, True), (8.0, 0.3, False), (4.4, 9.0, False)],
)
def test_a_trajectory_is_the_mean_of_its_frames(salt, monkeypatch, r_max, step, chosen):
    """Pairs that are left out for a run of frames never come within range in it, wrapped or not."""
    rng, atoms = np.random.default_rng(0), salt[0]
    moves = rng.normal(scale=step, size=(130, len(atoms), 3)).cumsum(axis=0)
    positions = atoms.positions + moves
    positions[40:] = positions[40:] @ np.linalg.inv(atoms.cell.array) % 1 @ atoms.cell.array
    settings = {"cell": atoms.cell.array, "pbc": True, "r_max": r_max}
    alone = [structure.radial_distributions(frame[None], atoms.numbers, **settings) for frame in positions]
    looked_at, count = [], pairs._candidates
    monkeypatch.setattr(pairs, "_candidates", lambda *a: looked_at.append(count(*a)) or looked_at[-1])
    found = structure.radial_distributions(positions, atoms.numbers, **settings)
    np.testing.assert_allclose(found.partials, np.mean([one.partials for one in alone], axis=0), rtol=1e-12)
    assert len(looked_at) == 3
    assert (max(map(len, looked_at)) < len(atoms) * (len(atoms) - 1) / 2) == chosen


def test_partials_sum_to_the_total(salt):
    salt[0].numbers[:7] = 19
    found = structure.radial_distributions(
        salt[0].positions[None], salt[0].numbers, cell=salt[0].cell, pbc=True, r_max=4.4
    )
    assert found.pairs == ["Na-Na", "Na-Cl", "Na-K", "Cl-Cl", "Cl-K", "K-K"]
    share = {symbol: np.mean(salt[0].symbols == symbol) for symbol in ("Na", "Cl", "K")}
    total = 0
    for name, partial in zip(found.pairs, found.partials, strict=True):
        a, b = name.split("-")
        total = total + (1 if a == b else 2) * share[a] * share[b] * partial
    np.testing.assert_allclose(total, found.total, rtol=1e-12)
    np.testing.assert_array_equal(found.partial("K-Na"), found.partial((11, 19)))


def test_volume_sets_the_density_of_a_molecule():
    frames = frames_of(molecule("H2O"))
    _, g = structure.radial_distribution(frames, 3.0, volume=1000.0)
    _, twice = structure.radial_distribution(frames, 3.0, volume=2000.0)
    np.testing.assert_allclose(twice, 2 * g)
    with pytest.raises(ValueError, match="no volume"):
        structure.radial_distribution(frames, 3.0)


def test_errors_name_the_thing(salt):
    with pytest.raises(ValueError, match="smallest height"):
        structure.radial_distribution(salt, 12.0)
    with pytest.raises(ValueError, match="no pair Li-Cl"):
        structure.radial_distribution(salt, 4.0, pair="Li-Cl")
    with pytest.raises(ValueError, match="'Xx' in pair"):
        structure.radial_distribution(salt, 4.0, pair="Xx-Cl")
    with pytest.raises(ValueError, match="no frames"):
        structure.radial_distribution([], 4.0)
    with pytest.raises(ValueError, match="no bins"):
        structure.radial_distribution(salt, 0.0)
    salt[2].positions[3] = np.nan
    with pytest.raises(ValueError, match="not finite from frame 2"):
        structure.radial_distribution(salt, 4.0)


def test_as_coded_r_max():
    assert structure.as_coded_r_max(Atoms("H", cell=[50] * 3)) == 10.0
    assert structure.as_coded_r_max(Atoms("H", cell=[19.1] * 3)) == 9.0
    assert structure.as_coded_r_max(Atoms("H", cell=[11.53, 10.014, 10.23])) == 4.5
    with pytest.raises(ValueError, match="too short"):
        structure.as_coded_r_max(Atoms("H"))


def test_bonds_of_ethanol():
    ethanol = molecule("CH3CH2OH")
    pairs = structure.bonds(ethanol)
    assert len(pairs) == 8
    lengths = structure.bond_lengths(np.stack([ethanol.positions] * 3), pairs)
    assert lengths.shape == (3, 8)
    assert ((lengths > 0.9) & (lengths < 1.6)).all()


def test_broken_bond_and_lost_atom():
    ethanol = molecule("CH3CH2OH")
    frames = np.stack([atoms.positions for atoms in frames_of(ethanol, count=20, width=0.02)])
    pairs, lengths = structure.reference_bonds(ethanol, frames)
    assert structure.unstable_step_molecule(frames, pairs, lengths) is None
    hydrogen = int(np.flatnonzero(ethanol.symbols == "H")[0])
    frames[12:, hydrogen] += 6.0
    assert structure.unstable_bonds(frames, pairs, lengths) == 12
    unguarded = ~(pairs == hydrogen).any(axis=1)
    assert structure.unstable_step_molecule(frames, pairs[unguarded], lengths[unguarded]) == 12
    frames[5, 0, 0] = np.nan
    assert structure.unstable_step_molecule(frames, pairs, lengths) == 5
    with pytest.raises(ValueError, match="lengths.shape"):
        structure.unstable_bonds(frames, pairs, lengths[:-1])


def test_reference_bonds_leave_out_what_the_reference_breaks():
    water = molecule("H2O")
    frames = np.stack([water.positions] * 4)
    frames[3, 2] += 2.0
    pairs, lengths = structure.reference_bonds(water, frames)
    np.testing.assert_array_equal(pairs, [[0, 1]])
    np.testing.assert_allclose(lengths, water.get_distance(0, 1))


def test_nearest_distances_see_periodic_images():
    positions = np.array([[[0.1, 0, 0], [9.8, 0, 0], [5, 0, 0]]])
    near = structure.nearest_distances(positions, cell=10 * np.eye(3), pbc=True)
    np.testing.assert_allclose(near, [[0.3, 0.3, 4.8]])
    assert structure.unstable_contacts(positions, cell=10 * np.eye(3), pbc=True) == 0
    assert structure.unstable_contacts(positions) is None


def test_exploded_and_collapsed_bulk_is_broken():
    copper = bulk("Cu", cubic=True) * (3, 3, 3)
    frames = np.stack([atoms.positions for atoms in frames_of(copper, count=120, width=0.15)])
    kwargs = {"cell": copper.cell.array, "pbc": True, "r_max": 5.0}
    g_ref = structure.radial_distributions(frames, copper.numbers, **kwargs).total
    check = {"numbers": copper.numbers, "g_ref": g_ref, "window": 20, **kwargs}
    assert structure.unstable_step_bulk(frames, **check) is None
    gas = frames.copy()
    gas[60:] = np.random.default_rng(0).random(gas[60:].shape) @ copper.cell.array
    contacts = structure.unstable_contacts(gas, cell=copper.cell.array, pbc=True)
    assert structure.unstable_step_bulk(gas, **check) == contacts >= 60
    clustered = frames.copy()
    clustered[60:] *= 0.8
    assert structure.unstable_step_bulk(clustered, **check) == 60
    fused = frames.copy()
    fused[77, 4] = fused[77, 5] + 0.1
    assert structure.unstable_step_bulk(fused, **check) == 77
    fused[50, 4] = fused[50, 5] + copper.cell.array[0]
    assert structure.unstable_step_bulk(fused, **check) == 50
    fused[3] = np.inf
    assert structure.unstable_step_bulk(fused, **check) == 3


@pytest.mark.data
def test_equals_ase_on_lips(lips):
    for pair in (None, ("Li", "S"), ("S", "S")):
        _, g = structure.radial_distribution(lips[:10], 5.5, pair=pair)
        np.testing.assert_allclose(g, by_ase(lips[:10], 5.5, pair=pair), rtol=1e-10, atol=1e-10)


@pytest.mark.data
@pytest.mark.parametrize(("name", "split"), [("lips", "train"), ("gete", "train"), ("gete", "test")])
def test_reference_of_bulk_never_breaks(name, split):
    frames = data.load(name, split)
    positions, first = np.stack([atoms.positions for atoms in frames]), frames[0]
    r_max = min(structure.as_coded_r_max(first), structure.RDF_RANGE)
    kwargs = {"cell": first.cell.array, "pbc": first.pbc, "r_max": r_max}
    g_ref = structure.radial_distributions(positions, first.numbers, **kwargs).total
    assert structure.unstable_step_bulk(positions, first.numbers, g_ref=g_ref, **kwargs) is None
    for start in range(0, len(positions), 10):
        g = structure.radial_distributions(positions[start : start + 1], first.numbers, **kwargs).total
        dr = r_max / len(g)
        assert structure.rdf_deviation(g, g_ref, dr=dr) < 0.7 * structure.RDF_TOLERANCE
    gas = np.random.default_rng(0).random((20, *positions.shape[1:])) @ first.cell.array
    g = structure.radial_distributions(gas, first.numbers, **kwargs).total
    assert structure.rdf_deviation(g, g_ref, dr=dr) > 1.5 * structure.RDF_TOLERANCE


@pytest.mark.data
@pytest.mark.parametrize("name", ["acac", "3bpa", "aspirin", "ethanol", "naphthalene", "salicylic_acid"])
def test_reference_of_molecules_never_breaks(name):
    frames = data.load(name, "test")
    positions = np.stack([atoms.positions for atoms in frames])
    pairs, lengths = structure.reference_bonds(frames[0], positions)
    assert structure.unstable_step_molecule(positions, pairs, lengths) is None
    deviations = np.abs(structure.bond_lengths(positions, pairs) - lengths)
    assert deviations.max() < 0.6 * structure.BOND_TOLERANCE
    shared_protons = 1 if name == "acac" else 0
    assert len(structure.bonds(frames[0])) - len(pairs) == shared_protons


@pytest.mark.parametrize("odd", [False, True])
def test_contacts_of_a_bulk_system_are_those_of_nearest_distances(salt, odd):
    """They are found by a neighbour list, over the faces of the cell and for atoms far outside it too."""
    cell = salt[0].cell.array
    positions = np.stack([atoms.positions for atoms in salt])[:, odd:]
    box = {"cell": cell, "pbc": True}
    assert structure.unstable_contacts(positions, **box) is None
    positions[2, 0] = positions[2, 7] + [0.2, 0.3, 0.25] - 2 * cell[0] + cell[2]
    assert structure.nearest_distances(positions, **box)[2, 0] == pytest.approx(0.4387482, abs=1e-6)
    assert structure.unstable_contacts(positions, **box) == 2
    assert structure.unstable_contacts(positions, minimum=0.43, **box) is None
    positions[1, 4, 2] = np.nan
    assert structure.unstable_contacts(positions, **box) == 1
