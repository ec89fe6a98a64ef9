"""Runs the speed benchmarks one after another and writes what they print into benchmarks/README.md (``make bench``).

    python benchmarks/report.py
    python benchmarks/report.py --only views startup
    python benchmarks/report.py --root DIR --only time_to_accuracy
    python benchmarks/report.py --only gpu_step

Each section is the script's own docstring and its output; a section that is not run is kept as it is. Time to accuracy
needs Fashion-MNIST, which ``--root`` holds as torchvision lays it out; without, it is left out. The step on a GPU,
which another machine may have, runs only where ``--only`` names it.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
README = HERE / "README.md"
SCRIPTS: dict[str, tuple[str, list[str]]] = {
    "views": ("Views", ["--rounds", "15"]),
    "image_folder": ("From files", []),
    "loader": ("In memory", ["--rounds", "2"]),
    "train_step": ("A training step", []),
    "gpu_step": ("A training step on a GPU", []),
    "growth": ("Growth", ["--figure", "docs/growth.png"]),
    "startup": ("Start-up", []),
    "time_to_accuracy": ("Time to accuracy", ["--clock", "cpu", "--threads", "1", "--jobs", "2"]),
}
NEEDS_ROOT = {"time_to_accuracy"}
NEEDS_GPU = {"gpu_step"}
PEERS_LOG = re.compile(r"\d\d:\d\d:\d\d \| ")  # stable-pretraining tells of the callbacks that it adds to any trainer
HEAD = """# Benchmarks

Written by `make bench`: every table is the output of the command above it, with the machine it ran on. Libraries take
turns within one run, so that ratios hold where absolute times drift; peers are installed by
`pip install -r benchmarks/requirements.txt`. What pretraining is worth, what a kill leaves behind and what a loss needs
are scripts of this folder, too, quoted where the [front page](../README.md) and [docs](../docs) speak of them.
"""


def section(name: str, title: str, options: list[str], folder: Path, root: str | None) -> str:
    """Runs a script; its docstring, command and output, as Markdown."""
    script = HERE / f"{name}.py"
    data = ["--root", "DIR"] if name in NEEDS_ROOT else []
    command = ["python", f"benchmarks/{name}.py", *options, *data]
    begin = time.perf_counter()
    figures = folder / f"{name}.json"
    done = subprocess.run(
        [sys.executable, *(root if part == "DIR" and root else part for part in command[1:]), "--json", str(figures)],
        cwd=HERE.parent,
        text=True,
        stdout=subprocess.PIPE,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}; {README} is as it was")
    json.loads(figures.read_text())
    minutes = (time.perf_counter() - begin) / 60
    doc = ast.get_docstring(ast.parse(script.read_text())) or ""
    about = "\n\n".join(part for part in doc.split("\n\n") if not part.startswith("    ")).replace("``", "`")
    picture = "\n\n![Growth](../docs/growth.png)" if name == "growth" else ""
    today = datetime.date.today().isoformat()
    printed = "\n".join(line for line in done.stdout.splitlines() if not PEERS_LOG.match(line))
    return (
        f"## {title}\n\n{about}\n\n```bash\n{' '.join(command)}\n```\n\n"
        f"{today}, {minutes:.0f} min. {printed.strip()}{picture}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), help="default: all that have their data")
    parser.add_argument("--root", type=os.path.abspath, help="folder that holds FashionMNIST/raw")
    a = parser.parse_args()
    only = a.only or [name for name in SCRIPTS if name not in NEEDS_GPU and (a.root or name not in NEEDS_ROOT)]
    if not a.root and NEEDS_ROOT.intersection(only):
        parser.error(f"{', '.join(sorted(NEEDS_ROOT.intersection(only)))} needs --root")
    old = README.read_text() if README.exists() else ""
    kept = {part.partition("\n")[0]: f"## {part}" for part in re.split(r"^## ", old, flags=re.MULTILINE)[1:]}
    with tempfile.TemporaryDirectory() as folder:
        for name in only:
            title, options = SCRIPTS[name]
            print(f"{name} …", flush=True)
            kept[title] = section(name, title, options, Path(folder), a.root)
    titles = [title for title, _ in SCRIPTS.values() if title in kept]
    README.write_text("\n".join([HEAD, *(kept[title].rstrip() + "\n" for title in titles)]))


if __name__ == "__main__":
    main()
