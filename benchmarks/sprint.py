"""How far do the trainings of a campaign get on a machine lent for minutes? All of them run in parallel.

    python -m benchmarks.sprint gpu --minutes 9 --jobs 8 --out "$OUT"

This is a single call, without notebooks. Every process trains one cell after another with the parameters of
the campaign, compiled, and copies records and weights to a folder when they are ready. Stored records are not
made again.
"""

import argparse
import math
import multiprocessing
import queue
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from egraff_utils import campaign as campaigns
from egraff_utils.config import Key

STARTING = 45.0
"""Time of a training in addition to its budget, s: imports, compilation from the cache, test errors."""


def run(
    name: str,
    *,
    minutes: float,
    jobs: int,
    out: Path | str | None = None,
    datasets: Sequence[str] = (),
    models: Sequence[str] = (),
) -> list[Path]:
    """Train the cells of a campaign within a time limit; returns the paths of the available records.

    Parameters
    ----------
    name
        Name of the campaign, or path of its file.
    minutes
        Time from now until the last training has ended, minutes.
    jobs
        Number of trainings at a time, on one device.
    out
        Folder to which records, curves and weights are copied.
    datasets, models
        Datasets and models that are trained; by default all of the campaign.

    Raises
    ------
    ValueError
        If the budgets of the trainings do not fit the time.
    """
    campaign, ends = campaigns.load(name), time.time() + 60 * minutes
    cells = [cell for cell in campaign.cells() if _chosen(cell[0], datasets) and _chosen(cell[1], models)]
    fitting = 60 * minutes / -(-len(cells) // jobs) - STARTING
    longest = max(campaign.training_parameters(*cell)["max_seconds"] or math.inf for cell in cells)
    if longest > fitting:
        raise ValueError(
            f"{len(cells)} trainings, {jobs} at a time, have {fitting:.0f} s each of {minutes:g} minutes, "
            f"but one of campaign {campaign.name} has {longest:g} s: lower its max_seconds, or take fewer"
        )
    spawn = multiprocessing.get_context("spawn")
    waiting = spawn.Queue()
    for cell in cells:
        waiting.put(cell)
    arguments = name, waiting, ends, out
    workers = [spawn.Process(target=_work, args=arguments) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, ends - time.time()))
        worker.kill()
    paths = [Key("training", campaign.name, *cell).path for cell in cells]
    return [path for path in paths if path.is_file()]


def _chosen(name, names):
    return not names or name in names


def _work(name, waiting, ends, out):
    from egraff_utils import train

    campaign = campaigns.load(name)
    while time.time() < ends:
        try:
            dataset, model, seed = waiting.get(timeout=1)
        except queue.Empty:
            return
        asked = campaign.training_parameters(dataset, model, seed)
        try:
            record = train.fit(train.TrainConfig(model, **asked, progress=False))
        except Exception as error:  # a failed cell must not stop the others
            print(f"{dataset} {model} s{seed}: {type(error).__name__}: {error}", flush=True)
            continue
        print(record, flush=True)
        for file in record.path.parent.glob(f"{record.path.stem}.*") if out else ():
            target = Path(out, campaign.name, "training", file.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a sprint and print the number of available records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sprint", description=__doc__.split("\n")[0])
    parser.add_argument("campaign")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--out")
    parser.add_argument("--datasets", nargs="+", default=())
    parser.add_argument("--models", nargs="+", default=())
    chosen = vars(parser.parse_args(arguments))
    found = run(chosen.pop("campaign"), **chosen)
    print(f"{len(found)} records")


if __name__ == "__main__":
    main()
