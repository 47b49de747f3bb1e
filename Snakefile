# The DAG of one campaign: dataset -> training -> rollout -> tasks (out of distribution, checks) -> reports.
#
#     snakemake --cores 2 --keep-going --config campaign=demo
#
# or `egraff campaign run demo`, which adds the settings that survive a kill. Every output is an
# executed notebook under runs/<campaign>/. The records that the notebooks write under results/ are no
# outputs: Snakemake deletes the outputs of a failed job, and a record must outlive that. A job whose
# record exists returns it, so running again is cheap.
import math
import shlex
import sys

from egraff_utils import campaign as campaigns, cards, paths
from egraff_utils.running import batch, cells, pages
from egraff_utils.campaign import CELL, FOLDERS

CAMPAIGN = campaigns.load(config.get("campaign", "demo"))
ONLY = config.get("only") or []  # datasets whose cells are run, without reports
NOTEBOOKS = paths.ROOT / "notebooks"
RUNS = paths.runs() / CAMPAIGN.name
PYTHON = shlex.quote(sys.executable).replace("{", "{{").replace("}", "}}")
# :q quotes a path for the shell; the words are quoted where they are made
EXECUTE = (
    f"OMP_NUM_THREADS={CAMPAIGN.threads} MKL_NUM_THREADS={CAMPAIGN.threads} "
    f"{PYTHON} -m egraff_utils run --quiet {{input.notebook:q}} {{output:q}} {{params.words}}"
)
LEAST, UNKNOWN = 30, 1440  # min: for a job beside its budget, and for a training that has no limit of time


wildcard_constraints:
    dataset="|".join(CAMPAIGN.datasets),
    model="|".join([*CAMPAIGN.models, cards.REFERENCE]),
    seed="[0-9]+",
    folder="|".join(campaigns.TASKS),
    task="[a-z0-9_]+",
    page="[a-z0-9_]+",


def dataset_words(wildcards):
    """Parameters of a dataset's notebook, for the shell."""
    return batch.words(CAMPAIGN.dataset_parameters(wildcards.dataset))


def training_words(wildcards):
    """Parameters of a training notebook, for the shell."""
    cell = wildcards.dataset, wildcards.model, int(wildcards.seed)
    return batch.words(CAMPAIGN.training_parameters(*cell))


def rollout_words(protocol):
    """Parameters of a rollout notebook at a protocol, for the shell."""

    def words_of(wildcards):
        cell = wildcards.dataset, wildcards.model, int(wildcards.seed)
        return batch.words(CAMPAIGN.rollout_parameters(*cell, protocol))

    return words_of


def task_words(wildcards):
    """Parameters of a task's notebook, for the shell."""
    cell = wildcards.dataset, wildcards.model, int(wildcards.seed)
    return batch.words(batch.task_parameters(f"{wildcards.folder}/{wildcards.task}", CAMPAIGN, *cell))


def minutes(part):
    """Time of a job on a cluster, min: twice its budget and half an hour; each attempt has as much again."""

    def minutes_of(wildcards, attempt):
        cell = wildcards.dataset, getattr(wildcards, "model", ""), 0
        limit = "train_max_seconds" if part == "training" else "max_seconds"
        seconds = CAMPAIGN.rollout_parameters(*cell, "corrected")[limit]
        whole = UNKNOWN if seconds is None else math.ceil(2 * seconds / 60)
        return (LEAST + whole) * attempt

    return minutes_of


# All cells are targets, not only the reports: Snakemake does not make a missing file again that is merely
# the input of one that is there. A rule, since a command line cannot take the names of all.
rule all:
    input:
        [cell.output for cell in cells.cells(CAMPAIGN, ONLY)],
        [] if ONLY else [pages.report_page(CAMPAIGN.name, page) for page in pages.reports(CAMPAIGN)],
    default_target: True


rule dataset:
    input:
        notebook=lambda wildcards: batch.notebook_of("datasets", wildcards.dataset),
    output:
        RUNS / "datasets" / "{dataset}.ipynb",
    params:
        words=dataset_words,
    threads: CAMPAIGN.threads
    resources:
        runtime=lambda wildcards, attempt: LEAST * attempt,
    shell:
        EXECUTE


rule training:
    input:
        RUNS / "datasets" / "{dataset}.ipynb",
        notebook=lambda wildcards: cells.training_notebook(wildcards.model),
    output:
        RUNS / "training" / CELL,
    params:
        words=training_words,
    threads: CAMPAIGN.threads
    resources:
        runtime=minutes("training"),
        gpu=int(CAMPAIGN.device != "cpu"),
    shell:
        EXECUTE


for protocol, folder in FOLDERS.items():

    rule:
        name:
            folder
        input:
            RUNS / "training" / CELL,
            notebook=lambda wildcards: batch.notebook_of("rollout", wildcards.dataset),
        output:
            RUNS / folder / CELL,
        params:
            words=rollout_words(protocol),
        priority: 1  # a run cut short has whole cells
        threads: CAMPAIGN.threads
        resources:
            runtime=minutes("rollout"),
            gpu=int(CAMPAIGN.device != "cpu"),
        shell:
            EXECUTE


rule task:
    input:
        RUNS / "rollout" / CELL,
        notebook=lambda wildcards: batch.task_notebook(f"{wildcards.folder}/{wildcards.task}", CAMPAIGN),
    output:
        RUNS / "{folder}" / "{task}" / CELL,
    params:
        words=task_words,
    priority: 2
    threads: CAMPAIGN.threads
    resources:
        runtime=minutes("task"),
        gpu=int(CAMPAIGN.device != "cpu"),
    shell:
        EXECUTE


rule report:
    input:
        [cell.output for cell in cells.cells(CAMPAIGN)],
        notebook=NOTEBOOKS / "report" / "{page}.ipynb",
    output:
        RUNS / "report" / "{page}.ipynb",
    params:
        words=batch.words({"campaign": CAMPAIGN.name}),
    threads: 1
    resources:
        runtime=lambda wildcards, attempt: LEAST * attempt,
    shell:
        EXECUTE
