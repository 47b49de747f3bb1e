"""Does the prose hold? The examples run, every citation has an entry, every card can be cited."""

import pkgutil
import re
import subprocess
import tomllib
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import ase.io
import nbformat
import numpy as np
import pytest
import yaml
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

from egraff_utils import calculated, campaign, cards, data, paths, records, schema
from egraff_utils.report import beside
from egraff_utils.running import pages

BOOK = paths.ROOT / "book"
BIBLIOGRAPHY = set(re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text(), re.MULTILINE))


def _blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (BOOK / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", sorted(BOOK.glob("*.md")), ids=lambda path: path.stem)
def test_the_names_that_a_page_links_or_imports_exist(page):
    text = page.read_text()
    for name in re.findall(r"\{py:\w+\}`(?:[^`<]*<|~)?([\w.]+)>?`|automodule:: (\S+)", text):
        assert pkgutil.resolve_name("".join(name)) is not None
    for block in _blocks(page.name, "python"):
        exec("\n".join(re.findall(r"^(?:from|import) .*$", block, re.MULTILINE)), {})


def test_every_term_that_is_linked_is_defined():
    blocks = re.findall(r"```{glossary}\n(.*?)```", (BOOK / "glossary.md").read_text(), re.DOTALL)
    terms = set(re.findall(r"^(\S.*)$", "\n".join(blocks), re.MULTILINE))
    texts = [path.read_text() for path in BOOK.glob("*.md")]
    for path in (paths.ROOT / "notebooks").rglob("*.ipynb"):
        texts += [cell.source for cell in nbformat.read(path, as_version=4).cells]
    links = re.findall(r"\{term\}`(?:[^`<]*<)?([^`<>]+)>?`", "\n".join(texts))
    assert len(terms) > 30
    assert {" ".join(link.split()) for link in links} <= terms


def test_presets_are_named_as_they_are(capsys):
    from egraff_utils.__main__ import main

    (entry,) = re.findall(r"^preset\n((?:  .*\n)+)", (BOOK / "glossary.md").read_text(), re.MULTILINE)
    assert re.findall(r"`(\w+)`", entry) == cards.presets()
    texts = [path.read_text() for path in (paths.ROOT / "notebooks").rglob("*.ipynb")]
    comments = re.findall(r"preset: str = .*?# (.*?)\\n", "".join(texts))
    assert set(comments) == {"size of the network, a preset of the model's card"}
    assert main(["train", "--help"]) == 0
    assert ", ".join(cards.presets()) in " ".join(capsys.readouterr().out.split())


def test_the_method_page_tells_presets_as_the_cards_have_them():
    text = " ".join((BOOK / "method.md").read_text().split())
    presets = cards.model("botnet").presets
    layers = {name: presets[name]["network"]["num_interactions"] for name in presets if name != "tiny"}
    assert "at correlation order 1 with five layers" in text
    assert layers == {"paper": 5, "paper_budget": 5, "day": 3, "small": 3}
    assert (
        "five layers. So is ours at presets `paper` and `paper_budget`; at `day` and `small` it has three"
        in text
    )
    chosen = {
        card.title
        for card in map(cards.model, cards.models())
        for note in card.notes
        if note.startswith("Preset small:") and "on ethanol" in note
    }
    assert chosen == {"BOTNet", "NequIP"}
    assert "rates of preset `day`, and of BOTNet and NequIP at preset `small`, were chosen on ethanol" in text


def test_the_first_page_says_that_no_perfect_level_is_known():
    """A perfect level needs a reference that can be run; the figure shows sets of the paper alone."""
    text = " ".join((BOOK / "intro.md").read_text().split())
    assert "The perfect level of the paper's sets is not known" in text
    assert not [name for name in beside.DATASETS if cards.dataset(name).oracle]
    assert set(campaign.load(pages.pages()["reference"]).datasets) <= {*beside.DATASETS, "benzene"}


def _water(number):
    atoms = molecule("H2O")
    atoms.rattle(0.02, seed=number)
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def test_the_example_of_a_model_builds_and_obeys_the_force_rule(monkeypatch):
    from egraff_utils import models
    from egraff_utils.graph import build_graph

    monkeypatch.setattr(models, "_registered", {})
    network, card, _ = _blocks("add_model.md", "python")
    exec(network + card, {"__name__": "example"})
    torch = models.torch
    ff = models.build("radial", "small", dtype=torch.float64)
    atoms, step = molecule("CH3CH2OH"), 1e-4
    forces = ff(build_graph(atoms)).forces
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[0, 0] += sign * step
        energies.append(ff(build_graph(moved)).energy.item())
    assert forces[0, 0].item() == pytest.approx(-(energies[0] - energies[1]) / (2 * step), rel=1e-5)


def test_the_card_of_a_model_that_is_kept_is_one(monkeypatch):
    """Its file is read as the shipped ones are, and every size of it can be built from the page's network."""
    from egraff_utils import models

    names = {"__name__": "example"}
    exec(_blocks("add_model.md", "python")[0], names)
    text = dedent(_blocks("add_model.md", "yaml")[4])
    card = schema.validated(cards.ModelCard, schema.parse(text), where="radial.yml")
    monkeypatch.setattr(models, "_registered", {})
    models.register("radial", names["build_network"], card)
    assert list(card.presets) == ["paper", "small", "tiny"]
    sizes = [models.build("radial", preset).num_parameters() for preset in card.presets]
    assert sizes == sorted(sizes, reverse=True)
    assert card.training("tiny").force_weight == 10


def _save_calculators(folder, monkeypatch):
    """Write the cards and the campaign of the example, and go to their folder."""
    monkeypatch.setattr(cards, "_registered_models", {})
    monkeypatch.chdir(folder)
    for variable in ("GENERATED", "RESULTS", "RUNS"):
        monkeypatch.setenv(f"EGRAFF_{variable}", str(folder / variable.lower()))
    names = "my_emt.yml", "my_gfn1.yml", "mine.yml"
    for name, text in zip(names, _blocks("add_model.md", "yaml")[:3], strict=True):
        (folder / name).write_text(text)


def test_the_examples_of_calculators_make_a_campaign(tmp_path, monkeypatch):
    _save_calculators(tmp_path, monkeypatch)
    cells = campaign.load("mine.yml").cells()
    assert [model for _, model, _ in cells] == ["mace", "my_gfn1", "reference"]
    energies, forces = calculated.of("my_gfn1", "ethanol_xtb").predict([molecule("CH3CH2OH")])
    assert energies[0] < -300
    assert np.abs(forces[0].sum(0)).max() < 1e-6
    assert calculated.of("my_emt.yml", "copper_emt").predict([bulk("Cu")])[0] == pytest.approx(0, abs=0.01)


@pytest.mark.slow
def test_the_commands_that_judge_a_calculator_work(tmp_path, monkeypatch, capsys):
    from egraff_utils.__main__ import main

    _save_calculators(tmp_path, monkeypatch)
    commands = re.findall(r"^\$ egraff (.*)$", (BOOK / "add_model.md").read_text(), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["train", "rollout", "gate"]
    for command in commands:
        assert main(command.split()) == 0, command
    assert re.search(r"passed +1 1", capsys.readouterr().out)


@pytest.mark.slow
def test_the_code_that_uses_a_trained_model_runs_and_is_right(monkeypatch, capsys):
    names = {}
    monkeypatch.chdir(paths.ROOT)
    for block in _blocks("use_model.md", "python"):
        exec(block, names)
    off, apart = map(int, re.findall(r"(-?\d+) meV", capsys.readouterr().out)[:2])
    assert abs(off) < 50
    assert 0 < apart < 2 * names["record"]["force_mae"]
    assert abs(names["drift"]) < 1


def test_what_the_page_says_of_the_trained_model_is_in_its_records():
    page = (BOOK / "use_model.md").read_text()
    path = paths.ROOT / re.search(r'load\("(results/.*\.json)"', page)[1]
    run, gate = records.load(path), records.load(path.parents[1] / "gate" / path.name)
    preset = cards.model(run.model).presets[run.parameters["preset"]]
    said = dict(re.findall(r"^\| ([\w, ]+) \| (.*) \|$", page, re.MULTILINE))
    force, energy = said["test error, forces"], said["test error, energy"]
    assert force == f"{run['force_mae']:.1f} meV/Å; predicting no force: {run['zero_force_mae']:.1f} meV/Å"
    assert energy == f"{run['energy_mae']:.1f} meV"
    assert said["architecture, size"].endswith(
        f"`{run.parameters['preset']}`, {run['parameters']:,.0f} parameters"
    )
    assert said["training"] == f"{run['seconds']:.0f} s on a CPU, {run['steps']:,.0f} steps"
    assert said["cutoff"].startswith(f"{preset['network']['cutoff']:.0f} Å")
    assert said["training set"].startswith(f"{cards.dataset(run.dataset).split('train').frames} frames")
    assert said["gate"] == {1.0: "pass", 0.0: "fails"}[gate["passed"]]


@pytest.mark.slow
def test_the_commands_that_use_a_trained_model_work(tmp_path, monkeypatch):
    from egraff_utils.__main__ import main

    lines = re.findall(r"^\$ (.*)$", (BOOK / "use_model.md").read_text(), re.MULTILINE)
    copies = [line for line in lines if line.startswith(("mkdir", "cp"))]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(paths.ROOT / "results")
    subprocess.run(" && ".join(copies), shell=True, check=True)
    monkeypatch.setenv("EGRAFF_RESULTS", "mine")
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path / "runs"))
    commands = [line.split()[1:] for line in lines if line.startswith("egraff")]
    assert len(commands) == 2
    assert [main(command) for command in commands] == [0, 0]
    assert len(list((tmp_path / "mine" / "xtb").glob("*/ethanol_xtb-mace-s0.json"))) == 3


def test_the_example_of_a_dataset_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "_registered", {})
    card, *_ = _blocks("add_dataset.md", "yaml")
    (tmp_path / "water.yml").write_text(card)
    ase.io.write(tmp_path / "water.xyz", [_water(k) for k in range(100)], format="extxyz")
    cards.dataset(tmp_path / "water.yml")
    assert [len(data.load("water", split)) for split in ("train", "val", "test")] == [80, 10, 10]
    atoms = data.load("water", "train")[3]
    assert atoms.get_potential_energy() == pytest.approx(_water(3).get_potential_energy())
    np.testing.assert_allclose(atoms.get_forces(), _water(3).get_forces(), atol=1e-6)


@pytest.mark.slow
def test_the_notebooks_of_your_own_data_run_on_the_example_of_a_dataset(tmp_path, monkeypatch):
    """As the page says, from a folder with nothing but the card and the file."""
    from egraff_utils.__main__ import main

    monkeypatch.setattr(cards, "_registered", {})
    monkeypatch.chdir(tmp_path)
    for variable in ("GENERATED", "RESULTS", "RUNS"):
        monkeypatch.setenv(f"EGRAFF_{variable}", str(tmp_path / variable.lower()))
    card, *_ = _blocks("add_dataset.md", "yaml")
    (tmp_path / "water.yml").write_text(card)
    ase.io.write(tmp_path / "water.xyz", [_water(k) for k in range(100)], format="extxyz")
    commands = re.findall(r"^\$ egraff (run .*)$", (BOOK / "add_dataset.md").read_text(), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert main([*command.split(), "--quiet"]) == 0, command
    made = {path.relative_to(tmp_path / "results").as_posix() for path in tmp_path.rglob("water-*.json")}
    assert {"mine/training/water-mace-s0.json", "mine/rollout/water-mace-s0.json"} <= made
    assert {"yours/audit/water-reference-s0.json", "yours/dataset/water-reference-s0.json"} <= made


def test_the_example_of_an_oracle_labels_as_the_frames_were(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "_registered", {})
    monkeypatch.chdir(tmp_path)
    _, card, _ = _blocks("add_dataset.md", "yaml")
    (code,) = [block for block in _blocks("add_dataset.md", "python") if "reference.calculator" in block]
    (tmp_path / "argon.yml").write_text(card)
    frames = [bulk("Ar", a=5.4, cubic=True).repeat(2) for _ in range(100)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=seed)
        atoms.calc = LennardJones(sigma=3.405, epsilon=0.0103, rc=8.0)
        atoms.calc.calculate(atoms)
    ase.io.write(tmp_path / "argon.xyz", frames, format="extxyz")
    exec(code, {})
    frames[90].calc.results["forces"] *= 1.1  # labels of another method are told
    ase.io.write(tmp_path / "argon.xyz", frames, format="extxyz")
    with pytest.raises(AssertionError, match="Not equal"):
        exec(code, {})


@pytest.mark.parametrize("page", sorted(BOOK.glob("*.md")), ids=lambda path: path.stem)
def test_every_citation_of_a_page_has_an_entry(page):
    assert _cited(page.read_text()) <= BIBLIOGRAPHY


def test_every_citation_of_a_notebook_has_an_entry():
    notebooks = sorted((paths.ROOT / "notebooks").rglob("*.ipynb"))
    missing = {path.name: _cited(path.read_text()) - BIBLIOGRAPHY for path in notebooks}
    assert not {name: keys for name, keys in missing.items() if keys}


@pytest.mark.parametrize(
    "card", [cards.model(n) for n in cards.models()] + [cards.dataset(n) for n in cards.datasets()],
    ids=lambda card: card.name,
)  # fmt: skip
def test_every_card_cites_an_entry(card):
    assert card.citation in BIBLIOGRAPHY


def test_every_entry_is_cited():
    sources = [*BOOK.glob("*.md"), *(paths.ROOT / "notebooks").rglob("*.ipynb")]
    cited = set().union(*(_cited(Path(path).read_text()) for path in sources))
    cited |= {cards.model(n).citation for n in cards.models()}
    cited |= {cards.dataset(n).citation for n in cards.datasets()}
    assert cited >= BIBLIOGRAPHY


def _cited(text):
    keys = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
    return {key.strip() for group in keys for key in group.split(",")}


def test_pages_have_buttons_where_there_is_a_repository(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BOOK)
    from book_build import link_repository

    def options(**variables):
        for name in ("EGRAFF_REPOSITORY", "GITHUB_SERVER_URL", "GITHUB_REPOSITORY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        config = SimpleNamespace(html_theme_options={"show_toc_level": 2})
        link_repository(None, config)
        return config.html_theme_options

    assert options() == {"show_toc_level": 2}
    given = options(EGRAFF_REPOSITORY="https://example.org/a/b")
    assert given["repository_url"] == "https://example.org/a/b"
    assert given["use_edit_page_button"]
    assert given["launch_buttons"]["binderhub_url"]
    made = options(GITHUB_SERVER_URL="https://github.com", GITHUB_REPOSITORY="a/b")
    assert made["repository_url"] == "https://github.com/a/b"
    urls = '[project.urls]\nRepository = "https://example.org/c/d"\n'
    (tmp_path / "pyproject.toml").write_text((paths.ROOT / "pyproject.toml").read_text() + urls)
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "egraff_utils")
    assert options()["repository_url"] == "https://example.org/c/d"


def test_the_citation_has_the_address_licence_and_version_of_the_package(monkeypatch):
    for name in ("EGRAFF_REPOSITORY", "GITHUB_SERVER_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    assert citation.get("repository-code", "") == paths.repository()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_an_image_is_described_by_the_paragraph_after_it_in_its_section(monkeypatch):
    from docutils import nodes

    monkeypatch.syspath_prepend(BOOK)
    from book_build import describe_images

    images = [nodes.image(uri=f"{k}.png") for k in range(2)]
    columns = [nodes.container("", images[0]), nodes.container("", nodes.paragraph("", "What it shows"))]
    grid = nodes.section("", nodes.container("", *columns))
    last = nodes.section("", images[1])
    after = nodes.section("", nodes.paragraph("", "Something else"))
    describe_images(None, nodes.section("", grid, last, after), "page")
    assert [image["alt"] for image in images] == ["What it shows", "Figure"]
