"""Are the frames what the cards say, in eV and Å, and is no frame in two splits?"""

import dataclasses
import functools
import hashlib
import http.server
import itertools
import re
import threading

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.geometry import find_mic

from egraff_utils import cards, data, files, paths, reference

PUBLIC = [name for name in cards.datasets() if not cards.dataset(name).generate]


def at_hand(card, split):
    """Whether the files of a split lie in one of the data folders."""
    keys = [key for part in card.split(split).parts for key in card.files_of(part.source)]
    return all(any((folder / card.files[key].path).exists() for folder in paths.data()) for key in keys)


def splits_at_hand(name):
    card = cards.dataset(name)
    return [split for split in card.splits if at_hand(card, split)]


@pytest.mark.parametrize("name", cards.datasets())
def test_card_is_complete(name):
    card = cards.dataset(name)
    assert card.name == name
    assert card.title
    assert f"{{{card.citation}," in (paths.ROOT / "book" / "references.bib").read_text()
    assert card.licence
    assert card.temperature > 0
    assert 0 < card.timestep < 5
    assert "test" in card.splits
    assert all(card.split(split).note for split in card.splits)
    assert (card.oracle is None) == (not card.generate)
    for key, file in card.files.items():
        assert file.hash.startswith(("sha256:", "git:"))
        assert card.url(key).startswith("https://")
        assert card.url(key).endswith(file.path.partition("/")[2])


def test_card_shows_its_splits():
    card = cards.dataset("acac")
    assert "test_600K" in repr(card)
    html = card._repr_html_()
    assert "<td>650</td><td>600 K</td>" in html
    assert card.conditions("test_600K") == (600, 0.5)
    assert card.conditions("test") == (300, 1.0)


def test_acac_and_3bpa_do_not_validate_on_test_files():
    for name in ("acac", "3bpa"):
        card = cards.dataset(name)
        (validation,), (training,) = card.split("val").parts, card.split("train").parts
        assert validation.source == training.source == "train"
        assert not set(validation.indices(500)) & set(training.indices(500))


@pytest.mark.data
@pytest.mark.parametrize("name", PUBLIC)
def test_frames_and_units(name):
    card = cards.dataset(name)
    assert splits_at_hand(name)
    for split in splits_at_hand(name):
        frames = data.load(name, split)
        assert len(frames) == card.split(split).frames
        first = frames[0]
        assert set(first.numbers) <= set(card.elements)
        assert first.pbc.all() == card.pbc
        assert first.cell.volume > 100
        if "forces" in first.calc.results:  # thermal forces are of the order of 1 eV/Å
            forces = frames[len(frames) // 2].get_forces()
            assert 0.1 < np.sqrt(np.mean(forces**2)) < 5
        distances = first.get_all_distances(mic=card.pbc)[np.triu_indices(len(first), 1)]
        assert 0.6 < distances.min() < 3


@pytest.mark.data
@pytest.mark.parametrize("name", PUBLIC)
def test_no_frame_in_two_splits(name):
    card = cards.dataset(name)
    seen = {}
    for split in splits_at_hand(name):
        frames = data.load(name, split)
        seen[split] = {np.round(atoms.positions, 6).tobytes() for atoms in frames}
        assert len(seen[split]) == len(frames), f"{split} holds a frame twice"
    for a, b in itertools.combinations(seen, 2):
        inside = b in card.split(a).subset_of or a in card.split(b).subset_of
        assert bool(seen[a] & seen[b]) == inside, (a, b)


def time_ordered():
    made = lambda name: [pytest.mark.slow, pytest.mark.rare(3, name)]  # noqa: E731  # acac_xtb takes minutes
    return [
        pytest.param(name, split, marks=made(name) if card.generate else pytest.mark.data)
        for name in cards.datasets()
        for card in [cards.dataset(name)]
        for split in card.time_ordered
        if card.generate or at_hand(card, split)
    ]


@pytest.mark.parametrize(("name", "split"), time_ordered())
def test_energy_follows_forces_in_time(name, split):
    """dE = -F dx between two frames (trapezium rule), and the temperature is that of the card."""
    card = cards.dataset(name)
    frames = data.load(name, split)[card.first_contiguous.get(split, 0) :]
    energy = np.array([atoms.get_potential_energy() for atoms in frames])
    forces = np.array([atoms.get_forces() for atoms in frames])
    steps = np.diff([atoms.positions for atoms in frames], axis=0)
    if card.pbc:
        steps = find_mic(steps.reshape(-1, 3), frames[0].cell, True)[0].reshape(steps.shape)
    assert np.sqrt((steps**2).mean((1, 2))).max() < 0.1, "a jump"
    work = -(0.5 * (forces[1:] + forces[:-1]) * steps).sum((1, 2))
    slope = np.diff(energy) @ work / (work @ work)
    assert slope == pytest.approx(1, abs=0.25 if name.startswith("gete") else 0.03)
    bare = [Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc) for a in frames]
    speeds = [reference.velocities(bare, i, card.time_ordered[split]) for i in range(len(bare))]
    masses = frames[0].get_masses()[:, None]
    temperature = np.mean([(masses * v**2).sum() for v in speeds]) / (3 * len(masses) * units.kB)
    assert temperature == pytest.approx(card.conditions(split)[0], rel=0.2)


@pytest.mark.data
def test_benzene_has_the_original_labels_and_is_centred():
    frames = data.load("benzene", "test")
    assert frames[0].get_potential_energy() == pytest.approx(-146530.7462 * 0.04336)
    assert frames[0].get_forces()[0, 0] == pytest.approx(22.31784 * 0.04336)
    assert np.abs(frames[7].positions.mean(axis=0)).max() < 1e-9


@pytest.mark.data
def test_scans_have_energies_only():
    atoms = data.load("acac", "dihedral")[0]
    assert atoms.get_potential_energy() == pytest.approx(-9391.927102388827)
    assert "forces" not in atoms.calc.results


@pytest.mark.data
def test_copies_are_fresh():
    first = data.load("ethanol", "val")
    first[0].positions += 1
    first[0].calc.results["forces"][:] = 0
    again = data.load("ethanol", "val")
    assert np.abs(again[0].positions - first[0].positions).min() > 0.9
    assert np.abs(again[0].get_forces()).max() > 0.1


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match=r"unknown split of ethanol 'tset'; did you mean 'test'.*train, val"):
        data.load("ethanol", "tset")
    with pytest.raises(ValueError, match="did you mean 'aspirin'"):
        data.load("asprin", "test")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A card of one's own, in kcal/mol, beside an extended xyz file; no other data folder."""
    monkeypatch.delenv("EGRAFF_DATA", raising=False)
    monkeypatch.setattr(paths, "ROOT", tmp_path / "root")
    frames = [Atoms("CO", [[0, 0, 0], [0, 0, 1.1 + 0.01 * i]], cell=[9, 9, 9]) for i in range(6)]
    for i, atoms in enumerate(frames):
        atoms.info["REF_energy"] = -100.0 - i
        atoms.arrays["REF_forces"] = np.full((2, 3), 1.0 + i)
    ase.io.write(tmp_path / "co.xyz", frames, format="extxyz")
    (tmp_path / "card.yml").write_text(
        "name: mine\nsystem: molecule\nelements: [6, 8]\ntemperature: 300\ntimestep: 0.5\nreader: extxyz\n"
        "units: {energy: kcal/mol, length: Å}\nkeys: {energy: REF_energy, forces: REF_forces}\n"
        "files: {all: co.xyz}\n"
        "splits:\n  train: {source: all, slice: ':4'}\n  test: {source: all, slice: '4:', frames: 2}\n"
    )
    return tmp_path


def test_own_dataset(own):
    train, test = (data.load(own / "card.yml", split) for split in ("train", "test"))
    assert len(train) == 4
    assert test[1].info == {"source": "all", "frame": 5}
    assert test[1].get_potential_energy() == pytest.approx(-105 * units.kcal / units.mol)
    assert test[1].get_forces()[0, 0] == pytest.approx(6 * units.kcal / units.mol)
    assert data.load("mine", "test")[0].positions[1, 2] == pytest.approx(1.14)
    assert not test[0].pbc.any()
    np.testing.assert_array_equal(data.positions("mine", "train", [6, 8]), [a.positions for a in train])
    assert data.positions("mine", "train", [8, 6]).shape == (0, 2, 3)


def test_own_dataset_with_wrong_key(own):
    card = dataclasses.replace(cards.dataset(own / "card.yml"), keys={"energy": "dft"})
    with pytest.raises(ValueError, match="no 'dft'; it holds .*REF_energy"):
        data.load(card, "test")


FAULTS = {
    "holds no forces": lambda atoms: atoms.calc.results.pop("forces"),
    "forces of shape (3, 3) for 2 atoms": lambda atoms: atoms.calc.results.update(forces=np.zeros((3, 3))),
    "holds forces not finite": lambda atoms: atoms.calc.results["forces"].put(3, np.nan),
    "holds energy not finite": lambda atoms: atoms.calc.results.update(energy=np.inf),
    "holds positions not finite": lambda atoms: atoms.positions.put(0, np.nan),
    "holds a cell not finite": lambda atoms: atoms.cell.array.put(0, np.nan),
    "its cell has no volume": lambda atoms: (atoms.set_pbc(True), atoms.set_cell([9, 9, 0])),
    "holds H, not among": lambda atoms: atoms.numbers.put(0, 1),
    "has its atoms 0 and 1 in one place": lambda atoms: atoms.positions.__setitem__(1, [0, 0, 0.01]),
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_frame_that_cannot_be_learnt_from_is_refused(own, split, fault):
    splits = {name: data.load(own / "card.yml", name) for name in ("train", "test")}
    data.check_splits("mine", splits)
    FAULTS[fault](splits[split][1])
    source = {"train": 1, "test": 5}[split]
    with pytest.raises(ValueError, match=re.escape(fault)) as error:
        data.check_splits("mine", splits)
    for said in (f"mine/{split}: frame 1 (frame {source} of source all)", "slice or drop in the card"):
        assert said in str(error.value)


def test_empty_splits_and_elements_not_trained_on_are_refused(own):
    card = cards.dataset(own / "card.yml")
    train, test = (data.load(card, split) for split in ("train", "test"))
    for splits in ({"train": [], "test": test}, {"train": train, "test": []}):
        with pytest.raises(ValueError, match=r"mine/\w+ has no frames; correct its source or slice"):
            data.check_splits(card, splits)
    more = dataclasses.replace(card, elements=[1, 6, 8])
    with pytest.raises(ValueError, match="mine: the card lists H, which no frame of train holds"):
        data.check_splits(more, {"train": train, "test": test})
    train[0].numbers[0] = test[0].numbers[0] = 1
    data.check_splits(more, {"train": train, "test": test})
    train[0].numbers[0] = 6
    with pytest.raises(ValueError, match="mine: the card lists H"):
        data.check_splits(more, {"train": train, "test": test})


@pytest.mark.parametrize("boundary", [False, True])
def test_atoms_in_one_place_are_found_through_a_boundary_too(own, boundary):
    frames = data.load(own / "card.yml", "train")
    card = dataclasses.replace(cards.dataset("mine"), system="bulk")
    for atoms in frames:
        atoms.set_pbc(True)
    frames[2].positions[1] = [0, 0, 8.95 if boundary else 1.0]
    if not boundary:
        data.check_splits(card, {"train": frames})
        return
    with pytest.raises(
        ValueError, match=r"mine/train: frame 2 .* has its atoms 0 and 1 in one place \(0.05 Å"
    ):
        data.check_splits(card, {"train": frames})


def test_splits_that_share_a_frame_are_refused_unless_the_card_says_so(own):
    card = cards.dataset(own / "card.yml")
    shared = {"train": card.split("train"), "test": cards.Split([cards.Part("all", "3:")])}
    card = dataclasses.replace(card, splits=shared)
    with pytest.raises(
        ValueError, match=r"frame 0 of test \(frame 3 of source all\) is frame 3 of train; .*drop"
    ):
        data.checked(card, ("train", "test"))
    shared["test"] = dataclasses.replace(shared["test"], subset_of=["train"])
    assert len(data.checked(dataclasses.replace(card, splits=shared), ("train", "test"))["test"]) == 3


@pytest.mark.parametrize("seed", [None, 0])
def test_frames_called_ordered_in_time_must_be(own, seed):
    frames = [
        Atoms("CO", [[0, 0, 0], [0, 0.1 * np.sin(i / 5), 1.1 + 0.1 * np.cos(i / 5)]]) for i in range(60)
    ]
    order = np.arange(60) if seed is None else np.random.default_rng(seed).permutation(60)
    frames = [frames[i] for i in order]
    for atoms in frames:
        atoms.info["energy"], atoms.arrays["forces"] = 0.0, np.ones((2, 3))
    ase.io.write(own / "co.xyz", frames, format="extxyz")
    splits = {"test": cards.Split([cards.Part("all")])}
    changes = {"splits": splits, "time_ordered": {"test": 1.0}, "keys": {}}
    card = dataclasses.replace(cards.dataset(own / "card.yml"), **changes)
    if seed is None:
        assert len(data.checked(card, ("test",))["test"]) == 60
        return
    with pytest.raises(ValueError, match="mine/test: the card says time_ordered, but frames .* at random"):
        data.checked(card, ("test",))


def with_hash(own, **changes):
    """The own card with a hash and an address for its file."""
    card = cards.dataset(own / "card.yml")
    content = (own / "co.xyz").read_bytes()
    file = cards.SourceFile("src/co.xyz", "sha256:" + hashlib.sha256(content).hexdigest())
    return dataclasses.replace(card, files={"all": dataclasses.replace(file, **changes)})


def test_missing_file_is_explained(own, monkeypatch):
    monkeypatch.setenv("EGRAFF_DATA", str(own / "mirror"))
    card = with_hash(own, url="http://127.0.0.1:9/co.xyz")
    with pytest.raises(FileNotFoundError) as error:
        data.load(card, "test")
    address, cause = "Address: http://127.0.0.1:9/co.xyz", "(ConnectionError: "
    for said in ("src/co.xyz", address, cause, "refused", card.files["all"].hash, "EGRAFF_DATA"):
        assert said in str(error.value)
    assert error.value.__suppress_context__, "what requests raised on the way is not shown"
    assert error.value.__cause__ is None
    assert not [path for path in (own / "root").rglob("*") if path.is_file()]


def test_git_hash(own):
    content = (own / "co.xyz").read_bytes()
    expected = "git:" + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    assert data.file_hash(own / "co.xyz", "git") == expected


def test_a_file_of_the_user_with_another_hash_is_refused_and_left_alone(own):
    card = with_hash(own, path="co.xyz", hash="git:" + 40 * "0")
    with pytest.raises(
        ValueError, match="co.xyz has the hash git:.* left in place. Correct the hash in the card"
    ):
        data.load(card, "test")
    with pytest.raises(ValueError, match="co.xyz has the hash git:"):  # although it is in the card
        data.digest(card, ("test",))
    assert sorted(path.name for path in own.iterdir()) == ["card.yml", "co.xyz"]


@pytest.fixture
def server(own):
    """Address of a server of the folder of the own card."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=own)) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_download(own, server):
    card = with_hash(own, url=f"{server}/co.xyz")
    assert len(data.load(card, "test")) == 2
    assert sorted(p.name for p in (own / "root" / "data" / "src").iterdir()) == ["co.xyz"]


@pytest.mark.parametrize("kept", [0, 100])
def test_a_download_that_was_torn_is_fetched_again(own, server, capsys, kept):
    card = with_hash(own, url=f"{server}/co.xyz")
    path = own / "root" / "data" / "src" / "co.xyz"
    path.parent.mkdir(parents=True)
    path.write_bytes((own / "co.xyz").read_bytes()[:kept])
    assert len(data.load(card, "test")) == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["co.xyz", "co.xyz.unreadable"]
    assert "co.xyz cannot be used" in capsys.readouterr().err


def test_a_torn_file_of_a_mirror_is_left_to_its_owner(own, server, monkeypatch):
    monkeypatch.setenv("EGRAFF_DATA", str(own / "mirror"))
    (own / "mirror" / "src").mkdir(parents=True)
    (own / "mirror" / "src" / "co.xyz").touch()
    with pytest.raises(ValueError, match="co.xyz has the hash .* left in place"):
        data.load(with_hash(own, url=f"{server}/co.xyz"), "test")


def test_downloads_are_refused_by_size_and_scheme(own, server, monkeypatch):
    card = with_hash(own, url=f"{server}/co.xyz")
    monkeypatch.setattr(files, "MOST_BYTES", 10)
    with pytest.raises(FileNotFoundError, match="co.xyz holds .* bytes, more than 10; fetch it by hand"):
        data.load(card, "test")
    monkeypatch.setattr(
        files, "_check_address", lambda url: None
    )  # as of a server that does not say the size
    with pytest.raises(
        FileNotFoundError, match="co.xyz is not available .* the file holds more than 10 bytes"
    ):
        data.load(card, "test")
    assert not [path for path in (own / "root").rglob("*") if path.is_file()]


def test_download_of_another_file(own, server):
    card = with_hash(own, url=f"{server}/card.yml")
    with pytest.raises(ValueError, match="nothing of it was used"):
        data.load(card, "test")
    assert [p.name for p in (own / "root" / "data" / "src").iterdir()] == ["co.xyz.bad"]


def test_pickles_are_refused(own):
    np.savez(own / "bad.npz", pos=np.array([{}], dtype=object))
    changes = {"reader": "npz", "files": {"all": cards.SourceFile("bad.npz")}}
    with pytest.raises(ValueError, match="allow_pickle=False"):
        data.load(dataclasses.replace(cards.dataset(own / "card.yml"), **changes), "test")
    with pytest.raises(ValueError, match="bad.npz cannot be read as npz"):
        data.load(dataclasses.replace(cards.dataset(own / "card.yml"), **changes), "test")


NPZ = {
    "pos": np.zeros((6, 2, 3)) + [[[0, 0, 0], [0, 0, 1]]],
    "energy": np.zeros(6),
    "forces": np.ones((6, 2, 3)),
    "atomic_numbers": np.array([6, 8]),
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pos": None}, "it holds no 'pos'; it holds atomic_numbers, energy, forces"),
        ({"forces": np.ones((5, 2, 3))}, r"its forces has the shape \(5, 2, 3\), its positions \(6, 2, 3\)"),
        ({"energy": np.zeros(5)}, r"its energy has the shape \(5,\)"),
    ],
)
def test_what_an_npz_file_lacks_is_told_with_its_name(own, changes, told):
    arrays = {name: array for name, array in (NPZ | changes).items() if array is not None}
    np.savez(own / "n.npz", **arrays)
    card = dataclasses.replace(
        cards.dataset(own / "card.yml"), reader="npz", keys={}, files={"all": cards.SourceFile("n.npz")}
    )
    with pytest.raises(ValueError, match=f"n.npz cannot be read as npz: {told}"):
        data.load(card, "test")


@pytest.mark.parametrize(
    "names",
    [("pos", "atomic_numbers", "energy", "forces"), ("coords", "nuclear_charges", "energies", "forces"),
     ("R", "z", "E", "F")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*energies are taken from")
def test_npz_files_of_three_families_are_read(own, names):
    arrays = dict(zip(names, (NPZ[n] for n in ("pos", "atomic_numbers", "energy", "forces")), strict=True))
    np.savez(own / "n.npz", **arrays)
    changes = {"reader": None, "keys": {}, "files": {"all": cards.SourceFile("n.npz")}}
    atoms = data.load(dataclasses.replace(cards.dataset(own / "card.yml"), **changes), "test")[0]
    assert atoms.get_chemical_formula() == "CO"
    np.testing.assert_array_equal(atoms.positions, NPZ["pos"][4])
