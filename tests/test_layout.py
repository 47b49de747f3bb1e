"""Which room may import which, and how large a file may be."""

import ast
import re
import subprocess
import sys
import textwrap
from collections import Counter

import pytest

import egraff_utils
from egraff_utils import paths

PACKAGE = paths.ROOT / "egraff_utils"
MODELS, FROZEN = PACKAGE / "models", PACKAGE / "models" / "frozen"
SEAM = "egraff_utils.models.frozen"
INTERNALS = {f"{SEAM}.{path.stem}" for path in FROZEN.glob("*.py")}
ROOMS = (
    "paths units schema sources hyperparameters model_card offered cards config structure metrics statistics",
    "quantities breaks provenance records campaign options paper allocator",
    "graph reference files readers data croissant",
    "models calculated weights weight_card accuracy committee export train",
    "md",
    "checks",
    "report",
    "running",
)
"""Rooms of the package, and modules that stand alone: each may import what stands before it."""
ORDER = [name for row in ROOMS for name in row.split()]
LIGHT = [
    "campaign",
    "records",
    "data",
    "md.analysis",
    "checks.audit",
    "checks.floors",
    "report",
    "running.cells",
]
"""What reads records and data only, and so must not load torch."""
UNHINTED = {"report"}
"""Rooms whose public functions need no type hints."""
ADAPTERS = [path for path in MODELS.glob("*.py") if path.stem != "__init__"]


def files(*folders):
    return [
        pytest.param(p, id=str(p.relative_to(paths.ROOT))) for f in folders for p in sorted(f.rglob("*.py"))
    ]


def imported(path):
    """Names of all modules that a file imports, at its top or in a function, with what it takes of them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports by a relative name"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def lines(path):
    return len(path.read_text().splitlines())


def test_imports_are_seen(tmp_path):
    path = tmp_path / "some.py"
    path.write_text("import a.b\ndef f():\n    from c import d as e\n")
    assert imported(path) == {"a.b", "c", "c.d"}


def room(name):
    """The room of a module of the package, or None.

    Examples
    --------
    >>> room("egraff_utils.md.rollout"), room("egraff_utils.cards.load"), room("numpy.linalg")
    ('md', 'cards', None)
    """
    found = re.match(r"egraff_utils\.(\w+)", name)
    return found[1] if found and found[1] in ORDER else None


def test_every_file_has_a_room():
    inside = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    folders = {"cards", "published", "share", "__pycache__", "__init__", "__main__"}  # data, and the door
    assert inside - folders == set(ORDER) - folders


@pytest.mark.parametrize("path", files(PACKAGE))
def test_no_import_runs_upward(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own in ORDER:
        later = ORDER[ORDER.index(own) + 1 :]
        assert not {name for name in imported(path) if room(name) in later}


@pytest.mark.parametrize("path", files(PACKAGE / "models", PACKAGE / "md", PACKAGE / "checks"))
def test_what_computes_knows_no_report(path):
    assert "report" not in {room(name) for name in imported(path)}


@pytest.mark.parametrize("path", files(PACKAGE, paths.ROOT / "benchmarks"))
def test_no_file_is_large(path):
    assert lines(path) <= 500


@pytest.mark.parametrize("name", egraff_utils.DOOR)
def test_the_package_offers_what_users_name(name):
    assert getattr(egraff_utils, name).__name__ == f"egraff_utils.{egraff_utils.DOOR[name]}"


def test_what_reads_records_loads_no_torch():
    names = ", ".join(f"egraff_utils.{name}" for name in LIGHT)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("path", files(PACKAGE, paths.ROOT / "benchmarks"))
def test_frozen_networks_are_reached_by_their_seam_alone(path):
    if path.parent != FROZEN:
        assert not imported(path) & INTERNALS


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_adapters_are_short_and_know_nothing_of_speed(path):
    assert lines(path) <= 150
    assert SEAM not in imported(path)


@pytest.mark.parametrize("path", files(MODELS))
def test_reasons_are_rows_of_what_was_tried(path):
    """``tried.csv: "some words", "other words"`` in a comment or docstring: each stands in that table."""
    tried = (paths.ROOT / "benchmarks" / "tried.csv").read_text().replace('""', '"')
    text = re.sub(r"\s+(# )?", " ", path.read_text())
    for quoted in re.findall(r'tried\.csv(?:``)?: ((?:"[^"]+"(?:, )?)+)', text):
        for words in re.findall(r'"([^"]+)"', quoted):
            assert words in tried


@pytest.mark.parametrize("path", files(FROZEN))
def test_frozen_networks_open_with_their_equations(path):
    assert ".. math::" in ast.get_docstring(ast.parse(path.read_text()))


def unannotated(body, method=False):
    """Names and lines of the public functions in a body, with methods of public classes, that lack a hint."""
    for node in body:
        name = getattr(node, "name", "_")
        if name.startswith("_") and not (method and name.endswith("__")):
            continue
        if isinstance(node, ast.ClassDef):
            yield from unannotated(node.body, method=True)
            continue
        given = node.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        bound = method and "staticmethod" not in map(ast.unparse, node.decorator_list)
        hints = [argument.annotation for argument in arguments[bound:] if argument]
        if None in (*hints, node.returns):
            yield f"{name}, line {node.lineno}"


def test_missing_hints_are_seen():
    code = """
    def whole(a: int, *b: int, c: int = 0, **d: int) -> int: ...
    def no_return(a: int): ...
    def no_argument(a) -> int: ...
    def no_words(**a) -> int: ...
    def _private(a): ...
    class Shown:
        def __init__(self, a: int): ...
        def method(self, a: int) -> int: ...
        def _own(self): ...
        @staticmethod
        def alone(a) -> int: ...
    """
    found = unannotated(ast.parse(textwrap.dedent(code)).body)
    names = [name.split(",")[0] for name in found]
    assert names == ["no_return", "no_argument", "no_words", "__init__", "alone"]


def hinted(parameter):
    return not UNHINTED & set(parameter.values[0].relative_to(PACKAGE).parts)


@pytest.mark.parametrize("path", filter(hinted, files(PACKAGE)))
def test_public_functions_have_type_hints(path):
    assert not list(unannotated(ast.parse(path.read_text()).body))


@pytest.mark.parametrize("today", [739_000, 739_001])
def test_each_rare_test_runs_once_in_its_days(today, request):
    """Of seven tests and three days; two with one name run together, and one without the mark every day."""
    conftest = request.config.pluginmanager.getplugin(f"{paths.ROOT}/tests/conftest.py")
    runs = Counter()
    for day in range(3):
        items = [Item(pytest.mark.rare(3).mark) for _ in range(7)] + [Item(None)]
        items += [Item(pytest.mark.rare(3, "together").mark) for _ in range(2)]
        conftest.skip_of_other_days(items, today + day)
        runs.update(place for place, item in enumerate(items) if not item.skips)
        assert items[-1].skips == items[-2].skips
    assert [runs[place] for place in range(10)] == [1] * 7 + [3, 1, 1]


class Item:
    """A collected test with one mark."""

    def __init__(self, mark):
        self.mark, self.skips = mark, []

    def get_closest_marker(self, name):
        return self.mark

    def add_marker(self, mark):
        self.skips.append(mark)
