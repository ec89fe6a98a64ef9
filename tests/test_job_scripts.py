"""The job scripts that come with the package; what they do is tried in tests/laws."""

import subprocess

import pytest

from lit_ssl import configs


@pytest.mark.parametrize("name", ["slurm.sbatch", "torchrun.sh"])
def test_scripts_are_shipped_and_are_bash(name):
    path = configs.script(name)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", path], check=True)


def test_slurm_reads_all_its_lines():
    """It stops at the first line that is a command."""
    before, _, commands = configs.script("slurm.sbatch").read_text().partition("\nset -")
    assert all(line.startswith("#") or not line for line in before.splitlines())
    assert "#SBATCH --requeue" in before
    assert "#SBATCH" not in commands


def test_an_unknown_script_is_told():
    with pytest.raises(FileNotFoundError, match=r"no job script 'pbs.sh'; shipped are slurm.sbatch, torchrun.sh"):
        configs.script("pbs.sh")
