"""Law 2 under torchrun: a rank that dies takes the others with it, and all go on from the last whole checkpoint."""

import os
import re
import signal
import subprocess

import pytest
from jobs import EPOCH, RUN, ending, environment, rows, step, wait_for
from states import same

from lit_ssl import configs


@pytest.mark.slow
def test_a_run_of_which_a_rank_is_killed_ends_as_the_one_that_was_not(uninterrupted, tmp_path):
    command = ["bash", configs.script("torchrun.sh"), *RUN, "--trainer.default_root_dir", "runs"]
    command += ["--checkpoint.every_n_train_steps", "7"]
    output, runs = tmp_path / "output.txt", tmp_path / "runs"
    with open(output, "w") as file:
        surroundings = environment(PROCESSES="2", RESTARTS="1")
        run = subprocess.Popen(command, cwd=tmp_path, env=surroundings, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: step(runs) >= EPOCH + EPOCH // 4, run)
        survivor, killed = (int((runs / f"rank{rank}.pid").read_text()) for rank in (0, 1))
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: not os.path.exists(f"/proc/{survivor}"), seconds=60)
        assert run.wait(timeout=300) == 0
    finally:
        run.kill()
        told = output.read_text()
        print(told[-6000:])
    assert re.search(r"^lit-ssl: error: another process of this run has died or hangs \(.* peer\)", told, re.MULTILINE)
    assert "Traceback" not in told.partition("Restoring states")[0]
    assert re.search(r"Restoring states from the checkpoint path at .*/last\.ckpt", told)
    assert same(ending(runs), uninterrupted[0])
    assert rows(runs) == uninterrupted[1]
