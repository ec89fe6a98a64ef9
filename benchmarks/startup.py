"""How long the command and the package take to start, against importing the frameworks they stand on.

    python benchmarks/startup.py --json startup.json

Each start is a fresh interpreter, timed from its launch to its end. Beside each case stands ``python -c "import torch,
lightning"``, which every program on Lightning pays. All take turns in every round; a first round, which is not counted,
writes the bytecode caches and brings the files into memory. The cases:

- ``help_s``: ``lit-ssl --help``, which should take less than half as long as the frameworks.
- ``import_s``: ``import lit_ssl``, at most a tenth longer than the frameworks. It loads a name when it is first used.
- ``import_everything_s``: every public name of ``lit_ssl``, all data modules and all callbacks; no bar. What it takes
  over the frameworks is mostly timm.
- ``fit_help_s``: ``lit-ssl fit --help``, which has to load all of these and build the parser; no bar.

Also shown, and an error if it fails: the first two leave both frameworks out, and the third loads both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

BASELINE = "torch_and_lightning"
STARTS = {
    BASELINE: ["-c", "import torch, lightning"],
    "help_s": ["-m", "lit_ssl", "--help"],
    "import_s": ["-c", "import lit_ssl"],
    "import_everything_s": ["-c", "from lit_ssl import *; import lit_ssl.datamodules, lit_ssl.callbacks"],
    "fit_help_s": ["-m", "lit_ssl", "fit", "--help"],
}
BARS = {"help_s": 0.5, "import_s": 1.1}  # times the baseline
LOADS = {"help_s": False, "import_s": False, "import_everything_s": True}  # torch and lightning, or neither


def environment() -> dict[str, str]:
    """This process's own, but for what would keep bytecode from being cached."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def start(arguments: list[str], folder: str) -> float:
    """Seconds from launch to end of one interpreter."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def loads(case: str, folder: str) -> bool:
    """Whether a case imports torch and lightning.

    Raises:
        RuntimeError: it imports one of the two.
    """
    first, code, *rest = STARTS[case]
    if first == "-m":
        code = f"from {code}.__main__ import main; main({rest})"
    code += "; import sys; print(*sorted({'torch', 'lightning'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, check=True
    )
    found = done.stderr.splitlines()[-1].split()
    if len(found) == 1:
        raise RuntimeError(f"{case} imports {found[0]}, but not the other framework")
    return bool(found)


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    cpu = names[0].split(":", 1)[1].strip() if names else platform.machine()
    return f"{cpu}; Python {platform.python_version()}, " + ", ".join(
        f"{name} {version(name)}" for name in ("torch", "lightning", "timm", "lit-ssl")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write seconds of each case, and of the frameworks beside it, here")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is started (default: 7)")
    parser.add_argument("--minutes", type=float, default=2, help="after these, no round beyond the third (default: 2)")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    print(f"{machine()}", flush=True)

    seconds: dict[str, list[float]] = {case: [] for case in STARTS}
    with tempfile.TemporaryDirectory() as folder:
        for command in STARTS.values():
            start(command, folder)
        end = time.monotonic() + 60 * arguments.minutes
        for number in range(arguments.rounds):
            if number >= 3 and time.monotonic() > end:
                break
            for case, command in STARTS.items():
                seconds[case].append(start(command, folder))
        for case, expected in LOADS.items():
            if loads(case, folder) != expected:
                raise RuntimeError(f"{case} {'loads no framework' if expected else 'loads the frameworks'}")

    rounds = len(seconds[BASELINE])
    print(f"median of {rounds} rounds, [least, greatest]; ratios are taken within a round\n")
    print("| start | seconds | times torch and lightning | bar |\n|---|---|---|---|")
    for case, values in seconds.items():
        ratios = [mine / frameworks for mine, frameworks in zip(values, seconds[BASELINE], strict=True)]
        name = "`python " + " ".join(f'"{word}"' if " " in word else word for word in STARTS[case]) + "`"
        taken = f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
        ratio = f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"
        print(f"| {name} | {taken} | {ratio} | {BARS.get(case, '')} |")
    if arguments.json:
        baseline = statistics.median(seconds.pop(BASELINE))
        cases = {case: {"lit_ssl": statistics.median(v), BASELINE: baseline} for case, v in seconds.items()}
        arguments.json.write_text(json.dumps(cases, indent=2) + "\n")


if __name__ == "__main__":
    main()
