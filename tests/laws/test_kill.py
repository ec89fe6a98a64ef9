"""Law 2 with real kills: SIGKILL at random instants, through the benchmark that the README quotes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kill.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--data.num_workers=2", "--trainer.accumulate_grad_batches=3", "--trainer.val_check_interval=7"],
    ],
    ids=["plain", "workers_accumulation_validation"],
)
def test_killed_runs_end_as_the_one_that_was_not(flags, tmp_path):
    command = [sys.executable, BENCHMARK, "--kills", "2", "--json", tmp_path / "counts.json", "--", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    counts = json.loads((tmp_path / "counts.json").read_text())
    expected = {"kills": 2, "identical": 2, "unreadable": 0, "doubled_rows": 0, "lost_rows": 0}
    assert {name: counts[name] for name in expected} == expected, done.stdout
