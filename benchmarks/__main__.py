"""Command line: ``python -m benchmarks [names ...] [--quick] [--device cuda] [--threads 2] [--anew]``.

``--budget 300`` is of ``accuracy``, which runs only where it is named.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
import traceback

from benchmarks import BY_NAME, SHARES, Settings

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def main(arguments=None):
    """Runs benchmarks and prints their records; returns how many of them broke off."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Ours beside upstream's, timed."
    )
    parser.add_argument(
        "names", nargs="*", help=f"of {', '.join(SHARES)}; default, all but {', '.join(BY_NAME)}"
    )
    parser.add_argument("--quick", action="store_true", help="two minutes in all, into bench_quick")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--threads", type=int, default=1, help="of both sides of a comparison")
    parser.add_argument("--anew", action="store_true", help="measure also what is stored")
    parser.add_argument("--budget", type=float, default=300.0, help="of a training in accuracy, s")
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        if name not in SHARES:
            parser.error(f"no benchmark '{name}'; there are {', '.join(SHARES)}")
    settings = Settings(chosen.quick, chosen.device, chosen.threads, chosen.anew, chosen.budget)
    names = chosen.names or [name for name in SHARES if name not in BY_NAME]
    prepare(settings)
    with tempfile.TemporaryDirectory() as folder:  # so that a run compiles anew what it times, and only once
        os.environ[CACHE] = folder
        try:
            return sum(not _run(name, settings) for name in names)
        finally:
            del os.environ[CACHE]


def prepare(settings):
    """Thread count of this process and of those it starts; the default dtype, which some packages change."""
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = str(settings.threads)
    import torch

    torch.set_num_threads(settings.threads)
    torch.set_default_dtype(torch.float32)


def _run(name, settings):
    """Whether a benchmark ran to its end."""
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
