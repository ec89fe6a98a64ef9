import subprocess

import pytest
from jobs import RUN, ending, environment, rows

from lit_ssl import configs


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """What the run of ``jobs`` on two processes ends with, and the rows of its metrics."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    command = ["bash", configs.script("torchrun.sh"), *RUN]
    done = subprocess.run(
        command, cwd=folder, env=environment(PROCESSES="2"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return ending(folder), rows(folder)
