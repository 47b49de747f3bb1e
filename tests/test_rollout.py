"""Rollouts: what the protocols start from, what they are compared with, and what the record says."""

import dataclasses
import json

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import units
from ase.build import molecule
from ase.calculators.emt import EMT
from test_calculator import SoftSpheres

from egraff_utils import campaign as campaigns
from egraff_utils import cards, data, models, records
from egraff_utils.checks import gate
from egraff_utils.md import rollout, stability
from egraff_utils.md.rollout import RolloutConfig, match_frames, roll_out, start_frames
from egraff_utils.md.temperature import kinetic_temperature
from egraff_utils.running import pages

STORED = 2.0**-12
"""Relative precision of the curves of a record."""

BLOCK = {"frames": 10, "stride": 1, "friction": 0.01}
COPPER = {
    "name": "copper_test",
    "system": "bulk",
    "elements": [29],
    "temperature": 900,
    "timestep": 2.0,
    "reader": "generated",
    "oracle": "emt",
    "time_ordered": {"test": 2.0},
    "generate": {
        "bulk": "Cu",
        "lattice_constant": 3.7,
        "repeat": 2,
        "seed": 1,
        "stages": [
            {"frames": 1, "stride": 150, "friction": 0.02},
            *[{**BLOCK, "split": split} for split in ("train", "val")],
            {**BLOCK, "split": "test", "frames": 80},
        ],
    },
    "splits": {split: {"source": split} for split in ("train", "val", "test")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of generated data, made once."""
    return tmp_path_factory.mktemp("rollout")


@pytest.fixture(autouse=True)
def places(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_GENERATED", str(folder / "generated"))
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def copper(folder):
    return _card(folder, COPPER)


@pytest.fixture
def nitrogen(folder):
    """A molecule whose frames have no order in time and whose method cannot be run."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(8):
        atoms = molecule("N2", cell=[10, 10, 10])
        atoms.positions += 5 + 0.02 * rng.standard_normal((2, 3))
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    ase.io.write(folder / "n2.xyz", frames, format="extxyz")
    card = {"name": "n2_test", "system": "molecule", "elements": [7], "temperature": 300, "timestep": 1.0,
            "reader": "extxyz", "files": {"all": "n2.xyz"},
            "splits": {split: {"source": "all"} for split in ("train", "val", "test")}}  # fmt: skip
    return _card(folder, card)


def _card(folder, mapping):
    path = folder / f"{mapping['name']}.yml"
    path.write_text(yaml.safe_dump(mapping))
    return cards.dataset(path).name


def config(dataset, model="own", **changes):
    options = {"replicas": 2, "steps": 60, "progress": False, "checkpoint_every": 20}
    return RolloutConfig(model, dataset, campaign="test", **options | changes)


def test_the_oracle_agrees_with_itself(copper, monkeypatch):
    monkeypatch.setattr(rollout, "OWN_NOISE", 0)
    record = roll_out(config(copper, "reference"))
    assert record.status == "complete"
    for name in ("ev", "ev_root", "fv"):
        assert record[name] == 0, name
    assert record["wf"] > 0, "each replica is compared with the mean over all"
    assert np.allclose(record.curves["rdf"].mean(0), record.curves["rdf_reference"], rtol=STORED, atol=1e-5)
    assert record["reference_contiguous"] == 1
    assert record["oracle_force_mae"] < 0.1


def test_the_reference_as_a_model_has_noise_of_its_own(copper):
    record = roll_out(config(copper, "reference"))
    assert record.curves["fv"][:, 0] == pytest.approx(0, abs=1e-6)
    assert (record.curves["fv"][:, 1:] > 0).all()
    assert 0 < record["fv"] < 0.3  # the paths part slowly
    assert roll_out(config(copper, "reference")).provenance == record.provenance


def test_corrected_starts_hot_and_as_coded_starts_cold(copper):
    corrected = roll_out(config(copper, "reference"))
    coded = roll_out(config(copper, "reference", protocol="as_coded", replicas=4))
    assert corrected.kind == "rollout"
    assert coded.kind == "rollout_as_coded"
    assert corrected.curves["temperature"][:, 0].mean() == pytest.approx(900, rel=0.3)
    assert coded.curves["temperature"][:, 0] == pytest.approx(0)
    assert coded["temperature"] < 0.65 * 900
    assert corrected["temperature"] > 0.75 * 900
    assert coded.curves["start_frame"].tolist() == [0, 1, 2, 3]
    assert coded["reference_contiguous"] == 0
    assert coded["fv"] > corrected["fv"]


def test_record(copper):
    record = roll_out(config(copper), force_field=SoftSpheres([29]))
    assert record.model == "own"
    curves = record.curves
    over_time = "energy temperature ev_root fv rmsd energy_reference rmsd_reference deviation"
    for name in over_time.split():
        assert curves[name].shape == (2, 61), name
    assert curves["time"][-1] == pytest.approx(120)
    assert curves["rdf"].shape == (2, len(curves["rdf_r"]))
    assert curves["rdf_partial"].shape[:2] == (2, 1)
    assert curves["pairs"].tolist() == ["Cu-Cu"]
    assert curves["stable_step"].tolist() == [60, 60]
    assert curves["block_frames"].sum(1).tolist() == [61, 61]
    mean = np.average(curves["rdf_blocks"][0], axis=0, weights=curves["block_frames"][0])
    assert np.allclose(mean, curves["rdf"][0], rtol=2 * STORED, atol=1e-5)
    assert curves["species"].tolist() == ["Cu"]
    average = np.average(curves["temperature_species"][1, :, 0], weights=curves["block_frames"][1])
    assert average == pytest.approx(curves["temperature"][1].mean(), rel=STORED)
    assert "broken" not in curves
    assert record["steps"] == 60
    assert record["ms_per_step"] > 0
    assert record.metric("fv").n == 2
    assert record.metric("fv").low <= record["fv"] <= record.metric("fv").high
    json.dumps(record.parameters)
    assert records.read("test").query("metric == 'fv'").value.item() == record["fv"]


def test_stored_record_is_returned_until_the_weights_change(copper):
    own = config(copper, steps=10, protocol="as_coded")
    first = roll_out(own, force_field=SoftSpheres([29]))
    first.path.write_text(first.path.read_text().replace('"message": ""', '"message": "kept"'))
    assert roll_out(own, force_field=SoftSpheres([29])).message == "kept"
    assert roll_out(own).message == "kept"  # without any weights at hand
    other = SoftSpheres([29])
    other.register_buffer("weight", torch.ones(1))
    assert roll_out(own, force_field=other).message == ""
    longer = config(copper, steps=12, protocol="as_coded")
    assert roll_out(longer, force_field=other)["steps"] == 12


def test_killed_run_goes_on_to_the_same_numbers(copper):
    class Killed(SoftSpheres):
        calls = 0

        def forward(self, graph):
            Killed.calls += 1
            if Killed.calls == 45:
                raise KeyboardInterrupt
            return super().forward(graph)

    options = {"seed": 1, "steps": 130, "protocol": "as_coded"}
    whole = roll_out(config(copper, **options), force_field=SoftSpheres([29]))
    reference = {name: np.array(curve) for name, curve in whole.curves.items()}
    whole.path.unlink()
    Killed.calls = -40
    with pytest.raises(KeyboardInterrupt):
        roll_out(config(copper, **options), force_field=Killed([29]))
    resumed = roll_out(config(copper, **options), force_field=SoftSpheres([29]))
    for name, curve in reference.items():
        assert np.array_equal(resumed.curves[name], curve, equal_nan=curve.dtype.kind == "f"), name


def test_a_molecule_that_falls_apart_is_unstable(nitrogen):
    record = roll_out(config(nitrogen, steps=250), force_field=SoftSpheres([7], cutoff=5.0))
    assert record.status == "unstable"
    assert "2 of 2 replicas broke" in record.message
    assert "a bond changed by more than 0.5 Å" in record.message
    stable = record.curves["stable_step"]
    assert (stable > 5).all()
    assert (stable < 250).all()
    assert record["stable_fraction"] == pytest.approx(stable.mean() / 250)
    assert record.curves["broken"].tolist() == [0, 1]
    last = record.curves["last_positions"]
    assert last.shape == (2, 10, 2, 3)
    bond = np.linalg.norm(last[:, :, 0] - last[:, :, 1], axis=-1)
    assert (bond < 1.7).all()
    assert (np.diff(bond[:, -3:]) > 0).all()
    energy = record.curves["energy"][0]
    assert record.curves["last_energy"][0, -1] == energy[stable[0]]
    assert np.isnan(energy[stable[0] + 1 :]).all()
    assert np.isfinite(record["wf"])


def test_a_bond_that_the_training_frames_break_may_break():
    """Such as that of a proton which the reference passes on, but not in the few frames of the test set."""
    atoms = molecule("N2")
    still, far = (np.array([[[0, 0, 0], [0, 0, z]]]) for z in (1.1, 1.9))
    none = np.zeros((0, 2, 3))
    for training, verdict in ((none, 0), (still, 0), (np.concatenate([still, far]), None)):
        rule = stability.bond_rule(atoms, still, training)
        assert rule(still) is None
        found = rule(far)
        assert (found and found.frame) == verdict
        assert found is None or found.atoms == (0, 1)


def test_thermal_starts_have_the_temperature_and_no_momentum(nitrogen):
    card = cards.dataset(nitrogen)
    settled = rollout._settled(config(nitrogen, replicas=8, temperature=500.0), card)
    scene = rollout._scene(settled, card)
    again = rollout._scene(settled, card)
    momenta = np.stack([atoms.get_momenta() for atoms in scene.starts])
    assert np.allclose(momenta.sum(1), 0)
    assert 150 < kinetic_temperature(momenta, scene.starts[0].get_masses()).mean() < 1200
    assert scene.digest == again.digest
    assert not scene.reference.contiguous
    assert scene.first == list(range(8))


def test_a_rollout_is_made_again_when_its_frames_change(nitrogen, folder):
    asked, spheres = config(nitrogen, steps=2), SoftSpheres([7])
    first = roll_out(asked, force_field=spheres)
    assert roll_out(asked, force_field=spheres).provenance == first.provenance
    path = folder / "n2.xyz"
    frames = ase.io.read(path, ":")
    frames[2].positions[0, 2] += 0.2  # no replica starts here, but the reference has changed
    ase.io.write(path, [_labelled(atoms) for atoms in frames], format="extxyz")
    again = roll_out(asked, force_field=spheres)
    assert again.provenance["data"] == first.provenance["data"]
    assert again.provenance["frames"] != first.provenance["frames"]
    assert again.curves["rdf_reference"].tolist() != first.curves["rdf_reference"].tolist()
    del again.provenance["frames"]  # nobody knows of what frames a record is that has no digest of them
    records.write(again, dict(again.curves))
    assert "frames" in roll_out(asked, force_field=spheres).provenance


def _labelled(atoms):
    atoms.calc = EMT()
    atoms.get_forces()
    return atoms


def test_starts_and_matching_frames():
    assert start_frames(config("x", replicas=3), 90, ordered=False) == [0, 30, 60]
    assert start_frames(config("x", replicas=3), 90, ordered=True) == [1, 15, 30]
    assert start_frames(config("x", replicas=3), 5, ordered=True) == [1, 2, 3]  # never the first or the last
    with pytest.raises(ValueError, match="3 replicas need as many frames between two others; test has 2"):
        start_frames(config("x", replicas=3), 4, ordered=True)
    assert start_frames(config("x", replicas=3, protocol="as_coded"), 90, ordered=True) == [0, 1, 2]
    index = match_frames([0], np.arange(0, 31), 0.12, interval=1.2, total=100)
    assert np.flatnonzero(index[0] >= 0).tolist() == [0, 10, 20, 30]


def test_time_limit(copper):
    limited = config(copper, steps=3000, max_seconds=0.02, protocol="as_coded")  # a few dozen steps
    record = roll_out(limited, force_field=SoftSpheres([29]))
    assert record.status == "complete"
    assert 0 < record["steps"] < 3000
    assert "of 3000 steps at 0.02 s" in record.message


def test_errors_come_before_any_work(copper, nitrogen):
    with pytest.raises(ValueError, match="did you mean 'corrected'"):
        config(copper, protocol="corected")
    with pytest.raises(ValueError, match="steps must be positive"):
        config(copper, steps=0)
    with pytest.raises(ValueError, match="unknown dataset"):
        roll_out(config("cooper"))
    with pytest.raises(ValueError, match="unknown split"):
        roll_out(config(copper, split="tset"), force_field=SoftSpheres([29]))
    with pytest.raises(ValueError, match="unknown model"):
        roll_out(config(copper, "mase"))
    with pytest.raises(FileNotFoundError, match=r"egraff train mace \S*copper_test.yml"):
        roll_out(config(copper, "mace"))
    with pytest.raises(ValueError, match="no oracle"):
        roll_out(config(nitrogen, "reference"))
    with pytest.raises(ValueError, match="200 replicas need as many frames"):
        roll_out(config(copper, replicas=200), force_field=SoftSpheres([29]))
    with pytest.raises(ValueError, match="not trained on Cu"):
        roll_out(config(copper), force_field=SoftSpheres([1]))


@pytest.fixture
def mixture(folder):
    """Two diatomic molecules in one test split."""
    rng = np.random.default_rng(1)
    for name in ("N2", "O2"):
        frames = []
        for _ in range(6):
            atoms = molecule(name, cell=[10, 10, 10])
            atoms.positions += 5 + 0.02 * rng.standard_normal((2, 3))
            atoms.calc = EMT()
            atoms.get_forces()
            frames.append(atoms)
        ase.io.write(folder / f"{name}.xyz", frames, format="extxyz")
    both = {"parts": [{"source": "N2"}, {"source": "O2"}]}
    parts = {name: {"source": name, "subset_of": ["test"]} for name in ("N2", "O2")}
    card = {"name": "mixture_test", "system": "molecule", "elements": [7, 8], "temperature": 300,
            "timestep": 0.5, "reader": "extxyz", "files": {"N2": "N2.xyz", "O2": "O2.xyz"},
            "splits": {"train": "N2", "val": "N2", "test": both, **parts}}  # fmt: skip
    return _card(folder, card)


def test_a_split_of_two_compositions_is_rolled_out_one_by_one_and_pooled(mixture):
    force_field = models.build("torchmd_net", "tiny", [7, 8])
    config = RolloutConfig("torchmd_net", mixture, replicas=2, steps=8, progress=False)
    record = roll_out(config, force_field=force_field)
    assert record.kind == "rollout"
    parts = [roll_out(part, force_field=force_field) for part in rollout.parts(config)]
    assert [part.kind for part in parts] == ["rollout_N2", "rollout_O2"]
    assert list(record.curves["composition"]) == ["N2", "N2", "O2", "O2"]
    for name in ("wf", "fv", "rmsd", "temperature"):
        assert record[name] == pytest.approx(np.mean([part[name] for part in parts]), rel=STORED)
        assert record.metric(name).n == 4
    np.testing.assert_array_equal(record.curves["fv"][2:], parts[1].curves["fv"])


def test_several_compositions_without_a_split_each_are_refused(mixture):
    with pytest.raises(ValueError, match=r"subset_of: \[test\]"):
        rollout.reference_of(cards.dataset(mixture), split="test")


def test_another_dataset_may_give_the_starts(mixture, nitrogen):
    force_field = models.build("torchmd_net", "tiny", [7, 8])
    config = RolloutConfig("torchmd_net", mixture, target=nitrogen, replicas=2, steps=8, progress=False)
    record = roll_out(config, force_field=force_field)
    assert (record.kind, record.dataset) == ("rollout_n2_test", "mixture_test")
    assert record.parameters["timestep"] == cards.dataset(nitrogen).timestep
    assert roll_out(config, force_field=force_field).provenance == record.provenance


PAGES = pages.pages()["pages"]


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("rollout/")])
def test_pages_find_the_committed_rollouts_of_all_models(page, monkeypatch):
    monkeypatch.delenv("EGRAFF_RESULTS")
    settings = PAGES[page]
    campaign = campaigns.load(settings.get("campaign", pages.pages()["reference"]))
    fields = {field.name for field in dataclasses.fields(RolloutConfig)}
    for model in campaign.models:
        values = pages.page_parameters(page, settings | {"model": model}, campaign)
        given = {name: value for name, value in values.items() if name in fields}
        asked = RolloutConfig(dataset=page.split("/")[1], **given)
        card = cards.dataset(asked.dataset)
        for part in {asked, *rollout.parts(asked)}:
            part = part if len(card.parts(part.split)) > 1 else rollout._settled(part, card)
            assert records.find(part.key, part.parameters()) is not None, (page, model)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -300.0},
        {"temperature": float("nan")},
        {"timestep": 0.0},
        {"friction": -1e-3},
        {"max_seconds": 0},
        {"replicas": 0},
        {"record_every": 0},
        {"steps": 2.5},
        {"skin": -1.0},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must"):
        config("any", **wrong)


def test_a_record_of_another_version_is_made_anew(copper):
    settled = rollout._settled(config(copper, "reference", steps=2), cards.dataset(copper))
    parameters = settled.parameters() | {"version": 1}
    records.write(records.Record(*settled.key, parameters, message="of hot starts"))
    made = roll_out(settled)
    assert (made.message, made.parameters["version"]) == ("", rollout.VERSION)


def _frames(folder, name, change):
    """Card of a dataset whose fifth frame was changed."""
    frames = [molecule("H2O", cell=[10, 10, 10], pbc=True) for _ in range(8)]
    change(frames[4])
    for atoms in frames:
        atoms.calc = EMT()
        atoms.get_forces()
    ase.io.write(folder / f"{name}.xyz", frames, format="extxyz")
    split = {"train": {"source": "all"}, "val": {"source": "all"}, "test": {"source": "all"}}
    mapping = {"name": name, "system": "bulk", "elements": [1, 8], "temperature": 300, "timestep": 1.0}
    return _card(folder, mapping | {"reader": "extxyz", "files": {"all": f"{name}.xyz"}, "splits": split})


def test_frames_of_another_cell_are_refused_before_the_first_step(folder):
    dataset = _frames(folder, "cells_test", lambda atoms: atoms.set_cell([11, 10, 10]))
    message = r"cells_test/test: frame 4 has the cell \[\[11.* like frame 0; replicas need frames of one"
    for act, asked in ((roll_out, config(dataset)), (gate.check, gate.GateConfig("mace", dataset))):
        with pytest.raises(ValueError, match=message):
            act(asked, force_field=SoftSpheres([1, 8]))


def test_masses_of_the_frames_reach_the_dynamics(copper, monkeypatch):
    """As of heavy water, whose atoms would move and be heated like those of light water."""
    frames = data.load(copper, "test")
    for atoms in frames:
        atoms.set_masses(4 * atoms.get_masses())
    card, settled = cards.dataset(copper), rollout._settled(config(copper), cards.dataset(copper))
    light = rollout._scene(settled, card)
    monkeypatch.setattr(rollout, "reference_of", lambda *_, **__: frames)
    heavy = rollout._scene(settled, card)
    assert heavy.starts[1].get_masses() == pytest.approx(4 * light.starts[1].get_masses())
    assert heavy.digest != light.digest


def test_a_replica_that_heats_is_not_stable(copper):
    """Forces that grow along the motion pump energy into the atoms, and no bond of a crystal tells."""

    class Pump(SoftSpheres):
        last = None

        def forward(self, graph):
            energy, forces = super().forward(graph)
            if Pump.last is not None and len(Pump.last) == len(graph.positions):
                forces = forces + 3.0 * (graph.positions - Pump.last).to(forces)
            Pump.last = graph.positions.clone()
            return energy, forces

    record = roll_out(config(copper, steps=120), force_field=Pump([29]))
    assert record.status == "unstable"
    assert {end.cause for end in record.breaks} <= {"heated", "move", "contact", "structure"}
    assert "heated" in {end.cause for end in record.breaks}
    assert record["stable_fraction"] < 1


def test_the_record_keeps_energies_and_the_temperature_of_the_start(copper):
    record = roll_out(config(copper, steps=10), force_field=SoftSpheres([29]))
    scene = rollout._scene(
        rollout._settled(config(copper, steps=10), cards.dataset(copper)), cards.dataset(copper)
    )
    own = [atoms.get_kinetic_energy() / (0.5 * units.kB * (3 * len(atoms) - 3)) for atoms in scene.starts]
    assert record.curves["start_temperature"] == pytest.approx(own)
    exact = [atoms.get_potential_energy() for atoms in (data.load(copper, "test")[i] for i in scene.first)]
    assert record.curves["energy_reference"][:, 0] == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("ending", ["xyz", "traj"])
def test_kept_trajectories_have_the_frames_and_energies_of_the_curves(copper, ending):
    bare, asked = (config(copper, "reference", steps=12, keep=keep) for keep in (None, ending))
    assert roll_out(bare).parameters == asked.parameters() | roll_out(bare).parameters
    assert not rollout.kept(asked)
    record = roll_out(asked)  # whose record is stored already, without the trajectories
    paths = rollout.kept(asked)
    assert [path.name for path in paths] == [f"replica-0.{ending}", f"replica-1.{ending}"]
    for path, energy, first in zip(paths, record.curves["energy"], record.curves["start_frame"], strict=True):
        frames, start = ase.io.read(path, ":"), data.load(copper, "test")[first]
        np.testing.assert_allclose([atoms.get_potential_energy() for atoms in frames], energy, atol=1e-6)
        np.testing.assert_allclose(frames[0].positions, start.positions, atol=1e-6)
        assert frames[0].get_masses() == pytest.approx(start.get_masses())
        assert frames[12].cell == pytest.approx(start.cell)
        frames[12].calc, forces = EMT(), frames[12].get_forces()
        np.testing.assert_allclose(frames[12].get_forces(), forces, atol=1e-4)
    before = [path.stat().st_mtime_ns for path in paths]
    roll_out(asked)
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_a_campaign_keeps_trajectories_by_one_line(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text("description: d\ndatasets: [lips]\nmodels: [mace]\nrollout: {keep: traj}\n")
    assert campaigns.load(path).rollout_parameters("lips", "mace", 0, "corrected")["keep"] == "traj"
    path.write_text(path.read_text().replace("{keep: traj}", "{steps: 5}"))
    assert "keep" not in campaigns.load(path).rollout_parameters("lips", "mace", 0, "corrected")
    with pytest.raises(ValueError, match="kept as xyz or traj, not as pdb"):
        RolloutConfig("mace", "lips", keep="pdb")
