"""A real Slurm on this host: munge, slurmctld and one slurmd a node, on loopback, with GPUs as
GRES.

Everything lies in one directory and is found through SLURM_CONF, so nothing under /etc is touched.
The daemons are children in the foreground: they are stopped by their process ids, and die with the
process that started them. GPUs are character devices that nothing opens. Needs root (mknod, slurmd)
and Debian's packages `slurmctld slurmd slurm-client munge`, whose slurmd may run several times on
one host (`slurmd -N`).
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

PACKAGES = "slurmctld slurmd slurm-client munge"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo", "scontrol")
NODES = {"cpu1": 0, "cpu2": 0, "gpu1": 2}
PR_SET_PDEATHSIG = 1

CONF = """\
ClusterName=quantmill
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[ctld]}
AuthType=auth/munge
AuthInfo=socket={base}/run/munge.sock
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/run/spool-%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
# Memory is enforced as a site does it, by watching the processes (no cgroups are needed for that).
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
DefMemPerCPU=256
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=100000
ReturnToService=2
KillWait=2
SlurmdTimeout={slurmd_timeout}
OverTimeLimit=0
MinJobAge={min_job_age}
AccountingStorageType=accounting_storage/none
PartitionName=cpu Nodes=cpu1,cpu2 Default=YES MaxTime=1-00:00:00
PartitionName=gpu Nodes=gpu1 MaxTime=1-00:00:00
"""


def why_not() -> str | None:
    """The reason why no cluster can be started here; None if one can."""
    missing = [p for p in PROGRAMS if not shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin")]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)}): apt-get install {PACKAGES}"
    if os.geteuid():
        return "slurmd and mknod need root"
    return None


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_ports(names: list[str]) -> dict[str, int]:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: holder.getsockname()[1] for name, holder in zip(names, holders, strict=True)}
    for holder in holders:
        holder.close()
    return ports


class Cluster:
    """Nodes cpu1 and cpu2 (partition cpu) and gpu1 with two H200 (partition gpu), each of 8 CPUs
    and 2 TB by claim.

    `min_job_age`: seconds that squeue remembers a finished job; `slurmd_timeout`: until a silent
    node is down.
    """

    def __init__(self, base: Path, min_job_age: int = 300, slurmd_timeout: int = 6) -> None:
        self.base = base
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "run", "dev", "log"):
            (base / name).mkdir(parents=True)
        key = base / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        host = socket.gethostname()
        self.ports = _free_ports(["ctld", *NODES])
        conf = CONF.format(
            host=host,
            base=base,
            ports=self.ports,
            slurmd_timeout=slurmd_timeout,
            min_job_age=min_job_age,
        )
        gres = ""
        device = 0
        for node, gpus in NODES.items():
            claim = (
                f"NodeName={node} NodeAddr=127.0.0.1 NodeHostname={host} Port={self.ports[node]}"
            )
            conf += f"{claim} CPUs=8 RealMemory=2000000" + (
                f" Gres=gpu:h200:{gpus}\n" if gpus else "\n"
            )
            (base / "run" / f"spool-{node}").mkdir()
            for _ in range(gpus):
                path = base / "dev" / f"nvidia{device}"
                # Slurm sets CUDA_VISIBLE_DEVICES for character devices alone.
                os.mknod(path, 0o20666, os.makedev(195, device))
                gres += f"NodeName={node} Name=gpu Type=h200 File={path}\n"
                device += 1
        self.conf = base / "slurm.conf"
        self.conf.write_text(conf)
        (base / "gres.conf").write_text(gres)
        self.env = {**os.environ, "SLURM_CONF": str(self.conf)}
        self.env["PATH"] += ":/usr/sbin"

    def __enter__(self) -> "Cluster":
        try:
            run = self.base / "run"
            self._daemon(
                "munged",
                "munged",
                "--foreground",
                "--force",
                "--num-threads=2",
                f"--key-file={self.base}/munge.key",
                f"--socket={run}/munge.sock",
                f"--pid-file={run}/munged.pid",
                f"--seed-file={run}/munged.seed",
                f"--log-file={self.base}/log/munged.own",
            )
            self._until(lambda: (run / "munge.sock").exists(), "munged made no socket")
            self._daemon("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
            for node in NODES:
                self.start_node(node)
            self._until(
                lambda: self.call("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(NODES),
                "the nodes did not come up",
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self.daemons:
            self.cancel_all()
        for name in sorted(self.daemons, key=["munged", "slurmctld"].__contains__):
            if name not in ("munged", "slurmctld"):
                self._stop(name)
        for name in ("slurmctld", "munged"):
            if name in self.daemons:
                self._stop(name)

    def _daemon(self, name: str, *command: str) -> None:
        with (self.base / "log" / name).open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.env,
                preexec_fn=_die_with_parent,
            )

    def _stop(self, name: str, sig: int = signal.SIGTERM) -> None:
        daemon = self.daemons.pop(name)
        daemon.send_signal(sig)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _until(self, met, otherwise: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not met():
            if time.monotonic() > end:
                logs = "".join(
                    f"--- {path.name}\n" + path.read_text(errors="replace")[-1500:]
                    for path in sorted((self.base / "log").iterdir())
                )
                raise RuntimeError(f"{otherwise} within {seconds} s\n{logs}")
            time.sleep(0.1)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node that is not running."""
        self._daemon(node, "slurmd", "-D", "-N", node, "-f", str(self.conf))

    def kill_node(self, node: str) -> None:
        """kill -9 of the node's slurmd; its jobs live on, as on a node that lost its network."""
        self._stop(node, signal.SIGKILL)

    def stop_controller(self) -> None:
        """Stop slurmctld: no Slurm command answers until `start_controller`."""
        self._stop("slurmctld")

    def start_controller(self) -> None:
        """Start slurmctld again with the state that it saved."""
        self._daemon("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        self._until(lambda: self.call("scontrol", "ping").count("is UP") == 1, "slurmctld is down")

    def call(self, *command: str) -> str:
        """Standard output of a Slurm command; empty when it failed."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=30)
        return done.stdout if done.returncode == 0 else ""

    def jobs(self, states: str = "all") -> list[dict[str, str]]:
        """Every job that squeue knows, with the fields id, state, name, node, tres and comment."""
        fields = ("id", "state", "name", "node", "gres", "comment", "reason")
        lines = self.call("squeue", "-h", "-t", states, "-o", "%i|%T|%j|%N|%b|%k|%r").splitlines()
        return [dict(zip(fields, line.split("|"), strict=True)) for line in lines]

    def cancel_all(self) -> None:
        """Cancel every job and wait until none runs."""
        self.call("scancel", "--user=root")
        end = time.monotonic() + 15
        while self.call("squeue", "-h").strip() and time.monotonic() < end:
            time.sleep(0.2)

    def idle(self, nodes: Mapping[str, int] = NODES) -> None:
        """Bring every node back to idle: what one test broke must not meet the next."""
        self.cancel_all()
        for node in nodes:
            if node not in self.daemons:
                self.start_node(node)
        self._until(
            lambda: self.call("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(nodes),
            "the nodes did not come back",
        )
