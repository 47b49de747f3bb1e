"""Checks of the data against planted defects and known ensembles."""

import re
import shutil

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from scipy.spatial.transform import Rotation

from egraff_utils import cards, data, paths, records
from egraff_utils.checks import audit
from egraff_utils.checks.audit import sampler
from egraff_utils.checks.audit.labels import Work
from egraff_utils.report import catalogue


def springs(temperature, *, stretch=1.0, count=4000):
    """Frames of atoms tied to each other by springs of rest length zero, sampled exactly."""
    rng, atoms, stiffness = np.random.default_rng(0), 4, 2.0
    spread = np.sqrt(units.kB * temperature / (stiffness * atoms))
    for _ in range(count):
        x = rng.normal(0, spread, (atoms, 3))
        x -= x.mean(axis=0)
        frame = Atoms("C4", stretch * x)
        forces = -stiffness * atoms * stretch * x
        frame.calc = SinglePointCalculator(frame, energy=0.0, forces=forces)
        yield frame


def test_virial_temperature_of_an_exact_sample():
    assert audit.virial_temperature(list(springs(300))).mean() == pytest.approx(300, rel=0.03)


def test_virial_temperature_tells_frames_of_another_potential():
    assert audit.virial_temperature(list(springs(300, stretch=1.2))).mean() > 400


def test_virial_temperature_refuses_a_crystal():
    with pytest.raises(ValueError, match="molecule"):
        audit.virial_temperature([Atoms("Cu", cell=[2, 2, 2], pbc=True)])


def test_the_sampler_of_frames_is_told_from_another_potential(tmp_path, monkeypatch):
    """GFN2-xTB on its own trajectory, and on the same frames with labels that push the atoms outwards."""
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path))
    frames = data.load("ethanol_xtb", "train")
    for atoms in frames:
        x = atoms.positions - atoms.positions.mean(axis=0)
        forces = atoms.get_forces() + 0.2 * x
        atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=forces)
    monkeypatch.setattr(data, "load", lambda *_: frames)
    record = sampler.compare("ethanol_xtb", ["train"], most=200)
    candidate = record.metric("virial_candidate_train")
    assert candidate.low < 500 < candidate.high
    assert record["virial_labels_train"] < candidate.low
    assert record["spread_labels_train"] == pytest.approx(record["spread_candidate_train"], rel=1e-4)


def test_spread_temperature_of_a_harmonic_molecule():
    rng, atoms = np.random.default_rng(0), 9
    energies = units.kB * 300 * rng.gamma((3 * atoms - 6) / 2, size=100_000)
    assert sampler.spread_temperature(energies, atoms) == pytest.approx(300, rel=0.01)


@pytest.mark.data
def test_acac_frames_do_not_belong_to_their_labels():
    aspirin = audit.virial_temperature(data.load("aspirin", "train"))
    acac = audit.virial_temperature(data.load("acac", "test"))
    assert aspirin.mean() == pytest.approx(500, abs=4 * aspirin.std() / np.sqrt(len(aspirin)))
    assert acac.mean() < -2000


# -- planted defects ------------------------------------------------------------------------------------

SIDE = 1.5 * np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, -1).T
REST = np.linalg.norm(SIDE[:, None] - SIDE, axis=-1)


def spring_forces(x, stiffness=12.0):
    """Energy and forces of eight atoms tied to each other by springs."""
    vectors = x[:, None] - x
    lengths = np.linalg.norm(vectors, axis=-1) + np.eye(8)
    stretch = np.where(np.eye(8) > 0, 0.0, lengths - REST)
    forces = -stiffness * (stretch / lengths)[:, :, None] * vectors
    return 0.25 * stiffness * (stretch**2).sum(), forces.sum(1)


def simulate(temperature, blocks, seed=3, timestep=0.5 * units.fs):
    """Frames of a Langevin trajectory of the springs, by block; blocks are (name, frames, steps between)."""
    rng, masses = np.random.default_rng(seed), Atoms("C4H4").get_masses()[:, None]
    x, kick = SIDE.copy(), np.sqrt(units.kB * temperature / masses)
    v, keep = kick * rng.normal(size=x.shape), np.exp(-0.02 * timestep / units.fs)
    energy, forces = spring_forces(x)
    found = {}
    for name, frames, stride in [("heat", 100, 20), *blocks]:
        found[name] = []
        for _ in range(frames):
            for _ in range(stride):
                v += 0.5 * timestep * forces / masses
                x = x + 0.5 * timestep * v
                v = keep * v + np.sqrt(1 - keep**2) * kick * rng.normal(size=x.shape)
                v -= (masses * v).sum(0) / masses.sum()
                x = x + 0.5 * timestep * v
                energy, forces = spring_forces(x)
                v += 0.5 * timestep * forces / masses
            found[name].append(labelled(x, energy, forces))
    found.pop("heat")
    return found


def labelled(x, energy, forces, numbers="C4H4", **keywords):
    atoms = Atoms(numbers, x, **keywords)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


@pytest.fixture(scope="module")
def trajectory():
    return simulate(300, [("train", 250, 30), ("val", 40, 30), ("test", 700, 1)])


@pytest.fixture
def clean(trajectory):
    """Sound frames, which may be changed, and the keywords of a card that says the truth."""
    frames = {
        name: [labelled(a.positions, a.get_potential_energy(), a.get_forces()) for a in part]
        for name, part in trajectory.items()
    }
    card = {
        "name": "springs",
        "system": "molecule",
        "elements": [1, 6],
        "temperature": 300,
        "timestep": 0.5,
        "reader": "npz",
        "files": {name: f"{name}.npz" for name in frames},
        "splits": {name: name for name in frames},
        "time_ordered": {"test": 0.5},
    }
    return frames, card


def inspect(frames, card):
    for source, part in frames.items():
        for index, atoms in enumerate(part):
            atoms.info.update(source=source, frame=index)
    return audit.inspect(cards.DatasetCard(**card), frames)


def relabel(atoms, *, energy=lambda e: e, forces=lambda f: f, **keywords):
    """The frame with other labels."""
    results = energy(atoms.get_potential_energy()), forces(atoms.get_forces())
    return labelled(keywords.pop("x", atoms.positions), *results, **keywords)


def test_clean_frames_give_no_finding(clean):
    findings, metrics, words = inspect(*clean)
    assert findings == []
    assert list(words) == list(audit.CHECKS)
    values = {metric.name: metric.value for metric in metrics}
    assert values["interval_test"] == pytest.approx(0.5, rel=0.01)
    assert values["work_slope_test"] == pytest.approx(1, abs=0.01)
    assert values["net_force"] < 1e-12
    assert values["copies_across"] == values["copies_within"] == values["jumps"] == 0


def copy(frames, card):
    frames["test"][17] = relabel(frames["train"][3])


def turned_copy(frames, card):
    swap, turn = [3, 1, 2, 0, 5, 4, 7, 6], Rotation.from_rotvec([0.3, 1, 2]).as_matrix().T
    moved = frames["train"][3].positions[swap] @ turn + [0.3, 0, 0.1]
    frames["val"][5] = relabel(frames["train"][3], x=moved, forces=lambda f: f[swap] @ turn)


def twice(frames, card):
    frames["train"][200] = relabel(frames["train"][100])


def jump(frames, card):
    del frames["test"][400:450]


def mended_jump(frames, card):
    del frames["test"][4:60]
    card["first_contiguous"] = {"test": 4}


def shuffled(frames, card):
    frames["test"] = frames["train"][:120]
    frames["train"] = frames["train"][120:]
    np.random.default_rng(0).shuffle(frames["test"])


def draws(frames, card):
    """Ordered draws with gaps, of which nothing is claimed."""
    kept = np.sort(np.random.default_rng(1).choice(700, 300, replace=False))
    frames["test"] = [frames["test"][i] for i in kept]
    card["time_ordered"] = {}


def wrong_interval(frames, card):
    card["time_ordered"] = {"test": 1.0}


def wrong_temperature(frames, card):
    card["temperature"] = 600


def stretched(frames, card):
    """Bonds longer by 1 % than their forces like, as if sampled with another potential."""
    longer = [(a, 1.01 * a.positions) for a in frames["train"]]
    frames["train"] = [relabel(a, x=x, forces=lambda f, x=x: spring_forces(x)[1]) for a, x in longer]


def hotter(frames, card):
    frames["test"] = simulate(900, [("test", 700, 1)])["test"]


def noisy_forces(frames, card):
    rng = np.random.default_rng(0)
    frames["test"] = [relabel(a, forces=lambda f: f + rng.normal(0, 1, f.shape)) for a in frames["test"]]


def pulled(frames, card):
    frames["train"][9] = relabel(frames["train"][9], forces=lambda f: f + [0.1, 0, 0])


def high(frames, card):
    frames["train"][30] = relabel(frames["train"][30], energy=lambda e: e + 3)


def strong(frames, card):
    frames["train"][30] = relabel(frames["train"][30], forces=lambda f: 8 * f)


def kcal(frames, card):
    change = {"energy": lambda e: 23.06 * e, "forces": lambda f: 23.06 * f}
    frames["train"] = [relabel(a, **change) for a in frames["train"]]


def kcal_energies_in_time(frames, card):
    frames["test"] = [relabel(a, energy=lambda e: 23.06 * e) for a in frames["test"]]


def rounded(frames, card):
    frames["train"] = [relabel(a, energy=lambda e: round(e, 2)) for a in frames["train"]]


def free_atoms(frames, card):
    card["reference_energies"] = {1: -13.6, 6: -1029.3}


def unseen(frames, card):
    frames["val"] = [relabel(a, numbers="N4H4") for a in frames["val"]]
    card["elements"] = [1, 6, 7]


def overlap(frames, card):
    x = frames["val"][3].positions.copy()
    x[0] = x[1] + [0.2, 0.2, 0]
    frames["val"][3] = relabel(frames["val"][3], x=x)


def wandering(frames, card):
    frames["train"] = [relabel(a, x=a.positions + [0.2 * i, 0, 0]) for i, a in enumerate(frames["train"])]


def narrow(frames, card):
    card["system"] = "bulk"
    for name, part in frames.items():
        frames[name] = [relabel(a, cell=[9.5, 12, 12], pbc=True) for a in part]


@pytest.mark.parametrize(
    ("plant", "expected", "text"),
    [
        (copy, {"copies", "order"}, r"1 pairs of equal frames across files \(train and test\)"),
        (turned_copy, {"copies"}, r"1 pairs of equal frames across files \(train and val\)"),
        (twice, {"copies"}, r"1 pairs of equal frames within a file \(train\)"),
        (jump, {"order"}, r"test jumps behind frame 399: \d"),
        (mended_jump, {"order"}, r"test jumps behind frame 3: \d"),
        (shuffled, {"order"}, "test is said to be contiguous, but is shuffled"),
        (draws, {"order"}, r"gaps of 1 to \d+ steps in 1 files"),
        (wrong_interval, {"interval", "temperature"}, "said to be 1 fs apart; Newton's law gives 0."),
        (wrong_temperature, {"temperature"}, r"test is at [23]\d\d K, not 600 K"),
        (stretched, {"temperature"}, r"the virial temperature is \d+ ± \d+ K in train, not 300 K"),
        (hotter, {"temperature"}, r"test by \+\d\d\d K \(stated \+0 K\)"),
        (noisy_forces, {"labels", "interval"}, "of the work of the forces"),
        (pulled, {"labels"}, "train has a net force of up to 0.80 eV/Å in frame 9"),
        (high, {"outliers"}, r"1 outliers of energy in train \(frame 30\)"),
        (strong, {"outliers"}, r"1 outliers of force in train \(frame 30\)"),
        (kcal, {"units", "temperature"}, "k_B T over the force of train is 0.00"),
        (kcal_energies_in_time, {"units", "labels", "temperature"}, r"changes by 23\.\d"),
        (rounded, {"units"}, "energies are rounded to 10 meV"),
        (free_atoms, {"atomic energies"}, "sum to -4,172 eV"),
        (unseen, {"geometry"}, "val holds N, train does not"),
        (overlap, {"geometry", "labels"}, r"the shortest distance in val is 0\.[123]"),
        (wandering, {"geometry"}, "the molecule of train drifts: its centre spreads over 14 Å"),
        (narrow, {"geometry"}, "3 of 3 cells are narrower than twice the cutoff of 5 Å"),
    ],
)
def test_planted_defect_is_found_and_nothing_else(clean, plant, expected, text):
    plant(*clean)
    findings, _, _ = inspect(*clean)
    assert {finding.check for finding in findings} == expected
    assert any(re.search(text, finding.text) for finding in findings), findings
    assert all(finding.mended == (plant in (mended_jump, draws, narrow)) for finding in findings)


@pytest.mark.parametrize(("leak", "consistent"), [(0.0, True), (-0.014, False)])
def test_a_constant_loss_is_a_leak_and_no_wrong_slope(leak, consistent):
    rng = np.random.default_rng(0)
    work = 0.014 + rng.normal(0, 0.034, 600)
    pair = Work(work, work + leak + rng.normal(0, 0.005, 600))
    assert pair.line.slope == pytest.approx(1, abs=3 * pair.line.slope_error)
    assert pair.line.leak == pytest.approx(leak, abs=3 * pair.line.leak_error)
    assert pair.consistent == consistent
    assert (work @ pair.change / (work @ work) > 0.95) == consistent  # through the origin: 0.86 with the leak


def test_copies_in_a_crystal_are_found_wrapped_and_renumbered():
    rng = np.random.default_rng(0)
    first = Atoms("Li4S4", rng.uniform(0, 8, (8, 3)), cell=[8, 9, 10], pbc=True)
    other = Atoms("Li4S4", rng.uniform(0, 8, (8, 3)), cell=[8, 9, 10], pbc=True)
    moved = first[[1, 0, 2, 3, 7, 5, 6, 4]]
    moved.translate([5, 5, 5])
    moved.wrap()
    near = first.copy()
    near.positions[0, 0] += 0.01
    frames = [labelled(a.positions, 0.0, None, "Li4S4", cell=a.cell, pbc=True) for a in (first, other)]
    frames += [labelled(a.positions, 0.0, None, "Li4S4", cell=a.cell, pbc=True) for a in (moved, near)]
    assert audit.copies([audit.Series.of(frames, "file")]) == [(("file", 0), ("file", 2))]


def test_masses_are_those_of_the_frames(trajectory):
    """Nuclei four times as heavy move half as fast: the same path takes twice the time."""
    frames = [labelled(a.positions, a.get_potential_energy(), a.get_forces()) for a in trajectory["test"]]
    light = audit.newton_clock(audit.Series.of(frames)).interval
    for atoms in frames:
        atoms.set_masses(4 * atoms.get_masses())
    assert audit.newton_clock(audit.Series.of(frames)).interval == pytest.approx(2 * light)


def test_frames_in_time_are_of_one_system(clean):
    frames, card = clean
    frames["test"][5].set_masses([2.0] * 8)
    with pytest.raises(ValueError, match="springs/test: .* time_ordered, but its frames are of 2 systems"):
        inspect(frames, card)


def test_the_splits_of_a_card_are_free_of_the_copies_that_it_leaves_out(clean):
    frames, card = clean
    frames["val"][5] = relabel(frames["train"][3])
    card["splits"] = {**card["splits"], "train": {"source": "train", "drop": [3]}}
    (finding,), _, _ = inspect(frames, card)
    assert (finding.check, finding.mended) == ("copies", True)


def test_equal_files_are_found_whether_the_card_uses_them_or_not(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_DATA", str(tmp_path))
    for role, content in (("train", b"a" * 2000), ("val", b"b" * 2000), ("test", b"b" * 2000)):
        (tmp_path / "set" / role).mkdir(parents=True)
        (tmp_path / "set" / role / "frames.npz").write_bytes(content)
    files = {role: f"set/{role}/frames.npz" for role in ("train", "test")}
    card = {"system": "molecule", "elements": [1], "temperature": 300, "timestep": 1, "reader": "npz"}
    card = cards.DatasetCard("mine", splits={"test": "test"}, files=files, **card)
    assert audit.same_files(card) == [("test", "val")]


def test_a_record_is_kept_until_the_data_change(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    frames = simulate(300, [("train", 60, 10), ("test", 60, 1)], seed=1)
    for name, part in frames.items():
        ase.io.write(tmp_path / f"{name}.xyz", part, format="extxyz")
    text = "name: spring\nsystem: molecule\nelements: [1, 6]\ntemperature: 300\ntimestep: 0.5\n"
    text += "reader: extxyz\ntime_ordered: {test: 0.5}\nfiles: {train: train.xyz, test: test.xyz}\n"
    (tmp_path / "card.yml").write_text(text + "splits: {train: train, test: test}\n")
    record = audit.audit(tmp_path / "card.yml")
    assert (record.kind, record.model, record["findings"]) == (
        "audit",
        "reference",
        len(audit.findings(record)),
    )
    assert set(record.parameters["words"]) == set(audit.CHECKS)
    assert audit.audit(tmp_path / "card.yml").provenance == record.provenance
    ase.io.write(tmp_path / "train.xyz", frames["train"] + frames["train"][:1], format="extxyz")
    (again,) = [f for f in audit.findings(audit.audit(tmp_path / "card.yml")) if f.check == "copies"]
    assert again.text == "1 pairs of equal frames within a file (train)"


# -- real data ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Audit of a dataset, made once."""
    folder, made = tmp_path_factory.mktemp("results"), {}

    def of(name):
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("EGRAFF_RESULTS", str(folder))
                made[name] = audit.audit(name)
        return made[name]

    return of


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "check", "text", "mended"),
    [
        ("aspirin", "copies", r"^8 pairs of equal frames across files \(train and test\)", True),
        ("ethanol", "copies", r"^3 pairs", True),
        ("naphthalene", "copies", r"^7 pairs", True),
        ("salicylic_acid", "copies", r"^6 pairs", True),
        ("naphthalene", "order", "test jumps behind frame 3:", True),
        ("gete", "order", "val jumps behind frame 9:", True),
        ("gete", "labels", "net force of 0.32 eV/Å .* at most 0.8", False),
        (
            "gete",
            "labels",
            r"1\.00 ± 0\.05 of the work of the forces and a constant -14 ± 2 meV in test",
            False,
        ),
        ("lips20", "order", "in order of time with gaps of 1 to 29 steps in 16 files", True),
        ("lips20", "temperature", "8 of 16 sets are not at the published 3000 K: Li 18", True),
        ("lips", "atomic energies", "sum to -106,482 eV, the frames of val are at -358 eV", True),
        ("3bpa", "temperature", "770 ± .. K in test, not 600 K", False),
        ("acac", "temperature", "-2791 ± .. K in test, not 300 K", False),
        ("benzene", "geometry", "the molecule of test drifts: its centre spreads over 57 Å", True),
        ("benzene", "temperature", "virial temperature is 218 ± .. K in test, not 500 K", False),
    ],
)
def test_known_defects_are_found(audited, name, check, text, mended):
    findings = [finding for finding in audit.findings(audited(name)) if finding.check == check]
    assert any(re.search(text, finding.text) and finding.mended == mended for finding in findings), findings


@pytest.mark.data
def test_what_is_known_of_order_and_intervals(audited):
    words = {
        name: audited(name).parameters["words"]["order"] for name in ("lips", "3bpa", "benzene", "ethanol")
    }
    assert words["lips"] == words["benzene"] == "shuffled"
    assert words["3bpa"] == "shuffled; even, 5 pieces"
    assert words["ethanol"] == "shuffled; even"
    assert audited("ethanol")["interval_test"] == pytest.approx(0.5, rel=0.03)
    assert audited("lips20")["interval"] == pytest.approx(0.5, rel=0.001)
    assert audited("gete")["interval_test"] == pytest.approx(1.2, rel=0.05)
    assert audited("3bpa")["rise_test"] == pytest.approx(300, abs=15)


@pytest.mark.data
def test_acac_validation_file_is_its_test_file(tmp_path, monkeypatch):
    """As the paper ships it; the mirror leaves the second copy out, so it is put there."""
    card = cards.dataset("acac")
    for role in ("test", "train"):
        there = next(p for folder in paths.data() if (p := folder / card.files[role].path).exists())
        for copied in {"test": ("test", "val"), "train": ("train",)}[role]:
            place = tmp_path / card.files[role].path.replace(f"/{role}/", f"/{copied}/")
            place.parent.mkdir(parents=True)
            shutil.copy(there, place)
    monkeypatch.setenv("EGRAFF_DATA", str(tmp_path))
    assert audit.same_files(card) == [("test", "val")]


def test_the_audit_says_which_frames_the_candidate_sampled():
    """GFN2-xTB gives the stated temperature to acetylacetone, and not to 3BPA."""
    found = [r for r in records.read_all("cpu") if r.kind == "sampler"]
    kelvin = {r.dataset: r.metric("virial_candidate_test") for r in found}
    assert kelvin["acac"].low < 300 < kelvin["acac"].high
    assert kelvin["3bpa"].low > 600
    values = catalogue.sampler_values(found)
    assert (values["acac_candidate"], values["acac_labels"]) == ("345 ± 109", "-2,791 ± 108")
    assert set(catalogue.sampler_values([]).values()) == {"no value"}
