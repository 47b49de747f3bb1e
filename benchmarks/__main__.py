"""Command line: ``python -m benchmarks [names ...] [--quick] [--device cuda] [--threads 2] [--anew]``.

``--budget 300`` applies to ``accuracy``, which runs only if it is named.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence

from benchmarks import BY_NAME, SHARES, Settings

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks and print their records; returns the number of benchmarks that did not finish."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Time ours against the upstream packages."
    )
    parser.add_argument(
        "names", nargs="*", help=f"any of {', '.join(SHARES)}; by default all but {', '.join(BY_NAME)}"
    )
    parser.add_argument("--quick", action="store_true", help="take two minutes and write to bench_quick")
    parser.add_argument("--device", default="cpu", help="device, such as cuda")
    parser.add_argument("--threads", type=int, default=1, help="threads of both sides of a comparison")
    parser.add_argument("--anew", action="store_true", help="measure stored cells again")
    parser.add_argument("--budget", type=float, default=300.0, help="time of a training in accuracy, s")
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        if name not in SHARES:
            parser.error(f"no benchmark '{name}'; there are {', '.join(SHARES)}")
    settings = Settings(chosen.quick, chosen.device, chosen.threads, chosen.anew, chosen.budget)
    names = chosen.names or [name for name in SHARES if name not in BY_NAME]
    prepare(settings)
    with tempfile.TemporaryDirectory() as folder:  # a new cache, so that compilation is timed, but only once
        os.environ[CACHE] = folder
        try:
            return sum(not _run(name, settings) for name in names)
        finally:
            del os.environ[CACHE]


def prepare(settings: Settings) -> None:
    """Set the threads of this process and its children, and the default dtype, which some packages change."""
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = str(settings.threads)
    import torch

    torch.set_num_threads(settings.threads)
    torch.set_default_dtype(torch.float32)


def _run(name: str, settings: Settings) -> bool:
    """Run a benchmark; returns whether it finished."""
    began = time.perf_counter()
    try:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        print(f"{benchmark.TITLE}\n", flush=True)
        for record in benchmark.run(settings):
            print(record, flush=True)
    except Exception:
        traceback.print_exc()
        return False
    finally:
        prepare(settings)
        took = time.perf_counter() - began
        print(f"\n{name}: {took:.0f} s of {settings.share(name)} s\n", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main() > 0)
