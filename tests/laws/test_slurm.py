"""Law 2 under a real Slurm: a job that the controller requeues in mid-epoch ends as the run that was never stopped."""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from jobs import EPOCH, RUN, ending, environment, rows, step, wait_for
from states import same

from lit_ssl import configs

NODE = Path(__file__).with_name("slurm_node.sh")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Runs a program of Slurm on a cluster of one node, and returns what it printed."""
    surroundings = environment()
    missing = [name for name in PROGRAMS if shutil.which(name, path=surroundings["PATH"]) is None]
    if missing:
        pytest.skip(f"Slurm is not installed (no {', '.join(missing)}): apt-get install slurmctld slurmd slurm-client")
    folder = tmp_path_factory.mktemp("slurm")
    surroundings["SLURM_CONF"] = str(folder / "slurm.conf")

    def run(*command):
        done = subprocess.run([*map(str, command)], env=surroundings, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command[0]}: {done.stderr}"
        return done.stdout.strip()

    def log():
        return "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))

    try:
        run("bash", NODE, "start", folder, *free_ports(2))
        try:
            wait_for(lambda: run("sinfo", "--noheader", "--format=%T") == "idle", seconds=30)
        except (AssertionError, TimeoutError):
            pytest.skip(f"Slurm is installed, but does not start on this machine:\n{log()}")
        yield run
    finally:
        run("bash", NODE, "stop", folder)


@pytest.mark.slow
def test_a_job_requeued_twice_ends_as_the_run_that_was_not(slurm, uninterrupted, tmp_path):
    script = configs.script("slurm.sbatch")
    flags = ["--parsable", "--chdir", tmp_path, "--ntasks-per-node=2", "--cpus-per-task=1", "--time=10"]
    job = slurm("sbatch", *flags, script, *RUN)
    runs, output = tmp_path / "runs" / job, tmp_path / f"slurm-{job}.out"

    def stopped(number):
        """How often the run gave way, as soon as the job waits in the queue."""
        saved = re.findall(r"(SIG\w+): saved step (\d+) in", output.read_text() if output.exists() else "")
        waits = slurm("squeue", "--noheader", "--format=%T", "--jobs", job) == "PENDING"
        return saved if waits and len(saved) == number else None

    def again():  # the controller would let a requeued job wait for two minutes
        if "JobState=PENDING" in slurm("scontrol", "show", "job", job):
            slurm("scontrol", "update", f"jobid={job}", "starttime=now")
        return slurm("squeue", "--noheader", "--format=%T", "--jobs", job) == "RUNNING"

    try:
        wait_for(lambda: step(runs) >= EPOCH // 4)
        slurm("scontrol", "requeue", job)
        wait_for(lambda: stopped(1))
        wait_for(again, every=1)
        wait_for(lambda: step(runs) >= EPOCH + EPOCH // 4)
        slurm("scancel", "--signal=USR1", job)  # as before the time limit; the run requeues the job itself
        saved = wait_for(lambda: stopped(2))
        wait_for(again, every=1)
        wait_for(lambda: "JobState=COMPLETED" in slurm("scontrol", "show", "job", job))
    except TimeoutError as error:
        raise AssertionError(f"{error}\n{output.read_text()[-6000:] if output.exists() else 'no output'}") from error

    assert [name for name, _ in saved] == ["SIGTERM", "SIGUSR1"]
    first, second = (int(number) for _, number in saved)
    assert 0 < first < EPOCH < second < 2 * EPOCH  # in the middle of either epoch
    told = output.read_text()
    assert f"Slurm has put job {job} back into the queue" in told
    assert f"job {job} is back in the queue" in told
    shown = slurm("scontrol", "show", "job", job)
    assert re.search(r"Restarts=2\b", shown), shown
    assert same(ending(runs), uninterrupted[0])
    assert rows(runs) == uninterrupted[1]
    assert os.listdir(tmp_path / "runs") == [job]
