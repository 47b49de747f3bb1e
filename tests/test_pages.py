"""Are the committed pages what the notebooks make? Every page executed, without errors, equal to its twin."""

import os
import re
import signal
import tomllib

import nbformat
import pytest

from egraff_utils import campaign as campaigns
from egraff_utils import paths
from egraff_utils.report import values
from egraff_utils.running import batch, pages

GLUED = r'"scrapbook": \{\s*"mime_prefix": "[^"]*",\s*"name": "([^"]+)"'
FILES = pages.contents()
BOOK = pages.pages()
PAGES = [file.removeprefix("book/") for file in FILES if file.removeprefix("book/").count("/")]


@pytest.fixture(params=PAGES)
def page(request):
    path = paths.ROOT / "book" / f"{request.param}.ipynb"
    assert path.exists(), f"{request.param} is not executed yet: make pages"
    return request.param, nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_table_of_contents_lists_every_page():
    assert set(PAGES) == set(pages.pages()["pages"])
    missing = [f for f in FILES if not any((paths.ROOT / f"{f}{end}").exists() for end in (".md", ".ipynb"))]
    assert not missing


def test_a_page_that_fails_does_not_stop_those_after_it(monkeypatch, capsys):
    def execute(notebook, *_, **__):
        if notebook.stem == "cost":
            raise OSError("no space left on device")

    monkeypatch.setattr(batch, "execute", execute)
    assert pages.make_pages(["report/cost", "report/gate"], jobs=1) == 1
    assert capsys.readouterr().out.splitlines() == [
        "page 1 of 2: report/cost: OSError: no space left on device",
        "page 2 of 2: report/gate",
    ]


def test_a_page_whose_process_is_killed_does_not_stop_the_others(monkeypatch, capsys):
    def execute(notebook, *_, **__):
        if notebook.stem == "cost":
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(batch, "execute", execute)
    assert pages.make_pages(["report/cost", "report/gate", "report/audit"], jobs=2) == 1
    told = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    killed = "report/cost: its process was killed, by hand or for want of memory"
    assert sorted(told) == ["report/audit", killed, "report/gate"]


def test_executed_without_errors(page):
    for cell in code_cells(page[1]):
        assert cell.execution_count is not None, f"cell {cell.id} was not run"
        assert not [output for output in cell.outputs if output.output_type == "error"]


def test_no_output_is_a_bare_text_or_list(page):
    shown = [output.data for cell in code_cells(page[1]) for output in cell.outputs if "data" in output]
    plain = [data["text/plain"] for data in shown if set(data) == {"text/plain"}]
    assert not [text for text in plain if re.match(r"['\"\[]", text)]


def test_equal_to_the_notebook_apart_from_parameters(page):
    name, notebook = page
    twin = nbformat.read(batch.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    kept = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    assert [(cell.id, cell.source) for cell in kept] == [(cell.id, cell.source) for cell in twin.cells], (
        f"{name} differs from its notebook: make pages"
    )


def test_a_captioned_figure_is_the_only_output_of_its_cell(page):
    for cell in code_cells(page[1]):
        if "figure" in cell.metadata.get("mystnb", {}):
            assert len(cell.outputs) == 1, (
                f"{cell.id}: a second output would take the caption and the label too"
            )


def test_one_title(page):
    prose = "\n".join(cell.source for cell in page[1].cells if cell.cell_type == "markdown")
    assert len(re.findall("^# ", prose, re.MULTILINE)) == 1


def test_clean(page):
    notebook = page[1]
    assert not {"papermill", "widgets"} & set(notebook.metadata)
    for cell in notebook.cells:
        assert not {"papermill", "execution"} & set(cell.metadata)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_parameters_are_those_of_the_campaign(page):
    name, notebook = page
    book = pages.pages()
    settings = book["pages"][name] or {}
    campaign = campaigns.load(settings.get("campaign", book["reference"]))
    (injected,) = [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
    found = {}
    exec(injected.source, found)
    for key, value in pages.page_parameters(name, settings, campaign).items():
        assert found[key] == value


def test_every_glued_number_exists():
    texts, keys = {}, set()
    for file in FILES:
        for path in (paths.ROOT / f"{file}.md", paths.ROOT / f"{file}.ipynb"):
            if path.exists():
                texts[file] = path.read_text()
                keys |= set(re.findall(GLUED, texts[file]))
    for file, text in texts.items():
        glued = re.findall(r"\{glue:text\}`(?:[^`]*::)?([^`:]+)", text)
        wanted = set(glued) | set(re.findall(r"\{glue:any\} (\S+)", text))
        wanted |= {name for name, _ in values.FIELD.findall(text)} if '"cells"' in text else set()
        assert wanted <= keys, f"{file} glues {sorted(wanted - keys)}, which no page provides"


def test_no_path_of_this_machine():
    for path in (paths.ROOT / "book").rglob("*"):
        if path.suffix in (".md", ".ipynb", ".bib"):
            text = path.read_text()
            for place in (str(paths.ROOT), "/home/", "/root/", "/tmp/"):
                assert place not in text, f"{path.relative_to(paths.ROOT)} names {place}"


def test_the_picture_of_the_readme_is_that_of_the_first_page(monkeypatch, tmp_path):
    committed = pages.HEADLINE.read_bytes()
    monkeypatch.setattr(pages, "HEADLINE", tmp_path / "headline.png")
    pages.write_headline()
    assert pages.HEADLINE.read_bytes() == committed
    assert f"(book/_static/{pages.HEADLINE.name})" in (paths.ROOT / "README.md").read_text()


def test_the_readme_leads_to_what_exists():
    text = (paths.ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert len(links) > 8
    assert not [link for link in links if not (paths.ROOT / link).exists()]
    assert len(text.splitlines()) < 75


def test_the_badges_of_the_readme_are_those_of_the_package():
    text = (paths.ROOT / "README.md").read_text()
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    low, below = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    badges = {f"python-3.{low}_to_3.{int(below) - 1}", f"version-{project['version']}"}
    badges |= {f"licence-{project['license']}"}
    assert set(re.findall(r"shields.io/badge/([^)]+)-\w+\)", text)) == badges
    address = project.get("urls", {}).get("Repository")
    workflow = re.findall(r"\((\S+)/actions/workflows/book.yml/badge.svg", text)
    assert workflow == ([address] if address else []), (
        "the badge of the tests needs the address, and it alone"
    )
    assert (paths.ROOT / "book" / "_static" / "screenshot.webp").stat().st_size < 150_000


PROJECT = {"longer", "speed", "recipe", "time_to_accuracy", "universal"}


@pytest.mark.parametrize(
    ("keys", "missing"),
    [
        ("datasets: [ethanol]", {"gate", "horizon", "thermostat", "oracle"}),
        ("datasets: [ethanol]\nrollout: {protocols: [as_coded]}", {"gate", "horizon", "oracle"}),
        ("datasets: [ethanol]\nchecks: {gate: [ethanol]}", {"horizon", "thermostat", "oracle"}),
        ("datasets: [copper_emt]\nchecks: {horizon: [copper_emt]}", {"gate", "thermostat"}),
    ],
)
def test_a_campaign_reports_what_it_has(tmp_path, keys, missing):
    file = tmp_path / "mine.yml"
    file.write_text(f"description: A test.\nmodels: [mace]\n{keys}\n")
    everything = {page.removeprefix("report/") for page in BOOK["pages"] if page.startswith("report/")}
    assert everything - set(pages.reports(campaigns.load(file))) == PROJECT | missing


def test_every_need_of_a_page_can_be_met():
    needs = {(settings or {}).get("needs") for settings in BOOK["pages"].values()} - {None, "project"}
    checks = {path.stem for path in batch.NOTEBOOKS.glob("checks/*.ipynb")}
    assert needs <= {"oracle", "as_coded", "corrected"} | checks


def test_the_book_of_a_campaign_has_what_its_pages_offer_for_download(monkeypatch, tmp_path):
    monkeypatch.setenv("EGRAFF_RUNS", str(tmp_path))
    site, offered = pages._site("demo"), 0
    for file in [*site.rglob("*.md"), *site.rglob("*.ipynb")]:
        for link in re.findall(r"\{download\}`[^`<]*<([^>`]+)>`", file.read_text()):
            assert (file.parent / link).is_file(), (file.name, link)
            offered += 1
    assert offered
