"""Where does a result come from? Code, versions, hardware, times and digests of the inputs of a run."""

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from egraff_utils import paths

PACKAGES = [
    "torch",
    "e3nn",
    "nequip",
    "nequip-allegro",
    "mace-torch",
    "torchmd-net",
    "lightning",
    "ase",
    "matscipy",
    "numpy",
]


def clock(device: str) -> Callable[[], float]:
    """Clock for budgets and costs, a function that returns seconds.

    On a CPU it is the processor time per thread, so that other programs do not count; on a GPU it is the wall
    time.
    """
    if str(device).startswith("cuda"):
        return time.perf_counter
    import torch

    return lambda: time.process_time() / torch.get_num_threads()


def check_device(device: str) -> None:
    """Raise ``ValueError`` if a device is not there, such as a GPU."""
    if not str(device).startswith("cuda"):
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(str(device).partition(":")[2] or 0) >= count:
        raise ValueError(f"there is no device {device}: PyTorch finds {count} GPUs here; take the device cpu")


def provenance(started: float, *, device: str = "cpu", threads: int = 1, **hashes: Any) -> dict[str, Any]:
    """Provenance of a run: commit, package versions, hardware, times (s) and peak memory (MB).

    Parameters
    ----------
    started
        ``time.time()`` at the start of the run, from which the wall time is counted, s.
    device, threads
        Device and number of threads.
    hashes
        Names and hashes of the inputs (data, weights, parameters).
    """
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "hardware": _hardware(device),
        "device": str(device),
        "threads": threads,
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "wall_time": round(time.time() - started, 1),
        "peak_memory": round(_peak_memory(device)),
        **hashes,
    }


def digest(*parts: object) -> str:
    """Short sha256 of arrays, files and plain values, which shows whether inputs have changed."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            total.update(part.read_bytes())
        elif isinstance(part, np.ndarray):
            total.update(np.ascontiguousarray(part).tobytes())
        else:
            total.update(json.dumps(part, sort_keys=True, default=plain).encode())
    return total.hexdigest()[:16]


def plain(value: object) -> str | float | list[Any]:
    """Value of numpy, or a path, as JSON holds it; raises TypeError for what a record cannot hold."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.name
    raise TypeError(f"a record cannot hold a {type(value).__name__}")


def _commit():
    call = ["git", "-C", str(paths.ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _hardware(device):
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _peak_memory(device):
    """Peak memory in MB, of the device if it is a GPU, else of the process."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
