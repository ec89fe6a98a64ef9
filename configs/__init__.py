"""The configuration layers that come with the package, found by name: ``quickstart``, ``method/simclr``, ...

Importing this imports neither torch nor lightning, so the command line can name a misspelt layer at once.
"""

from __future__ import annotations

import difflib
from pathlib import Path

__all__ = ["find", "names", "script"]

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of all shipped layers, in order."""
    return sorted(path.relative_to(_FOLDER).with_suffix("").as_posix() for path in _FOLDER.rglob("*.yaml"))


def find(layer: str) -> Path:
    """The file of a layer.

    Args:
        layer: path of a file, which goes first, or the name of a shipped layer, with or without ``.yaml``.

    Raises:
        FileNotFoundError: it is neither; the message lists the shipped ones and names the closest.
    """
    if (path := Path(layer).expanduser()).is_file():
        return path
    shipped = names()
    if (name := layer.removesuffix(".yaml")) in shipped:
        return _FOLDER / f"{name}.yaml"
    close = difflib.get_close_matches(name, shipped, n=1) or [s for s in shipped if s.rpartition("/")[2] == name]
    hint = f"did you mean {close[0]}? " if close else ""
    raise FileNotFoundError(f"no layer {layer!r}; {hint}A layer is a file or one of {', '.join(shipped)}")


def script(name: str) -> Path:
    """The file of a shipped job script: ``slurm.sbatch`` or ``torchrun.sh``.

    Raises:
        FileNotFoundError: there is none of that name.
    """
    shipped = {path.name: path for path in (_FOLDER / "cluster").iterdir()}
    if name not in shipped:
        raise FileNotFoundError(f"no job script {name!r}; shipped are {', '.join(sorted(shipped))}")
    return shipped[name]
