"""Do budgets fit the time, do runs keep to them, and do results of several machines go together?"""

import math
import shutil
import subprocess
import sys
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import campaign, cards, data, paths, records
from egraff_utils.running import cells, plan, timing
from egraff_utils.running.timing import Cost

SLOW = {"equiformer": 4.0, "nequip": 2.0}
BULK = {"lips": 10.0, "lips20": 8.0, "gete": 16.0}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.setenv("EGRAFF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path / "runs"))
    return tmp_path


def costs_of(settings):
    """Made-up costs: bulk systems are dearer, and so are some models."""
    step = {d: 0.02 * BULK.get(d, 1.0) for d in settings.datasets}
    factor = {m: SLOW.get(m, 1.0) for m in settings.models}
    return {
        (d, m): Cost(3.0, step[d] * factor[m], step[d] * factor[m] / 4, 1e-3, 1e-3, start=2.0)
        for d in settings.datasets
        for m in settings.models
    }


def fitted(budget, jobs=6):
    settings = campaign.load("gpu", planned=False)
    return plan.fit(settings, costs_of(settings), budget=budget, jobs=jobs)


def training_seconds(made, dataset, model):
    return made.campaign.training_parameters(dataset, model, 0)["max_seconds"]


@pytest.mark.parametrize("jobs", [1, 6])
def test_a_plan_fills_the_time_and_does_not_exceed_it(jobs):
    made = fitted(20 * 3600, jobs)
    assert 0.97 * 20 * 3600 < made.seconds <= 20 * 3600


def test_bulk_systems_train_longer_and_models_equally_long():
    made = fitted(8 * 3600)
    for dataset in made.campaign.datasets:
        assert len({training_seconds(made, dataset, model) for model in made.campaign.models}) == 1
    short, long = (training_seconds(made, dataset, "mace") for dataset in ("ethanol", "gete"))
    assert long / short == pytest.approx(math.sqrt(16), rel=0.02)


def test_rollouts_keep_their_length_and_may_take_twice_what_is_predicted():
    made = fitted(8 * 3600)
    parameters = made.campaign.rollout_parameters("gete", "equiformer", 0, "corrected")
    assert (parameters["replicas"], parameters["steps"]) == (5, 1000)
    assert parameters["max_seconds"] == 2 * (2.0 + 1000 * 0.02 * 16 * 4 / 4)
    lips20 = made.campaign.rollout_parameters("lips20", "mace", 0, "corrected")
    assert (lips20["replicas"], lips20["steps"]) == (3, 200), "what the campaign says otherwise holds"


def test_a_training_that_ends_by_itself_needs_no_more_time():
    settings = replace(campaign.load("gpu", planned=False), training=campaign.TrainingBudget(max_steps=100))
    made = plan.fit(settings, costs_of(settings), budget=100 * 3600, jobs=6)
    assert made.seconds < 20 * 3600
    assert set(made.table()["training steps"]) == {"100 to 100"}


def test_a_time_that_is_too_short_is_refused_with_the_least_that_does():
    with pytest.raises(ValueError, match=r"needs \d+ min at least, with 6 runs at a time") as refused:
        fitted(60)
    least = float(str(refused.value).split("needs ")[1].split()[0])
    assert fitted(60 * least).seconds <= 60 * least


def test_a_written_plan_is_what_the_campaign_loads(workplace):
    before = campaign.load("gpu")
    made = fitted(8 * 3600)
    made.write()
    loaded = campaign.load("gpu")
    assert loaded.jobs == 6
    for cell in loaded.cells():
        assert loaded.training_parameters(*cell) == made.campaign.training_parameters(*cell)
        for protocol in loaded.protocols(cell[0]):
            expected = made.campaign.rollout_parameters(*cell, protocol)
            assert loaded.rollout_parameters(*cell, protocol) == expected
    assert loaded.protocols("ethanol") == before.protocols("ethanol")
    assert campaign.load("gpu", planned=False) == before


@pytest.mark.parametrize("text", ["", "soon", "25 m", "m", "-3m", "1m2h"])
def test_a_time_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="is no time"):
        plan.seconds(text)


def test_without_its_device_a_campaign_is_planned_from_stored_timings(workplace, monkeypatch):
    monkeypatch.setattr(timing, "_hardware", lambda device: None)
    settings = campaign.load("gpu", planned=False)
    with pytest.raises(ValueError, match="cuda is not available, and 54 cells"):
        plan.make("gpu", budget="20h", jobs=6)
    for cell, cost in costs_of(settings).items():
        config = timing._config(settings, *cell, jobs=6)
        metrics = [records.Metric(name, 1e3 * value, "ms") for name, value in vars(cost).items()]
        records.write(records.Record(*config.key, config.parameters(), metrics))
    assert plan.make("gpu", budget="20h", jobs=6).seconds == pytest.approx(20 * 3600, rel=0.03)
    assert campaign.plan_path("gpu").is_file()


def test_timings_of_other_hardware_or_load_do_not_count(workplace):
    config = timing.TimingConfig("mace", "ethanol", "test", preset="tiny")
    made = {"hardware": "abacus"}
    records.write(records.Record(*config.key, config.parameters(), provenance=made))
    assert timing._stored(config, "abacus") is not None
    assert timing._stored(config, "slide rule") is None
    assert timing._stored(replace(config, jobs=2), "abacus") is None


def test_a_cell_that_cannot_be_timed_is_planned_like_the_others(workplace, monkeypatch):
    def run_out(config):
        raise MemoryError("out of memory")

    monkeypatch.setattr(timing, "_timed", run_out)
    config = timing.TimingConfig("mace", "ethanol_xtb", "test", preset="tiny")
    record = timing.measure(config)
    assert (record.status, record.message) == ("failed", "MemoryError: out of memory")
    settings = campaign.load("tiny")
    other = records.Record("timing", "test", "ethanol_xtb", "torchmd_net", 0)
    other.metrics = [records.Metric(name, 2e3, "ms") for name in Cost.__dataclass_fields__]
    found = timing._costs(settings, {("ethanol_xtb", "mace"): record, ("ethanol_xtb", "torchmd_net"): other})
    assert found["ethanol_xtb", "mace"] == Cost(2, 2, 2, 2, 2, 2)


@pytest.mark.data
def test_a_thin_dataset_has_a_few_frames_of_every_composition():
    thin = timing._thin(cards.dataset("lips20"))
    few, all_of_them = data.load(thin, "train"), data.load("lips20", "train")
    assert timing.FRAMES / 2 <= len(few) <= 2 * timing.FRAMES < len(all_of_them)
    kinds = [{atoms.get_chemical_formula() for atoms in frames} for frames in (few, all_of_them)]
    assert kinds[0] == kinds[1]
    assert thin.parts("test") == cards.dataset("lips20").parts("test")


def test_a_thin_dataset_has_every_element(tmp_path):
    frames = [Atoms("CO" if k == 7 else "C2", [[0, 0, 0], [0, 0, 1.2]]) for k in range(90)]
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((2, 3)))
    ase.io.write(tmp_path / "mine.xyz", frames)
    splits = {"train": {"source": "all", "frames": 90}, "val": "all", "test": "all"}
    fixed = {"system": "molecule", "elements": [6, 8], "temperature": 300, "timestep": 1, "reader": "extxyz"}
    card = cards.DatasetCard("mine", splits=splits, files={"all": "mine.xyz"}, folder=tmp_path, **fixed)
    found = [atoms.info["frame"] for atoms in data.load(timing._thin(card), "train")]
    assert found == [*range(0, 90, 3), 7]


def test_a_cell_is_timed(workplace):
    config = timing.TimingConfig("torchmd_net", "ethanol_xtb", "test", preset="tiny", replicas=2)
    record = timing.measure(config)
    assert record.status == "complete", record.message
    cost = Cost.of(record)
    assert 0 < cost.md_step < cost.train_step < 1
    assert list((workplace / "results").rglob("*.json")) == [record.path], "the short training left nothing"


def test_a_part_of_a_campaign_is_its_cells_on_some_datasets(workplace):
    settings = campaign.load("gpu")
    part = [cell.output for cell in cells.cells(settings, ["acac"])]
    folders = {path.relative_to(paths.runs() / "gpu").parent.as_posix() for path in part}
    assert folders == {"training", "rollout", "rollout_as_coded"} | {
        "ood/temperature",
        "ood/acac_dihedral",
        "checks/gate",
    }
    assert len(part) == len(set(part)) == len(folders) * len(settings.models)
    with pytest.raises(ValueError, match="did you mean 'acac'"):
        cells.cells(settings, ["acak"])


@pytest.mark.parametrize("only", ["ethanol_xtb", ""])
def test_snakemake_runs_a_part(workplace, only):
    words = [sys.executable, "-m", "egraff_utils", "campaign", "run", "tiny", "--dry-run"]
    words += ["--only", only] if only else []
    done = subprocess.run(words, capture_output=True, text=True, cwd=paths.ROOT, check=True)
    found = " ".join((done.stdout + done.stderr).split())
    assert "rollout_as_coded 2" in found
    assert ("report" in found) == (not only)


def run_cell(settings, model):
    """What the notebooks of a cell do, with the parameters that a campaign gives them."""
    from egraff_utils.md.rollout import RolloutConfig, roll_out
    from egraff_utils.train import TrainConfig, fit

    cell = (settings.datasets[0], model, 0)
    training = fit(TrainConfig(model, progress=False, **settings.training_parameters(*cell)))
    parameters = settings.rollout_parameters(*cell, "as_coded")
    skipped = [name for name in parameters if name.startswith("train_") or name == "preset"]
    options = {name: value for name, value in parameters.items() if name not in skipped}
    return training, roll_out(RolloutConfig(dataset=cell[0], progress=False, **options))


def test_folders_of_records_of_two_machines_merge(workplace, monkeypatch):
    settings = campaign.load("tiny")
    made = {}
    for machine, model in (("one", "mace"), ("other", "torchmd_net")):
        monkeypatch.setenv("EGRAFF_RESULTS", str(workplace / machine))
        made[model] = run_cell(settings, model)
    monkeypatch.setenv("EGRAFF_RESULTS", str(workplace / "results"))
    for machine in ("one", "other"):
        shutil.copytree(workplace / machine, paths.results(), dirs_exist_ok=True)
    frame = records.read("tiny")
    assert set(frame.model[frame.kind == "training"]) == {"mace", "torchmd_net"}
    stored = {path: path.read_bytes() for path in paths.results().rglob("*.*")}
    for model in settings.models:
        for again, before in zip(run_cell(settings, model), made[model], strict=True):
            assert again.metrics == before.metrics
            assert again.provenance == before.provenance, "it was computed anew"
    assert {path: path.read_bytes() for path in paths.results().rglob("*.*")} == stored
