"""How does a notebook become a result? Papermill executes it, whole or not at all."""

import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
import yaml
from filelock import FileLock, Timeout
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from traitlets.config import Config

from egraff_utils import campaign as campaigns
from egraff_utils import cards, options, paths, records
from egraff_utils.campaign import Campaign
from egraff_utils.config import AS_CODED, Key, Kind
from egraff_utils.running.naming import NOTEBOOKS, check_names, model_of

NONE = ("None", "null")
"""Texts that stand for no value, as papermill and YAML write it."""


class Terminated(BaseException):
    """The process received SIGTERM, as at the end of a job's time; no ``Exception``, so nothing hides it."""


def located(notebook: str | Path) -> Path:
    """Path of a notebook, given by it or by its name below ``notebooks/``, such as ``yours/dataset``.

    Raises
    ------
    ValueError
        If there is no such file.
    """
    notebook = Path(notebook)
    for path in (notebook, NOTEBOOKS / notebook, NOTEBOOKS / f"{notebook}.ipynb"):
        if path.is_file():
            return path.resolve()
    raise cards.unknown("notebook", notebook, options.notebooks())


def parameters_of(notebook: str | Path) -> dict[str, Any]:
    """Parameters of a notebook and their defaults, as written in its parameters cell.

    Returns
    -------
    dict
        Name -> default; a default that is not a literal is given as ``None``.
    """
    found = _declared(Path(notebook))
    return {name: yaml.safe_load(item["default"].replace("None", "null")) for name, item in found.items()}


def _declared(notebook):
    return _inspected(notebook, notebook.stat().st_mtime_ns)


@lru_cache
def _inspected(notebook, _):
    return papermill.inspect_notebook(str(notebook))


def check_parameters(notebook: str | Path, parameters: Iterable[str]) -> None:
    """Reject parameters that the notebook does not have.

    Raises
    ------
    ValueError
        If a parameter is unknown; the message names it, the closest known one, and all known ones.
    """
    known = parameters_of(notebook)
    for name in parameters:
        if name not in known:
            raise cards.unknown(f"parameter of {Path(notebook).name}", name, known)


def typed(notebook: str | Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """Parameters given as texts, such as those of a command line, with the types that the notebook declares.

    Unlike papermill's ``-p``, which looks at the text alone, the name of a campaign that looks like a number
    stays a text, and ``1e3`` is a number where one is asked for. ``None`` and ``null`` are no value for a
    parameter whose default is ``None``, or which is no text. Lists and mappings are read as YAML. The path of
    a card in the current folder becomes absolute, since notebooks run in another one.

    Raises
    ------
    ValueError
        If a parameter is unknown, or a text does not have its type.
    """
    check_parameters(notebook, texts)
    declared = _declared(Path(notebook))
    return {name: _value(Path(notebook).name, declared[name], text) for name, text in texts.items()}


def _value(notebook, declared, text):
    kind, optional = declared["inferred_type_name"].partition("|")[0].strip(), declared["default"] == "None"
    if text in NONE and (optional or kind != "str"):
        return None
    readers = {"str": _text, "int": _integer, "float": float, "bool": _truth}
    try:
        return readers.get(kind, yaml.safe_load)(text)
    except (ValueError, yaml.YAMLError) as error:
        name = declared["name"]
        raise ValueError(f"parameter {name} of {notebook} is of type {kind}; '{text}' is none") from error


def _text(text):
    """A text, without the quotes that :func:`words` puts around one that looks like a number; or a path.

    >>> _text("2025"), _text('"2025"')
    ('2025', '2025')
    """
    if text.endswith((".yml", ".yaml")) and Path(text).is_file():
        return str(Path(text).resolve())
    return str(yaml.safe_load(text)) if len(text) > 1 and text[0] == text[-1] == '"' else text


def _integer(text):
    """Whole number in any notation; raises ValueError for others.

    >>> _integer("1e3"), _integer("007")
    (1000, 7)
    """
    number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(number)


def _truth(text):
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def execute(
    notebook: str | Path,
    output: str | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Path:
    """Execute a notebook into ``output``, which is written only if all cells succeed.

    Two processes do not execute into one output at the same time: the second waits. If a cell fails, the
    partial notebook is kept as ``<output>.failed.ipynb`` and a record of kind ``failure`` is written, so that
    the leaderboard lists the run. A report page that fails because its campaign has no records yet says so
    instead. The metadata ``records`` of the output lists the records that the notebook made or used.

    Raises
    ------
    ValueError
        If a parameter is unknown, or a training notebook names two models; nothing is executed then.
    RuntimeError
        If a cell failed or the kernel died.
    """
    notebook, output = Path(notebook).resolve(), Path(output).resolve()
    parameters = dict(parameters or {})
    check_parameters(notebook, parameters)
    check_names(notebook)
    with alone(output), paths.written(output) as partial, kernel_sockets() as config:
        try:
            with _noted_records(Path(config.KernelManager.ip).parent) as used:
                _papermill(notebook, partial, parameters, progress_bar=not quiet, config=config)
        except (Exception, Terminated) as error:
            if not _says_it_is_empty(notebook, partial, parameters):
                raise _failed(notebook, partial, output, parameters, error) from error
        else:
            made = clean(nbformat.read(partial, as_version=4))
            made.metadata["records"] = used()
            nbformat.write(made, partial)
    output.with_suffix(".failed.ipynb").unlink(missing_ok=True)
    failure_key(notebook, parameters).path.unlink(missing_ok=True)
    return output


def _lock(output: Path) -> FileLock:
    return FileLock(output.with_name(f".{output.stem}.lock"))


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Context in which no other process of this machine executes into ``output``."""
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(output)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{output.name} is being made by another process; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_running(output: Path) -> bool:
    """Whether a process executes a notebook into ``output``."""
    lock = _lock(output)
    try:
        if Path(lock.lock_file).is_file():
            lock.acquire(timeout=0)
            lock.release()
    except Timeout:
        return True
    return False


def _papermill(notebook, partial, parameters, **options):
    """Execute a notebook in a thread, since in the main one papermill takes Ctrl-C for a dead kernel.

    An interruption or SIGTERM ends the kernel and is raised here.
    """
    with ThreadPoolExecutor(1) as pool, _raising_on_sigterm():
        done = pool.submit(
            papermill.execute_notebook,
            str(notebook),
            str(partial),
            parameters,
            cwd=str(paths.home()),
            iopub_timeout=600,  # by default a cell fails whose output is 4 s late, as on a crowded machine
            **options,
        )
        try:
            done.result()
        except (KeyboardInterrupt, Terminated):
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            raise


@contextmanager
def _raising_on_sigterm():
    def stop(*_):
        raise Terminated("the process was terminated, as at the end of the time of a job")

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _noted_records(folder):
    """Context in which records note that they were used; yields a function that lists them."""
    file = folder / "records"
    os.environ[records.NOTES] = str(file)
    try:
        yield lambda: sorted(set(file.read_text().splitlines())) if file.is_file() else []
    finally:
        del os.environ[records.NOTES]


def _failed(notebook, partial, output, parameters, error):
    """Keep what there is of a notebook that failed and record the failure; returns the error to raise."""
    see, failed = "", output.with_suffix(".failed.ipynb")
    if partial.stat().st_size:  # papermill may fail before it writes the notebook
        shutil.copyfile(partial, failed)
        see = f"; see {failed}"
    try:
        record_failure(notebook, parameters, error)
    except Exception as second:  # such as a full disk, which may be the reason of the first
        see += f" (the failure could not be recorded: {_first_line(second)})"
    return RuntimeError(f"{notebook.name} failed ({_first_line(error)}){see}")


def _says_it_is_empty(notebook, partial, parameters):
    """Write a page that says that its campaign has no records; returns whether that is so."""
    name = parameters.get("campaign", parameters_of(notebook).get("campaign"))
    if notebook.parent.name != "report" or records.read_all(name):
        return False
    titles = [
        cell.source for cell in nbformat.read(notebook, as_version=4).cells if "\n# " in f"\n{cell.source}"
    ]
    text = f"Campaign `{name}` has no records yet. Run it: `egraff campaign run {name}`."
    nbformat.write(new_notebook(cells=[new_markdown_cell(t) for t in (*titles[:1], text)]), partial)
    return True


@contextmanager
def kernel_sockets() -> Iterator[Config]:
    """Context with settings for one kernel that uses Unix sockets, in a folder that exists only within it.

    Jupyter's default is TCP: free ports are chosen, and the kernel binds them a second later. When notebooks
    run in parallel, another process may take a port in between, and the kernel dies. The folder is known to
    no other process.

    Yields
    ------
    traitlets.config.Config
        Settings for a ``KernelManager``, or for an object that creates one.
    """
    for left in Path("/tmp").glob("kernel-*-*"):  # of processes that were killed
        if (process := left.name.split("-")[1]).isdigit() and not paths.alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    # The paths of Unix sockets are limited to about 100 characters, hence /tmp.
    with tempfile.TemporaryDirectory(prefix=f"kernel-{os.getpid()}-", dir="/tmp") as folder:
        yield Config(KernelManager={"transport": "ipc", "ip": f"{folder}/socket"})


def clean(notebook: NotebookNode) -> NotebookNode:
    """Remove what differs between runs: times, addresses, progress bars and standard error.

    The ``nbformat`` notebook is changed in place and returned.
    """
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
            cell.metadata["tags"] = ["injected-parameters", "remove-cell"]
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
            for output in cell.outputs:
                for kind, text in output.get("data", {}).items():
                    if kind.endswith("text/plain"):
                        output.data[kind] = re.sub(r" at 0x[0-9a-f]+", "", text)
    return notebook


def _is_noise(output):
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return widget or output.get("name") == "stderr"


def notebook_of(folder: str, dataset: str) -> Path:
    """Notebook ``datasets`` or ``rollout`` of a dataset; for one of a user's own, that which takes its card.

    >>> [notebook_of(folder, "lips").parent.name for folder in ("datasets", "rollout")]
    ['datasets', 'rollout']
    >>> notebook_of("datasets", "water").relative_to(NOTEBOOKS).as_posix()
    'yours/dataset.ipynb'
    """
    if dataset in cards.datasets():
        return NOTEBOOKS / folder / f"{dataset}.ipynb"
    return NOTEBOOKS / "yours" / {"datasets": "dataset.ipynb", "rollout": "rollout.ipynb"}[folder]


def run_key(notebook: str | Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Campaign, dataset, model and seed of the run of a notebook, under which its records are stored."""
    values = {**parameters_of(notebook), **parameters}
    stem, folder = Path(notebook).stem, Path(notebook).parent.name
    known: dict[str, dict[str, Any]] = {
        "datasets": {"dataset": stem, "model": "reference"},
        "training": {
            "dataset": values.get("dataset"),
            "model": values.get("model") or model_of(notebook) or stem,
        },
        "rollout": {"dataset": stem, "model": values.get("model")},
        "yours": {"dataset": values.get("dataset"), "model": values.get("model", "reference")},
        **dict.fromkeys(campaigns.TASKS, {"dataset": values.get("dataset"), "model": values.get("model")}),
    }
    identity = known.get(folder, {"dataset": "all", "model": stem})
    identity["dataset"] = _name(lambda name: cards.dataset(name).name, identity["dataset"])
    identity["model"] = _name(cards.model_name, identity["model"])
    return {"campaign": values.get("campaign", "demo"), **identity, "seed": values.get("seed", 0)}


def _name(name_of, spelling):
    """Name of a dataset or model by its spelling; of a card that cannot be read, that of its file."""
    try:
        return name_of(str(spelling))
    except (ValueError, OSError):
        return Path(str(spelling)).stem.replace("-", "_")


def failure_key(notebook: Path, parameters: Mapping[str, Any]) -> Key:
    """Key of the failure of a run, to which its notebook and its protocol belong.

    >>> str(failure_key(NOTEBOOKS / "rollout" / "lips.ipynb", {"protocol": "as_coded", "model": "mace"}).kind)
    'failure_as_coded_rollout'
    """
    folder = notebook.parent.name
    origin = folder if folder in ("datasets", "training", "rollout") else notebook.stem
    protocol = AS_CODED if parameters.get("protocol") == AS_CODED else ""
    return Key(str(Kind("failure", protocol, origin)), **run_key(notebook, parameters))


def record_failure(notebook: Path, parameters: Mapping[str, Any], error: BaseException) -> None:
    """Write a record of kind ``failure`` for a run, without paths of this machine."""
    if notebook.parent.name == "report":  # a report shows the cells of a campaign but is not one of them
        return
    asked = {"notebook": f"{notebook.parent.name}/{notebook.name}", **parameters}
    key, message = failure_key(notebook, parameters), without_folders(_first_line(error))
    records.write(records.Record(*key, parameters=asked, status="failed", message=message))


def without_folders(text: str) -> str:
    """A message in which absolute paths have lost their folders.

    >>> without_folders("no /home/me/egraff/results/a.json; see https://a.org/b")
    'no a.json; see https://a.org/b'
    """
    return re.sub(
        r"(?<![\w.:/])/(?:[^\s/'\":,;]+/)+",
        "",
        text.replace(f"{paths.ROOT}/", "").replace(f"{paths.home()}/", ""),
    )


def _first_line(error):
    name = getattr(error, "ename", type(error).__name__)
    text = str(getattr(error, "evalue", error)).strip()
    return f"{name}: {text.splitlines()[0] if text else ''}"


def words(parameters: Mapping[str, Any]) -> str:
    """Parameters of a notebook as arguments for the shell.

    Examples
    --------
    >>> words({"seed": 0, "dataset": "lips", "max_seconds": None})
    '-p seed 0 -p dataset lips -p max_seconds null'
    >>> print(words({"campaign": "2025"}))  # quoted, as YAML too would take it for a number
    -p campaign '"2025"'
    """
    return " ".join(f"-p {name} {shlex.quote(_plain(value))}" for name, value in parameters.items())


def _plain(value):
    return value if isinstance(value, str) and _reads_as(value) == value else json.dumps(value)


def _reads_as(text):
    """What YAML makes of a text; None if it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def task_notebook(task: str, campaign: Campaign) -> Path:
    """Notebook of a task such as ``"ood/benzene"``; those of your own share one."""
    return NOTEBOOKS / f"{'yours/shift' if campaign.own_task(task) else task}.ipynb"


def task_parameters(task: str, campaign: Campaign, dataset: str, model: str, seed: int) -> dict[str, Any]:
    """Parameters of the notebook of a task such as ``"ood/benzene"``, without those that it does not have."""
    known, own = parameters_of(task_notebook(task, campaign)), campaign.own_task(task)
    values = campaign.task_parameters(dataset, model, seed) | (dict(own.shifted) if own else {})
    return {name: value for name, value in values.items() if name in known}
