"""Do the checklists of the book hold to the letter? A copy of the project is changed as they say."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from textwrap import dedent

import ase.io
import nbformat
import pytest
import yaml
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.optimize import BFGS

from egraff_utils import paths

pytestmark = [pytest.mark.slow, pytest.mark.rare(7, "checklists")]
FOLDERS = ("benchmarks", "binder", "book", "egraff_utils", "notebooks", "params", "tests")
CAMPAIGN = """description: A new model and a new dataset.
datasets: [{dataset}]
models: [{model}]
preset: tiny
training: {{max_steps: 5}}
rollout: {{replicas: 2, steps: 20}}
"""


class Clone:
    """A copy of the project, which is changed by hand and by the commands of a page as they are typed."""

    def __init__(self, root, page):
        self.root, self.done = root, []
        self.page = (paths.ROOT / "book" / page).read_text()
        section = self.page.partition("\n## Keep it\n")[2]
        self.steps = re.search(r"^1\. .*\n(?:(?:\d+\. |   ).*\n|\n)+", section, re.MULTILINE)[0]
        ignored = shutil.ignore_patterns("__pycache__")
        for name in FOLDERS:
            shutil.copytree(paths.ROOT / name, root / name, symlinks=True, ignore=ignored)
        for path in paths.ROOT.iterdir():
            if path.is_file() and path.name != ".git":
                shutil.copy(path, root)
        (root / "results").mkdir()
        for campaign in (paths.ROOT / "results").iterdir():
            (root / "results" / campaign.name).symlink_to(campaign)
        (root / ".venv" / "bin").mkdir(parents=True)
        for name, module in {"python": "", "egraff": "-m egraff_utils", "pytest": "-m pytest"}.items():
            command = root / ".venv" / "bin" / name
            command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
            command.chmod(0o755)

    def block(self, language, which=0):
        """A block of code of the steps."""
        return dedent(
            re.findall(rf"^ *```{language}\n(.*?)^ *```", self.steps, re.DOTALL | re.MULTILINE)[which]
        )

    def mark(self, words):
        """Count what the steps name as done."""
        assert " ".join(words.split()) in " ".join(self.steps.split()), f"no step asks for {words}"
        self.done.append(words)

    def write(self, path, text):
        self.mark(path)
        (self.root / path).write_text(text)

    def change(self, path, old, new):
        text = (self.root / path).read_text()
        assert old in text, f"{old} is not in {path}"
        self.write(path, text.replace(old, new, 1))

    def run(self, command, *, fails=False):
        """Output of a command of the steps, with the environment of the project active."""
        self.mark(command)
        kept = {key: text for key, text in os.environ.items() if key not in ("EGRAFF_RESULTS", "EGRAFF_RUNS")}
        own = {
            "PATH": f"{self.root}/.venv/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(self.root),
            "EGRAFF_DATA": str(self.root / "data"),
            "EGRAFF_GENERATED": str(paths.generated()),
            "EGRAFF_CACHE": str(paths.cache()),
        }
        options = {"shell": True, "cwd": self.root, "env": kept | own, "text": True, "capture_output": True}
        done = subprocess.run(command, **options)
        assert bool(done.returncode) == fails, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def name_page(self, entry, *chapter):
        """Write the lines of a step into params/book.yml and, before a page of that folder, _toc.yml."""
        self.change("params/book.yml", "\npages:\n", f"\npages:\n  {entry}\n")
        folder = re.search(r"- file: book/\w+/", chapter[0])[0]
        other = re.search(rf"^( +){folder}", (self.root / "_toc.yml").read_text(), re.MULTILINE)
        self.change("_toc.yml", other[0], "".join(f"{other[1]}{line}\n" for line in chapter) + other[0])

    def left(self):
        """What the steps name in backticks, files and commands, and what has not been done."""
        prose = re.sub(r"```.*?```", "", self.steps, flags=re.DOTALL)
        named = re.findall(r"`([^`\n]*(?:/|\.yml|\.py|pytest|egraff )[^`\n]*)`", prose)
        return {words for words in named if not any(words in done for done in self.done)}


def test_the_checklist_of_a_model(tmp_path):
    clone = Clone(tmp_path, "add_model.md")
    network, _ = re.findall(r"```python\n(.*?)```", clone.page, re.DOTALL)[:2]
    clone.write("egraff_utils/models/radial.py", f'"""A weighted density of neighbours."""\n\n{network}')
    clone.change("egraff_utils/models/__init__.py", '"torchmd_net")', '"torchmd_net", "radial")')
    clone.write("egraff_utils/cards/models/radial.yml", clone.block("yaml"))
    entry = "@misc{me2026radial, title = {Radial}, author = {Me}, year = {2026}}\n"
    clone.change("book/references.bib", "@", entry + "\n@")
    clone.change(
        "egraff_utils/report/look.py", '"equiformer": "#', '"radial": "#767600",\n    "equiformer": "#'
    )
    clone.change("egraff_utils/report/book.mplstyle", '"e3ae24"', '"767600", "e3ae24"')
    told = clone.run("pytest tests/test_inputs.py -k radial", fails=True)
    energies = json.loads((tmp_path / "tests/network_energies.json").read_text())
    energies |= json.loads(re.search(r"network_energies.json, ({.*?})", told)[1])
    clone.write("tests/network_energies.json", json.dumps(energies))
    clone.run("pytest tests/test_inputs.py -k radial")
    clone.run("pytest tests/test_physics.py -k radial")
    clone.run(clone.block("bash").strip())
    notebook = nbformat.read(tmp_path / "notebooks/training/radial.ipynb", as_version=4)
    title = notebook.cells[0].source.partition("\n\n")[0]
    notebook.cells[0].source = f"{title}\n\nIt weighs neighbours by distance {{cite:p}}`me2026radial`."
    nbformat.write(notebook, tmp_path / "notebooks/training/radial.ipynb")
    clone.write("params/mine.yml", CAMPAIGN.format(model="radial", dataset="ethanol_xtb"))
    clone.run("egraff campaign run mine --only ethanol_xtb")
    assert list((tmp_path / "results/mine/training").glob("ethanol_xtb-radial-s0.json"))
    clone.mark("results/mine/")
    clone.name_page(*(re.sub(r" +#.*", "", line) for line in clone.block("text").splitlines()))
    clone.run(clone.block("bash", 1).strip())
    assert " passed" in clone.run(clone.block("bash", 2).strip())
    assert not clone.left()


def test_the_checklist_of_a_dataset(tmp_path):
    clone = Clone(tmp_path, "add_dataset.md")
    card = yaml.safe_load(re.search(r"```yaml\n(.*?)```", clone.page, re.DOTALL)[1])
    relaxed = molecule("H2O", calculator=EMT())
    BFGS(relaxed, logfile=None).run(fmax=0.01)
    frames = [relaxed.copy() for _ in range(100)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.02, seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
    (tmp_path / "data").mkdir()
    clone.mark("data/water.xyz")
    ase.io.write(tmp_path / "data/water.xyz", frames, format="extxyz")
    digest = hashlib.sha256((tmp_path / "data/water.xyz").read_bytes()).hexdigest()
    added = yaml.safe_load(clone.block("yaml").replace("sha256:...", f"sha256:{digest}"))
    clone.write("egraff_utils/cards/datasets/water.yml", yaml.safe_dump(card | added, sort_keys=False))
    clone.run("sha256sum data/water.xyz")
    entry = "@misc{me2026water, title = {Water}, author = {Me}, year = {2026}, url = {https://example.org}}\n"
    clone.change("book/references.bib", "@", entry + "\n@")
    clone.run(clone.block("bash").strip())
    for name in ("datasets", "rollout"):
        path = tmp_path / "notebooks" / name / "water.ipynb"
        notebook = nbformat.read(path, as_version=4)
        label = notebook.cells[0].source.partition("\n")[0]
        title = f"# Is water as {name} say?\n\nIt is that of {{cite:p}}`me2026water`."
        notebook.cells[0].source = f"{label}\n{title}"
        nbformat.write(notebook, path)
    clone.write("params/mine.yml", CAMPAIGN.format(model="mace", dataset="water"))
    clone.run("egraff campaign run mine --only water")
    lines = [re.sub(r" +#.*", "", line) for line in clone.block("text").splitlines()]
    clone.name_page(lines[0], *lines[2:4])
    clone.name_page(lines[1], *lines[4:6])
    clone.run(clone.block("bash", 1).strip())
    assert " passed" in clone.run(clone.block("bash", 2).strip())
    assert not clone.left()
