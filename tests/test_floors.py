"""Floors and ceilings of frames whose floor is known by hand, and those of the published reference data."""

import ase.io
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import cards, data, metrics, records, structure
from egraff_utils.checks import floors
from egraff_utils.checks.floors import Extent, levels, sample
from egraff_utils.md import rollout
from egraff_utils.md.rollout import RolloutConfig
from egraff_utils.records import Metric, Record
from egraff_utils.report import floors as report
from egraff_utils.report import pages, tables

DECAY = np.exp(-(np.euler_gamma + np.log(2)) / 2)
"""Geometric mean of the size of a standard normal variable."""


def independent(frames=600, bins=60, seed=0):
    """g(r) of frames: 10 with a standard deviation of 1 in every bin."""
    return 10 + np.random.default_rng(seed).normal(size=(frames, bins))


@pytest.mark.parametrize("frames", [100, 900])
def test_wright_factor_of_independent_frames_falls_as_one_over_length(frames):
    """Both lengths count: 1 % for one frame against an endless reference."""
    extent = Extent(4, frames, 600, (frames,) * 4)
    found = floors.structure_floor(independent(), extent, ordered=False)
    assert found["exponent_wf"] == pytest.approx(1.0, abs=0.06)
    assert found["draws_wf"].mean() == pytest.approx(1 / frames + 1 / 600, rel=0.12)
    assert (
        np.quantile(found["draws_wf"], 0.025) < 1 / frames + 1 / 600 < np.quantile(found["draws_wf"], 0.975)
    )


def test_replicas_narrow_the_range_down_to_what_the_reference_leaves():
    """Replicas share the reference: with as many frames as one of them, it holds half of the mean."""
    few, many = (
        floors.structure_floor(independent(1000, 20), Extent(n, 40, 40, (40,) * n), ordered=False)["draws_wf"]
        for n in (1, 20)
    )
    assert few.mean() == pytest.approx(many.mean(), rel=0.05)
    assert np.std(many) < 0.75 * np.std(few)
    assert np.std(many) > 0.3 * np.std(few)


def test_frames_that_last_count_once():
    """Every independent frame repeated five times: the floor is that of a fifth of the frames."""
    slow = np.repeat(independent(200, 300), 5, axis=0)
    found = floors.structure_floor(slow, Extent(3, 500, 1000, (500,) * 3), ordered=True)
    expected = 5 * (1 / 500 + 1 / 1000)
    assert found["draws_wf"].mean() == pytest.approx(expected, rel=0.15)
    assert np.quantile(found["draws_wf"], 0.025) < expected < np.quantile(found["draws_wf"], 0.975)


def test_a_trend_keeps_the_floor_from_falling():
    """A drift over the whole reference, in place of noise: no longer simulation averages it out."""
    drift = independent() + np.linspace(-30, 30, 600)[:, None] + 30
    found = floors.structure_floor(drift, Extent(2, 1000, 600, (600,) * 2), ordered=True)
    assert found["exponent_wf"] < 0.5
    assert found["scale_wf"] > 0.85


def test_too_few_frames_give_no_range():
    found = floors.structure_floor(independent(4), Extent(4, 10, 4, (4,) * 4), ordered=False)
    assert np.isnan(found["draws_wf"]).all()


@pytest.mark.parametrize("apart", [None, 10])
def test_violations_of_independent_frames(apart):
    """Forces of equal size and no correlation: 1/sqrt(2). Energies as in test_statistics."""
    rng = np.random.default_rng(0)
    energies, forces = -1000 + rng.normal(size=800), rng.normal(size=(800, 40, 3))
    found = floors.violation_floor(energies, forces, Extent(3, 500, 800, (500,) * 3), apart=apart)
    assert found["draws_fv"].mean() == pytest.approx(np.sqrt(0.5), rel=0.005)
    assert found["draws_ev_root"].mean() == pytest.approx(DECAY / 1000, rel=0.08)
    assert np.std(found["draws_fv"]) < 0.002


def oscillators(rng, runs, frames, memory, size=(15, 3)):
    """Forces (runs, frames, *size) of unit oscillators under a thermostat of 1 / memory a frame."""
    x, v = rng.normal(size=(2, runs, *size))
    turn, keep, forces = 0.7, np.exp(-1 / memory), np.empty((runs, frames, *size))
    for t in range(frames):
        forces[:, t] = -x
        x, v = np.cos(turn) * x + np.sin(turn) * v, np.cos(turn) * v - np.sin(turn) * x
        v = keep * v + np.sqrt(1 - keep**2) * rng.normal(size=v.shape)
    return forces


@pytest.mark.parametrize("memory", [200, 2000])
def test_range_of_correlated_energies_covers_perfect_runs(memory):
    """Five perfect replicas against a set without an order; frames taken as independent cover far fewer."""
    rng, runs, frames = np.random.default_rng(4), 60, 300
    reference, runs_of = oscillators(rng, 500, 1, 1)[:, 0], oscillators(rng, 5 * runs, frames, memory)
    energy, energies = (np.square(f).sum((-2, -1)) / 2 - 1000 for f in (reference, runs_of))
    pairs = rng.integers(500, size=energies.shape)
    curves = metrics.energy_violation_root(energies, energy[pairs])
    perfect = metrics.geometric_mean(curves, axis=1).reshape(runs, 5).mean(1)
    covered = {}
    for assumed in (memory, 0):
        extent = Extent(5, frames, 500, (frames,) * 5, assumed)
        draws = floors.violation_floor(energy, reference, extent)["draws_ev_root"]
        low, high = np.quantile(draws, [0.025, 0.975])
        covered[assumed] = np.mean((perfect >= low) & (perfect <= high))
    assert covered[memory] >= 0.88
    assert covered[0] < covered[memory] - 0.1


def test_violations_of_pairs_are_those_of_the_metrics():
    rng = np.random.default_rng(1)
    energies, forces = rng.normal(size=6) - 5, rng.normal(size=(6, 4, 3))
    pairs = np.array([[0, 1, 2]]), np.array([[3, 3, 5]])
    found = sample.violations(energies, forces, [pairs])
    force = metrics.force_violation(forces[pairs[0][0]], forces[pairs[1][0]])
    energy = metrics.energy_violation_root(energies[pairs[0][0]], energies[pairs[1][0]])
    assert found["draws_fv"] == pytest.approx([metrics.geometric_mean(force)])
    assert found["draws_ev_root"] == pytest.approx([metrics.geometric_mean(energy)])


def test_pairs_in_order_lie_beyond_the_correlation():
    """Forces that keep a direction for 20 frames: random pairs at least 20 apart are uncorrelated."""
    rng = np.random.default_rng(2)
    forces, energies = np.repeat(rng.normal(size=(30, 50, 3)), 20, axis=0), rng.normal(size=600) - 50
    apart = floors.separation(energies, forces)
    assert 15 <= apart <= 60
    found = floors.violation_floor(energies, forces, Extent(2, 100, 600, (100,) * 2), apart=apart)
    assert found["draws_fv"].mean() == pytest.approx(np.sqrt(0.5), rel=0.03)


def test_displacement_of_atoms_that_fly_straight():
    """One Å per frame: the last tenth of 20 frames are the lags 18, 19 and 20."""
    path = np.arange(50.0)[:, None, None] * np.array([[[1.0, 0, 0], [0, 0, -1.0]]])
    found = floors.displacement_floor(path, Extent(2, 21, 50, (21, 21)))
    assert found == pytest.approx(np.full(len(found), 19.0))
    assert np.isnan(floors.displacement_floor(path, Extent(2, 80, 50, (50, 50)))).all()


def test_ideal_gas_between_walls():
    """Against atoms thrown into a skew cell."""
    cell = np.array([[12.0, 0, 0], [3, 11, 0], [0, 1, 13]])
    atoms = Atoms("Ar5", cell=cell)
    thrown = np.random.default_rng(0).random((20000, 5, 3)) @ cell
    r_max = floors.structure.as_coded_r_max(atoms)
    found = floors.structure.radial_distributions(thrown, atoms.numbers, cell=cell, pbc=False, r_max=r_max)
    expected = floors.ideal_gas_rdf(atoms, len(found.r))
    assert expected[0] == pytest.approx(0.8, abs=0.01)
    for near, far in ((1, 3), (3, 4), (4, 5)):
        shell = (found.r > near) & (found.r < far)
        counted, known = (np.sum(g[shell] * found.r[shell] ** 2) for g in (found.total, expected))
        assert counted == pytest.approx(known, rel=0.03)


# -- an Einstein crystal --------------------------------------------------------------------------------

SITES = 2.0 * np.stack(np.meshgrid(*[range(3)] * 3), axis=-1).reshape(-1, 3)
WIDTH, TEMPERATURE = 0.05, 300


def harmonic(frames):
    """Frames of a crystal of independent harmonic atoms, with its energies and forces."""
    rng, stiffness = np.random.default_rng(0), TEMPERATURE * units.kB / WIDTH**2
    for moved in WIDTH * rng.normal(size=(frames, len(SITES), 3)):
        atoms = Atoms("Ar27", SITES + moved, cell=[6, 6, 6], pbc=True)
        energy, forces = 0.5 * stiffness * np.sum(moved**2) - 100, -stiffness * moved
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        yield atoms


@pytest.fixture
def crystal(tmp_path, monkeypatch):
    """A dataset in no order: ``test``, made of two equal parts, and ``test_hot``."""
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    ase.io.write(tmp_path / "frames.xyz", list(harmonic(200)), format="extxyz")
    part = {"source": "frames", "frames": 100}
    mapping = {
        "name": "einstein_crystal",
        "system": "bulk",
        "elements": [18],
        "temperature": TEMPERATURE,
        "timestep": 1.0,
        "reader": "extxyz",
        "files": {"frames": {"path": "frames.xyz"}},
        "splits": {
            "test": {"source": "frames"},
            "test_hot": part | {"slice": ":100"},
            "both": {"parts": [{"source": "frames", "slice": ":100"}, {"source": "frames", "slice": "100:"}]},
            "first": part | {"slice": ":100", "subset_of": ["both"]},
            "second": part | {"slice": "100:", "subset_of": ["both"]},
        },
        "temperatures": {"test_hot": 600},
    }
    path = tmp_path / "card.yml"
    path.write_text(yaml.safe_dump(mapping))
    return cards.dataset(path).name


def config(dataset, **changes):
    return RolloutConfig("any", dataset, campaign="test", **{"replicas": 2, "steps": 50} | changes)


def test_an_einstein_crystal_cannot_be_told_from_an_independent_one(crystal):
    reference, frozen, gas, einstein = floors.of_rollout(config(crystal))
    assert [r.model for r in (reference, frozen, gas, einstein)] == list(floors.MODELS)
    assert {r.kind for r in (reference, frozen, gas, einstein)} == {"floor"}
    assert einstein["wf"] == pytest.approx(reference["wf"], rel=0.6)
    for name in ("fv", "ev_root"):
        assert einstein[name] == pytest.approx(reference[name], rel=0.15)
    assert einstein["rmsd"] == pytest.approx(np.sqrt(6) * WIDTH, rel=0.1)
    assert frozen["wf"] > 20 * reference["wf"]
    assert gas["wf"] > 90
    assert (frozen["rmsd"], gas["fv"], reference["rmsd"]) == (0, 1, None)
    low, high = reference.metric("wf").low, reference.metric("wf").high
    assert low < reference["wf"] < high
    assert "independent" in reference.message


def test_sites_of_a_molecule_that_turns():
    """Superposed, it is the same molecule; six of its 15 degrees of freedom are gone."""
    rng = np.random.default_rng(3)
    sites = np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2], [2, 2, 2]])
    frames = [Atoms("C4O", sites + WIDTH * rng.normal(size=(5, 3))) for _ in range(400)]
    for atoms in frames:
        atoms.rotate(rng.uniform(0, 360), rng.normal(size=3))
    found, widths = floors.displacements(frames)
    assert np.linalg.norm(found[0] - found[4]) == pytest.approx(np.sqrt(12), abs=0.02)
    assert np.sqrt(np.mean(widths**2)) == pytest.approx(WIDTH * np.sqrt(9 / 15), rel=0.05)


def test_no_einstein_crystal_where_atoms_leave():
    path = np.array([[0, 0, 0.03 * t] for t in range(100)])
    frames = [Atoms("He2", [[2, 2, 2] + p, [4.0, 2, 2] - p], cell=[8, 8, 8], pbc=True) for p in path]
    assert floors.displacements(frames) is None


def test_sites_across_the_boundary():
    rng = np.random.default_rng(0)
    frames = []
    for moved in 0.1 * rng.normal(size=(300, 2, 3)):
        atoms = Atoms("He2", [[0.0, 0, 0], [3, 3, 3]] + moved, cell=[6, 6, 6], pbc=True)
        atoms.wrap()
        frames.append(atoms)
    _, widths = floors.displacements(frames)
    assert widths == pytest.approx([0.1 / np.sqrt(2)] * 2, rel=0.1)  # without the motion of the centre


def test_records_are_kept_until_something_changes(crystal):
    first = floors.of_rollout(config(crystal))
    again = floors.of_rollout(config(crystal, seed=1, max_seconds=5))
    assert [a.provenance for a in again] == [f.provenance for f in first]
    longer = floors.of_rollout(config(crystal, steps=300))
    assert longer[0]["wf"] < first[0]["wf"]


def test_kind_says_the_set_and_the_protocol(crystal):
    assert floors.of_rollout(config(crystal, split="test_hot"))[0].kind == "floor_hot"
    assert floors.of_rollout(config(crystal, protocol="as_coded"))[0].kind == "floor_as_coded"


def test_several_compositions_are_pooled(crystal):
    pooled, *_ = floors.of_rollout(config(crystal, split="both"))
    parts = [floors.of_rollout(config(crystal, split=name))[0] for name in ("first", "second")]
    assert pooled.kind == "floor_both"
    assert pooled["wf"] == pytest.approx(np.mean([part["wf"] for part in parts]), rel=1e-4)
    widths = [record.metric("wf").high - record.metric("wf").low for record in (pooled, *parts)]
    assert widths[0] < np.mean(widths[1:])


def mixed(tmp_path, monkeypatch, test):
    """Name of a dataset whose test split are these frames; the others are those of :func:`harmonic`."""
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    for name, frames in {"some": list(harmonic(28))[20:], "test": test}.items():
        ase.io.write(tmp_path / f"{name}.xyz", frames, format="extxyz")
    text = (
        "name: mixed_set\nsystem: bulk\nelements: [18]\ntemperature: 300\ntimestep: 1.0\n"
        "files: {some: some.xyz, test: test.xyz}\n"
        "splits: {train: {source: some, slice: ':4'}, val: {source: some, slice: '4:'}, test: test}\n"
    )
    (tmp_path / "mixed.yml").write_text(text)
    return tmp_path / "mixed.yml"


def smaller(frames, edge, kept):
    """Some atoms of frames in a cube of another edge."""
    for atoms in frames:
        few = atoms[kept]
        few.set_cell(3 * [edge])
        few.calc = SinglePointCalculator(
            few, energy=-1.0 + atoms.positions[0, 0], forces=atoms.get_forces()[kept]
        )
        yield few


def test_systems_of_one_test_split_have_their_floors_one_by_one(tmp_path, monkeypatch):
    """27 atoms, 8 atoms in a cell too small for g(r), and a single frame of 18, in turn."""
    large, small = list(harmonic(6)), list(smaller(harmonic(6), 4.0, SITES.max(1) < 3))
    (lonely,) = smaller(harmonic(1), 6.0, SITES[:, 0] < 3)
    test = [atoms for pair in zip(large, small, strict=True) for atoms in pair] + [lonely]
    record = floors.measure(mixed(tmp_path, monkeypatch, test))
    of_large, of_small = ({m.name: m.value for m in floors.noise_floors(part)} for part in (large, small))
    assert set(of_large) - set(of_small) == {"floor_wf", "floor_jsd", "floor_jsd_raw"}
    assert record["floor_wf"] == pytest.approx(of_large["floor_wf"])
    assert record["floor_fv"] == pytest.approx(np.mean([of_large["floor_fv"], of_small["floor_fv"]]))
    assert "one frame, which have no floor: 1 of 3;" in record.message
    assert "Ar8 has no floor of g(r), as no two atoms are within 1.5 Å" in record.message
    assert "Ar8 has no floor" in tables.record_table(record).to_html()


def test_every_frame_of_a_set_has_its_own_cell(tmp_path, monkeypatch):
    """Frames that were stretched with their cells: those of the first cell would be counted beyond it."""
    frames = list(harmonic(20))
    for atoms, stretch in zip(frames, np.linspace(0.9, 1.1, 20), strict=True):
        calc = atoms.calc
        atoms.set_cell(atoms.cell * stretch, scale_atoms=True)
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=calc.results["forces"])
    r_max = structure.as_coded_r_max(frames[0])
    halves = [structure.radial_distribution(part, r_max)[1] for part in (frames[:10], frames[10:])]
    record = floors.measure(mixed(tmp_path, monkeypatch, frames))
    assert record["floor_wf"] == pytest.approx(metrics.wright_factor(*halves))
    assert record.message == ""


def test_a_test_split_of_single_frames_has_no_floor(tmp_path, monkeypatch):
    record = floors.measure(mixed(tmp_path, monkeypatch, list(harmonic(1))))
    assert record["energy_std"] is None
    assert record.message == "systems in test with one frame, which have no floor: 1 of 1"
    assert np.isnan(pages.dataset_values(record)["floor-wf"])


def test_order_that_a_set_hides_is_kept():
    """A drift in a set said to be in no order: the floor is not that of independent frames."""
    atoms, drift = Atoms("Ar2", cell=[9, 9, 9], pbc=True), np.linspace(0, 2, 200)[:, None]
    rng = np.random.default_rng(0)
    found = []
    for rdf in (independent(200), independent(200) + drift):
        forces, path = rng.normal(size=(200, 2, 3)), np.zeros((200, 2, 3))
        sample = floors.Sample(rdf, rng.normal(size=200) - 50, forces, path, None, atoms)
        found.append(levels.independent(sample, Extent(2, 1000, 200, (1000,) * 2)))
    assert found[0]["draws_wf"].mean() == pytest.approx(1 / 1000 + 1 / 200, rel=0.15)
    assert found[1]["scale_wf"] == 1
    assert found[1]["draws_wf"].mean() > 3 * found[0]["draws_wf"].mean()


# -- beside the values ----------------------------------------------------------------------------------


def with_bounds(frame):
    """The fixture's rollouts on ethanol (FV 0.5, 0.6, 0.7) with a floor and two null models."""
    rows = [("reference", 0.6, 0.55, 0.62), ("frozen", 0.59, 0.5, 0.7), ("ideal_gas", 1.0, 1.0, 1.0)]
    names = ["model", "value", "low", "high"]
    more = [dict(zip(names, row, strict=True), kind="floor", dataset="ethanol", metric="fv") for row in rows]
    return pd.concat([frame, pd.DataFrame(more)], ignore_index=True)


def test_values_between_floor_and_ceiling(frame):
    found = report.scores(with_bounds(frame))
    ours = found[(found.metric == "fv") & found.ours.notna()]
    assert set(ours.place) == {"Ethanol"}
    assert set(ours.floor) == {0.6}
    assert (set(ours.frozen), set(ours.ideal_gas), ours.einstein.notna().sum()) == ({0.59}, {1.0}, 0)
    assert report.alike(found, "fv") == (1, 3)  # 0.6 alone; 0.5 follows the reference
    assert report.alike(found, "fv", "paper") == (0, 6)  # 0.684 to 0.698
    assert report.sets(found, "fv").frozen.tolist() == [0.59]
    row = report.ranges(found, "fv").loc["Ethanol"]
    assert (row["95 % range"], row["Ours"], row["Published"]) == (
        "0.55 to 0.62",
        "0.5 to 0.7",
        "0.684 to 0.698",
    )
    assert (row["Einstein crystal"], row["Perfect"]) == ("–", "not known")
    assert report.below(found, "fv") == (1, 3)  # 0.5 knows of its reference
    assert report.known_perfect(found).startswith("no set here")


def test_a_set_of_frames_counts_once():
    """All that were trained on a molecule of MD17 are simulated on the same frames of benzene."""
    found = report.scores(records.read("cpu"))
    assert (found.frames == "Benzene").sum() > 4
    for metric in ("wf", "fv"):
        known = report.sets(found, metric)
        assert known.frames.is_unique
        assert known[["floor", "frozen"]].duplicated().sum() == 0
    assert not found.home[found.frames == "Benzene"].any()
    assert set(found.place[found.home & (found.dataset == "3bpa")]) == {"3BPA, 300 K"}  # of the training set


def test_coverage_counts_the_intervals_that_hold_the_truth():
    """Means of the others are 520, 510 and 500 K; the target of ethanol_xtb is 500 K."""
    found = [
        Record("bench_coverage", "bench", "ethanol_xtb", "reference", seed, {}, [metric])
        for seed, metric in enumerate(
            Metric("temperature", value, "K", low, high)
            for value, low, high in [(490, 470, 510), (510, 505, 515), (530, 495, 565)]
        )
    ]
    row = report.coverage([*found, Record("floor", "demo", "ethanol_xtb", "reference", 0)]).loc["ethanol_xtb"]
    assert row["Repetitions (count)"] == 3
    assert row["Temperature"] == pytest.approx(200 / 3)  # all but the first
    assert row[report.ENSEMBLE] == pytest.approx(200 / 3)  # all but the second
    assert report.coverage([]).empty


def test_figure_and_tables_of_any_records(frame):
    for rows in (with_bounds(frame), frame, frame.iloc[:0]):
        found = report.scores(rows)
        figure = report.plot_ranges(found)
        assert len(figure.axes) == 3
        plt.close(figure)
        assert report.alike(found, "rmsd") == (0, 0)
        assert not report.ranges(found, "wf").isna().any(axis=None)


# -- the published data ---------------------------------------------------------------------------------

TABLE = {
    "acac": (["test"], 0.16, 0.81, 0.714),
    "3bpa": (["test_300K"], 0.06, 0.50, 0.704),
    "aspirin": (["test"], 0.8, 0.74, 0.691),
    "ethanol": (["test"], 0.6, 2.7, 0.690),
    "naphthalene": (["test"], 0.8, 1.3, 0.688),
    "salicylic_acid": (["test"], 1.4, 1.06, 0.703),
    "lips": (["train", "val", "test"], 0.02, 80, 0.707),
}
"""Splits; Wright's factor of the first half against the second, %; root EV, 1e-5, and FV of random pairs:
read off the published files before any of this was written."""


@pytest.mark.data
@pytest.mark.parametrize("name", TABLE)
def test_halves_of_the_published_data_lie_among_our_draws(name):
    splits, wf, ev_root, fv = TABLE[name]
    card = cards.dataset(name)
    frames = [a for split in splits for a in data.load(name, split)]
    frames = frames if len(splits) > 1 else rollout.reference_of(card, split=splits[0])
    sample = floors.Sample.of(frames, card.time_ordered.get(splits[0]))
    half = len(frames) // 2
    extent = Extent(1, half, len(frames) - half, (len(frames),))
    found = floors.structure_floor(sample.rdf, extent, ordered=sample.ordered, draws=100)
    apart = floors.separation(sample.energies, sample.forces) if sample.ordered else None
    found |= floors.violation_floor(sample.energies, sample.forces, extent, apart=apart)
    for metric, value, factor in (("wf", wf, 1), ("ev_root", ev_root, 1e5), ("fv", fv, 1)):
        low, high = factor * np.quantile(found[f"draws_{metric}"], [0.025, 0.975])
        assert 0.99 * low <= value <= 1.01 * high, metric


def test_spread_of_rdf_covers_unseen_blocks():
    """95 of 100 bins of a fresh rollout's mean g(r) lie within the spread around that of the reference."""
    rdf, extent = independent(600, 2000), Extent(4, 150, 600, (150,) * 4)
    spread = floors.structure_floor(rdf, extent, ordered=False)["rdf_spread"]
    fresh = independent(600, 2000, seed=1).reshape(4, 150, -1).mean(1)
    apart = np.abs(fresh - rdf.mean(0))
    assert 0.92 < (apart[0] < spread[0]).mean() < 0.98
    assert 0.92 < (np.abs(fresh.mean(0) - rdf.mean(0)) < spread[1]).mean() < 0.98


def test_a_memory_answers_well_only_where_it_has_seen_neighbours():
    """Frames of a slow motion: draws in between are recalled, a later stretch is not."""
    time = np.arange(40)
    atoms = [Atoms("H", [[0.1 * t, 0, 0]], cell=[9, 9, 9], pbc=True) for t in time]
    for t, frame in zip(time, atoms, strict=True):
        frame.calc = SinglePointCalculator(frame, forces=[[0.5 * t, 0, 0]])
    shuffled, blocks = (
        floors.recalled_errors(atoms, kept, asked).mean()
        for kept, asked in ((time[::2], time[1::2]), (time[:20], time[20:]))
    )
    assert shuffled == pytest.approx(0.5 / 3)  # a step away; force components, one of three
    assert blocks > 10 * shuffled
