"""The periodic graph against a brute-force list over images."""

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from egraff_utils.graph import SkinList, build_graph, collate


def brute_force(atoms, cutoff, images=6):
    """Sorted rows (i, j, vector) of all pairs within the cutoff."""
    ranges = [range(-images, images + 1) if periodic else [0] for periodic in atoms.pbc]
    rows = []
    for n in itertools.product(*ranges):
        shift = n @ np.asarray(atoms.cell)
        for i, j in itertools.product(range(len(atoms)), repeat=2):
            vector = atoms.positions[j] + shift - atoms.positions[i]
            if (i != j or any(n)) and np.linalg.norm(vector) < cutoff:
                rows.append([i, j, *vector])
    return np.array(sorted(rows, key=lambda row: np.round(row, 6).tolist()))


def rows_of(graph):
    rows = np.hstack([graph.edge_index.T.numpy(), graph.edge_vectors().numpy()])
    return np.array(sorted(rows, key=lambda row: np.round(row, 6).tolist()))


def systems():
    rng = np.random.default_rng(0)
    small = Atoms("LiPS2", rng.uniform(0, 4, (4, 3)), cell=[[4, 0, 0], [1, 4.4, 0], [0.5, -1, 5]], pbc=True)
    slab = Atoms("Cu6", rng.uniform(0, 5, (6, 3)), cell=[4.9, 5.2, 0], pbc=[True, True, False])
    unwrapped = small.copy()
    unwrapped.positions += rng.integers(-2, 3, (4, 3)) @ np.asarray(small.cell)
    ethanol = molecule("CH3CH2OH")
    ethanol.set_cell([3, 3, 3])  # smaller than the molecule, as some files have it
    return {
        "one atom": bulk("Cu"),
        "small cell": small,
        "unwrapped": unwrapped,
        "slab": slab,
        "molecule": ethanol,
    }


@pytest.mark.parametrize("name", systems())
def test_edges_equal_brute_force(name):
    atoms = systems()[name]
    np.testing.assert_allclose(rows_of(build_graph(atoms, 5.0)), brute_force(atoms, 5.0), atol=1e-9)


@pytest.mark.parametrize("name", systems())
def test_every_edge_stands_in_both_directions(name):
    forward = rows_of(build_graph(systems()[name]))
    backward = np.hstack([forward[:, [1, 0]], -forward[:, 2:]])
    backward = np.array(sorted(backward, key=lambda row: np.round(row, 6).tolist()))
    np.testing.assert_allclose(forward, backward, atol=1e-9)


def assert_reversed(graph):
    """Edge e + E/2 is the reverse of edge e."""
    there, back = graph.edge_index.chunk(2, dim=1)
    assert torch.equal(back, there.flip(0))
    assert torch.equal(graph.shifts.chunk(2)[1], -graph.shifts.chunk(2)[0])


@pytest.mark.parametrize("name", systems())
def test_the_second_half_of_the_edges_is_the_first_reversed(name):
    atoms = systems()[name]
    assert_reversed(build_graph(atoms))
    assert_reversed(build_graph([atoms, bulk("Cu"), atoms]))
    skin = SkinList([atoms, atoms], 5.0)
    for shift in (0.0, 0.3):
        assert_reversed(skin.update(np.concatenate([atoms.positions, atoms.positions * (1 + shift)])))


def test_collated_structures_are_not_connected():
    atoms = list(systems().values())
    graph = build_graph(atoms)
    assert graph.num_structures == len(atoms)
    assert torch.equal(graph.structure[graph.edge_index[0]], graph.structure[graph.edge_index[1]])
    parts = [rows_of(build_graph(a)) for a in atoms]
    assert graph.edge_index.shape[1] == sum(map(len, parts))
    assert torch.equal(collate([build_graph(a) for a in atoms]).edge_index, graph.edge_index)


@pytest.mark.parametrize("name", systems())
def test_skin_list_gives_the_edges_of_a_rebuilt_list(name):
    atoms, rng = systems()[name], np.random.default_rng(1)
    skin = SkinList([atoms, atoms], 5.0, skin=0.8)
    positions = np.concatenate([atoms.positions, atoms.positions])
    for _ in range(30):
        positions = positions + rng.normal(0, 0.05, positions.shape)
        copies = [atoms.copy(), atoms.copy()]
        for copy, part in zip(copies, np.split(positions, 2), strict=True):
            copy.positions = part
        np.testing.assert_allclose(rows_of(skin.update(positions)), rows_of(build_graph(copies)), atol=1e-9)
    assert 1 < skin.rebuilds < 30 or len(atoms) == 1


def test_bad_geometry_is_named():
    atoms = molecule("H2O")
    atoms.positions[2, 0] = np.nan
    with pytest.raises(ValueError, match="atom 2 .H. is not finite"):
        build_graph(atoms)
    with pytest.raises(ValueError, match="cell vector 0 is zero"):
        build_graph(Atoms("Cu", pbc=True))
    with pytest.raises(ValueError, match="the cell is not finite"):
        build_graph(Atoms("Cu", cell=[np.nan, 3, 3], pbc=True))
    with pytest.raises(ValueError, match="vectors of the cell lie in a plane"):
        build_graph(Atoms("Cu", cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]], pbc=True))
    with pytest.raises(ValueError, match="atoms are 10000 Å apart, too far"):
        build_graph(Atoms("H2", [[0, 0, 0], [1e4, 1e4, 1e4]]))


@pytest.mark.parametrize("pbc", [True, (True, True, False)])
def test_a_crystal_in_a_huge_cell_is_refused_in_words_of_our_own(pbc):
    atoms = Atoms("Cu2", [[0, 0, 0], [2, 0, 0]], cell=[1e5, 1e5, 1e4], pbc=pbc)
    with pytest.raises(ValueError, match=r"a cell of 1e\+05 x 1e\+05 x 1e\+04 Å is too large"):
        build_graph(atoms)
