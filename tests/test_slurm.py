"""Does a campaign on a Slurm cluster end with the records of a local run, whatever happens on the way?"""

import getpass
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from egraff_utils import paths, records

SYSTEM = Path("/etc/slurm/slurm.conf")
PATIENCE = 1800
"""Time after which a test gives up waiting, s: other programs may share the processors."""
DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """
ClusterName=one
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldTimeout=20
SlurmdTimeout=20
MpiDefault=none
NodeName=localhost CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """A cluster of one node, this machine, without an accounting database."""

    def __init__(self, folder):
        self.folder, self.running, self.commands = folder, {}, []
        folder.chmod(0o755)  # munged wants a folder that others can enter
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, user=getpass.getuser()))
        SYSTEM.symlink_to(folder / "slurm.conf")  # Snakemake's plugin removes SLURM_CONF within jobs
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        own = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self.start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *own)
        self.start("slurmctld", "-D")
        self.start("slurmd", "-D", "-N", "localhost")
        wait(lambda: "idle" in self.ask("sinfo", "-h"))

    def start(self, name, *arguments):
        with open(self.folder / f"{name}.out", "a") as log:
            words = [shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin"), *arguments]
            self.running[name] = subprocess.Popen(words, stdout=log, stderr=log)

    def ask(self, *words):
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout

    def jobs(self, state="R"):
        """Numbers of the jobs in a state."""
        return set(self.ask("squeue", "-h", "-t", state, "-o", "%i").split())

    def stop(self):
        for command in self.commands:  # of a test that failed
            if command.poll() is None:
                os.killpg(command.pid, signal.SIGKILL)
        self.ask("scancel", *self.jobs("R,PD"))
        for process in reversed(self.running.values()):
            process.kill()
            process.wait()
        SYSTEM.unlink()


def wait(condition):
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)
    return value


@pytest.fixture
def cluster():
    missing = [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    if missing or not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        pytest.skip("needs slurm-wlm, munge and profiles/slurm/requirements.txt")
    if SYSTEM.exists() or not os.access(SYSTEM.parent, os.W_OK):
        pytest.skip(f"needs a folder {SYSTEM.parent} to write to, without the configuration of a cluster")
    with tempfile.TemporaryDirectory() as folder:
        made = Cluster(Path(folder))
        yield made
        made.stop()


def profile(folder):
    """The shipped profile with the names of the test's cluster, and with short waits."""
    shipped = yaml.safe_load((paths.ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    shipped["default-resources"] |= {"slurm_partition": "debug", "mem_mb": 2000}
    for resources in shipped["set-resources"].values():
        resources["slurm_partition"] = "debug"
    shipped |= {
        "latency-wait": 5,
        "slurm-init-seconds-before-status-checks": 2,
        "resources": ["gpu=1", "mem_mb=2000"],
    }
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(shipped))
    return str(folder)


def results(folder):
    """Metrics and digests of the weights of all records, without times."""
    found = {}
    for path in sorted((folder / "results" / "tiny").rglob("*.json")):
        if path.parent.name != "audit" and not path.name.endswith("build.json"):
            record = records.load(path)
            kept = {m.name: m.value for m in record.metrics if m.unit not in ("s", "ms", "1/s")}
            found[path.relative_to(folder)] = record.status, kept, record.provenance.get("weights")
    return found


@pytest.mark.slow
def test_a_campaign_survives_what_happens_on_a_cluster(cluster, tmp_path, monkeypatch):
    def command(folder, *arguments):
        home = {"EGRAFF_RESULTS": str(folder / "results"), "EGRAFF_RUNS": str(folder / "runs")}
        words = [sys.executable, "-m", "egraff_utils", "campaign", "run", "tiny", "--only", "ethanol_xtb"]
        options = {"cwd": paths.ROOT, "env": os.environ | home, "start_new_session": True}
        cluster.commands.append(subprocess.Popen([*words, *arguments], **options))
        return cluster.commands[-1]

    here, there = tmp_path / "local", tmp_path / "cluster"
    on_cluster = ("--profile", profile(tmp_path / "profile"))
    assert command(here).wait() == 0

    submitter = command(there, *on_cluster)
    dataset = there / "runs" / "tiny" / "datasets" / "ethanol_xtb.ipynb"
    wait(dataset.is_file)
    cancelled = wait(cluster.jobs)
    cluster.ask("scancel", *cancelled)
    again = wait(lambda: cluster.jobs() - cancelled)
    cluster.running["slurmd"].kill()
    cluster.running["slurmd"].wait()
    cluster.start("slurmd", "-D", "-N", "localhost")
    wait(lambda: cluster.jobs() - cancelled - again or not cluster.jobs("R,PD"))
    submitter.send_signal(signal.SIGINT)
    assert submitter.wait(PATIENCE) in (0, 1, 130)
    wait(lambda: not cluster.jobs("R,PD"))

    for output in (there / "runs" / "tiny" / "rollout").glob("*.ipynb"):
        output.unlink()
    submitter = command(there, *on_cluster)
    wait(cluster.jobs)
    os.killpg(submitter.pid, signal.SIGKILL)
    assert command(there, *on_cluster, "--unlock").wait() == 0
    assert command(there, *on_cluster).wait() == 0
    assert results(there) == results(here)
    assert results(here)
