"""A real SLURM on this machine, for tests: a controller and several nodes, all on loopback.

    with SlurmCluster(nodes=2) as cluster:
        job = cluster.submit(script)                 # as `sbatch` prints it
        cluster.wait_for(job, "COMPLETED")
        cluster.kill_node("n2")                      # as a node dies: SIGKILL of its slurmd
        cluster.start_node("n2")

Debian's packages slurm-wlm and munge are enough. All state (configuration, keys, spools, logs) is
in one temporary folder, and everything that was started is ended by its process id.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from moe_megatron.testing.ports import free_port

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
INSTALL = "apt-get install -y --no-install-recommends slurm-wlm munge"

_POLL_SECONDS = 0.1
_CORES = 4
"""Of each node, as SLURM is told; the jobs of a test share the cores that the machine has."""

_CONF = """\
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=1
ReturnToService=2
JobRequeue=1
MessageTimeout=30
SlurmdTimeout=6
SlurmctldTimeout=60
InactiveLimit=0
KillWait=30
CommunicationParameters=NoAddrCache
TreeWidth=65533
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} Boards=1 "
    "SocketsPerBoard=1 CoresPerSocket={cores} ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN"
)
# cred_expire: a requeued job waits this long and a second, in place of two minutes.
# linuxproc, task/none, jobacct_gather/none: steps fail without, where there are no control groups.
# SlurmctldHost=NAME(ADDRESS), NodeAddr: the machine's own name need not resolve.


def why_not() -> str | None:
    """Why this machine cannot start a cluster; None if it can."""
    # Debian keeps the daemons out of the path of ordinary users.
    missing = [name for name in PROGRAMS if _find(name) is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)} missing); {INSTALL}"
    return None if os.geteuid() == 0 else "nodes of SLURM are started by root only"


class SlurmCluster:
    """A controller and nodes n1, n2, ... on this machine.

    Args:
        nodes: Number of nodes.
    """

    def __init__(self, nodes: int = 2) -> None:
        self.nodes = tuple(f"n{number}" for number in range(1, nodes + 1))
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.environment: Mapping[str, str] = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        """What a program needs to reach this cluster."""
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> None:
        munge = self.folder / "munge"
        for name in ("munge", "state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir()
        for path in (self.folder, munge):
            path.chmod(0o755)
        key = munge / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._write_conf()
        files = {name: munge / name for name in ("socket", "pid-file", "log-file", "seed-file")}
        words = [f"--{name}={path}" for name, path in files.items()]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", *words)
        _until(files["socket"].exists, "munged listens", 20)
        self._daemon("slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        _until(self._all_idle, "all nodes are idle", 60)

    def _write_conf(self) -> None:
        host = socket.gethostname().partition(".")[0]
        nodes = [
            _NODE.format(name=name, host=host, port=free_port(), cores=_CORES)
            for name in self.nodes
        ]
        text = _CONF.format(host=host, port=free_port(), folder=self.folder, nodes="\n".join(nodes))
        (self.folder / "slurm.conf").write_text(text)

    def _daemon(self, program: str, *words: str, name: str | None = None) -> None:
        with (self.folder / f"{name or program}.log").open("ab") as log:
            self._daemons[name or program] = subprocess.Popen(
                [str(_find(program)), *words],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _all_idle(self) -> bool:
        for name, process in self._daemons.items():
            assert process.poll() is None, (self.folder / f"{name}.log").read_text()
        states = self.run("sinfo", "-h", "-N", "-o", "%t", check=False).split()
        return states == ["idle"] * len(self.nodes)

    def run(self, *words: object, check: bool = True, cwd: Path | None = None) -> str:
        """Run one of SLURM's commands; returns what it prints.

        Raises:
            AssertionError: It failed; the message contains its output.
        """
        answer = subprocess.run(
            list(map(str, words)),
            env=os.environ | self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert answer.returncode == 0 or not check, f"{words}: {answer.stdout}{answer.stderr}"
        return answer.stdout

    def submit(self, *words: object, cwd: Path) -> str:
        """Submit a batch script with options; returns the job's number."""
        return self.run("sbatch", "--parsable", *words, cwd=cwd).strip()

    def field(self, job: str, name: str) -> str:
        """A field of a job as `scontrol show job` names it, such as "JobState"."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(word.partition("=")[::2] for word in shown.split()).get(name, "")

    def wait_for(self, job: str, *states: str, seconds: float = 240.0) -> None:
        """Wait until a job is in one of the states, such as "COMPLETED"."""
        _until(lambda: self.field(job, "JobState") in states, f"job {job} is {states}", seconds)

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._daemon("slurmd", "-D", "-N", node, name=f"slurmd-{node}")

    def kill_node(self, node: str) -> None:
        """Let a node die: SIGKILL of its daemon and of all that the node runs."""
        daemon = self._daemons[f"slurmd-{node}"]
        daemon.kill()
        daemon.wait()
        for process in self._of_jobs(node):
            _kill(process)

    def _of_jobs(self, node: str | None = None) -> Sequence[psutil.Process]:
        """The processes of jobs, of one node or of all."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                ours = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                where = environment.get("SLURMD_NODENAME")
                if ours and where is not None and node in (None, where):
                    found.append(process)
        return found

    def close(self) -> None:
        """End all jobs and daemons and remove the folder."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired, OSError):
            self.run("scancel", "--full", "--signal=KILL", "--user=root", check=False)
            self.run("scancel", "--user=root", check=False)
        for process in self._of_jobs():
            _kill(process)
        for name in reversed(list(self._daemons)):
            self._daemons[name].terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self._steps():
            _kill(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _steps(self) -> Sequence[psutil.Process]:
        """The daemons of steps, which outlive that of their node, by the sockets they listen on."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                # Their titles overwrite what /proc says of their environment.
                if "slurmstepd" in process.name() and any(
                    str(self.folder) in str(own.laddr) for own in process.net_connections("unix")
                ):
                    found.append(process)
        return found


def _find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def _until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:.0f} seconds it is not so that {what}"
        time.sleep(_POLL_SECONDS)
