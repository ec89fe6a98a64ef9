"""What the user of ``lit-ssl`` is told: one line for a mistake, and nothing on which no user can act."""

from __future__ import annotations

import difflib
import inspect
import linecache
import logging
import os
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

import lightning.pytorch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import lit_ssl.callbacks
import lit_ssl.datamodules
import lit_ssl.methods
import lit_ssl.views
from lit_ssl.module import SSLModule
from lit_ssl.printable import printable
from lit_ssl.views import View

__all__ = ["UserError", "cause_of", "choice_of", "is_users", "line_of", "quiet"]

_PACKAGE = [Path(str(module.__file__)).parent for module in (lit_ssl, lit_ssl.datamodules, lit_ssl.callbacks)]
_EXTRAS = {"tensorboard": "tensorboard"}  # module that is missing: extra that brings it

# What the machine refuses: how its message is known, and what to say of it ({0} is the message, {1} its first group).
_RESUME = "; the run resumes with --ckpt_path last"
_FAILURES = (
    (
        r"killed by signal: Bus error|(?s:shared memory.*|/torch_.*)(?:No space left|Cannot allocate|temporarily unav)",
        "/dev/shm, through which data-loading processes hand over batches, is full ({shm}): enlarge it (docker run "
        "--shm-size 8g), or lower --data.num_workers or --data.batch_size; --data.num_workers 0 does without it",
    ),
    (
        r"Too many open files|items of ancdata",
        "too many open files, through which data-loading processes share batches: raise the limit (ulimit -n 65536) or "
        "lower --data.num_workers",
    ),
    (
        r"DataLoader worker \((pid[^)]*\)? ?[\d, ]+)\) (?:is killed by signal: (?:Killed|Terminated)|exited unexp)",
        "a data-loading process ({1}) was killed from outside, most likely because memory ran out (dmesg tells): lower "
        f"--data.num_workers or --data.batch_size{_RESUME}",
    ),
    (
        r"(?:CUDA|HIP|XPU|MPS)\b.{0,20} out of memory",
        "the GPU's memory does not hold this step: lower --data.batch_size (--trainer.accumulate_grad_batches keeps "
        "the global one), or set --trainer.precision bf16-mixed or --model.gradient_checkpointing true",
    ),
    (
        r"can't allocate memory|Cannot allocate memory|\AMemoryError|Unable to allocate",
        f"the machine's memory is full: lower --data.batch_size or --data.num_workers{_RESUME}",
    ),
    (
        r"No space left on device|Disk quota exceeded",
        f"the disk is full ({{0}}): free some space, or write elsewhere with --trainer.default_root_dir{_RESUME}",
    ),
    (
        r"Read-only file system",
        f"the file system is read-only ({{0}}): write elsewhere with --trainer.default_root_dir{_RESUME}",
    ),
    (
        r"Input/output error|Remote I/O error|Stale file handle|endpoint is not connected|No such device|Host is down",
        f"the disk or the network behind it failed ({{0}}): see to it that the data can be read again{_RESUME}",
    ),
    (
        r"(?s:gloo/.*?(Connection (?:reset|closed) by peer|Broken pipe|Timed out)|(ncclRemoteError))",
        f"another process of this run has died or hangs ({{1}}): its own messages say why{_RESUME}",
    ),
)


class UserError(Exception):
    """A mistake in the arguments, the configuration or the data; its message is all that the user needs."""


def is_users(error: BaseException) -> bool:
    """Whether an exception tells of the user's mistake: a missing file, Lightning's refusal of a combination, or what
    this package raised on purpose (here or in a loader's worker); or of a failure of the machine on which they can act.
    Anything else is a failure of the program."""
    if isinstance(error, (MisconfigurationException, FileNotFoundError, NotADirectoryError, PermissionError)):
        return True
    if type(error).__module__.startswith("lit_ssl."):
        return True
    if _failure(error) is not None:
        return True
    if not isinstance(error, (ValueError, TypeError, RuntimeError, LookupError, ImportError)):
        return False
    if str(error).startswith("Error(s) in loading state_dict"):  # a checkpoint and a model that differ
        return True
    if isinstance(error, ValueError) and _raised_by_lightning(error):
        return True
    frames = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    frames += [(file, int(line)) for file, line in re.findall(r'File "(.+?)", line (\d+)', str(error))]
    if not frames:
        return False
    file, line = frames[-1]
    on_purpose = linecache.getline(file, line).lstrip().startswith("raise ")
    return on_purpose and any(Path(file).is_relative_to(folder) for folder in _PACKAGE)


def _raised_by_lightning(error: BaseException) -> bool:
    """Whether Lightning refused on purpose: flags that it cannot combine."""
    *_, (frame, line) = walk_tb(error.__traceback__)
    file = frame.f_code.co_filename
    inside = Path(file).is_relative_to(Path(str(lightning.pytorch.__file__)).parent)
    return inside and linecache.getline(file, line).lstrip().startswith("raise ")


def cause_of(message: str) -> str:
    """The parser's message, which tells all that it tried, as ``key: what is wrong with it``."""
    if not re.search("Parser key|Does not validate against any", message):
        return message
    keys, owner, problem = [], "", ""
    for line in message.splitlines():
        line = line.strip().removeprefix("- ")
        if match := re.match(r'Parser key "([\w.]+)":\s*', line):
            keys.append(match[1])
            line = line[match.end() :]
        if match := re.match(r"Problem with given class_path '([\w.]+)':\s*", line):
            owner = match[1]
            line = line[match.end() :]
        if not problem and not line.startswith(_ALTERNATIVES):
            problem = line
        elif line.startswith("Given value: ") and problem.startswith("Expected a <class") and "Got" not in problem:
            problem += f". Got value: {line.partition(': ')[2]}"
    literals = re.findall(r"Expected a typing\.Literal\[(.*?)\]", message)
    if len(literals) > 1:  # a union of several
        given = re.search(r"Given value: (.*)", message)
        choices = dict.fromkeys(choice.strip("' ") for literal in literals for choice in literal.split(","))
        problem = f"Expected one of {', '.join(choices)}. Got value: {given[1] if given else ''}"
    elif problem.startswith("Expected a dot import path string: "):
        problem = f"no class {problem.rpartition(': ')[2]!r}; {choice_of(keys[-1] if keys else '')}"
    elif problem.startswith("Option "):
        problem = f"{problem} by {owner.rpartition('.')[2]}{_meant(problem, owner)}"
    problem = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", problem))
    return ": ".join(part for part in (".".join(keys), problem) if part)


def _meant(problem: str, class_path: str) -> str:
    """The argument of a class that is closest to the one that a message quotes."""
    home, _, name = class_path.rpartition(".")
    option = problem.split("'")[1].partition(".")[0]
    known: list[str] = []
    for kind in getattr(getattr(sys.modules.get(home), name, None), "__mro__", ()):
        parameters = inspect.signature(kind.__init__).parameters
        known += [argument for argument in parameters if argument not in ("self", "args", "kwargs")]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    if option in known:
        return (
            f": the __init__ of {name} hands its **kwargs on in a way that only Python can follow; write "
            'kwargs.setdefault("NAME", VALUE) for each default of its own, then super().__init__(**kwargs)'
        )
    close = difflib.get_close_matches(option, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def choice_of(key: str) -> str:
    """The classes that ``key`` takes by their short name."""
    kinds = {"model": (SSLModule, lit_ssl.methods), "data": (LightningDataModule, lit_ssl.datamodules)}
    kind, folder = kinds.get(key, (View, lit_ssl.views) if key == "views" else (None, None))
    known = [
        name for name in getattr(folder, "__all__", ()) if kind in getattr(getattr(folder, name), "__mro__", ())[1:]
    ]
    return f"known are {', '.join(known)}, and full import paths" if known else "give a class by its full import path"


def _failure(error: BaseException) -> str | None:
    """What to do where the machine, and not the program, failed: memory, disk, or a process that was killed."""
    if not isinstance(error, (OSError, RuntimeError, MemoryError)) or type(error).__module__.startswith("lit_ssl."):
        return None
    text = f"{_bare(str(error))}" or type(error).__name__
    if text.startswith("DataLoader worker") and error.__cause__ is not None:  # which names the signal
        text = f"{error.__cause__} {text}"
    for pattern, advice in _FAILURES:
        if match := re.search(pattern, text):
            told = next(filter(None, match.groups()), "")
            return advice.replace("{0}", text).replace("{1}", told).replace("{shm}", _shared_memory())
    return None


def _shared_memory() -> str:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return "its size is unknown"
    return f"{usage.total >> 20} MB in all, {usage.free >> 20} MB free now"


def _bare(text: str) -> str:
    """The message of an error, without the traceback of the worker that it comes from."""
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.rpartition("\n  File ")[2].partition("\n")[2]
        text = re.sub(r"\A(?:\s+.*\n)+", "", text).partition(": ")[2]
    return text


def line_of(error: BaseException) -> str:
    """One line that says what went wrong, without the chain or the worker's traceback around it."""
    if (failure := _failure(error)) is not None:
        return " ".join(failure.split())
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if text.startswith("Error(s) in loading state_dict"):
        text = (
            f"the checkpoint does not fit the model: {textwrap.shorten(text.partition(':')[2], 300, placeholder=' …')}"
        )
    text = _bare(text)
    for module, extra in _EXTRAS.items():
        if re.search(rf"No module named '{module}|Neither `{module}`", text):
            return f"{module} is not installed: pip install 'lit-ssl[{extra}]'"
    return printable(" ".join(cause_of(text).split())) or type(error).__name__


_ALTERNATIVES = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
)
_NOISE = re.compile(
    "|".join(
        (
            r"Tip:",  # advertisements
            r"Seed set to",  # config.yaml has it
            r"[GT]PU available: (False|True.*used: True)",
            r"Loading `train_dataloader` to estimate",
            r"The dirpath has changed from",  # a resumed run has a folder of its own
            r"is set, but there is no last checkpoint",  # ExactCheckpoint says what happens instead
            r"LeafSpec.* is deprecated",  # of Lightning itself
            r"does not have many workers",  # what is in memory needs none
            r"Experiment logs directory .* exists and is not empty",  # config.yaml of this very run
            r"Checkpoint directory .* exists and is not empty",
            r"Be aware that when using `ckpt_path`",  # validate and test save nothing
            r"is smaller than the logging interval",  # metrics of epochs are logged all the same
            r"You have overridden `(on_|transfer_)\w*batch\w*` in both",  # the data module's are meant
            r"`Trainer\(limit_\w+=\S+\)` was configured",  # as the user said
            r"Trainer already configured with model summary",
        )
    )
)


def _as_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning without the line of source that gave it, of which the user of a command knows nothing."""
    return f"lit-ssl: warning: {printable(' '.join(str(message).split()))}\n"


def _wanted(record: logging.LogRecord) -> bool:
    return not _NOISE.search(record.getMessage())


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notices on which no user of this command can act."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    handlers = [handler for logger in loggers for handler in logger.handlers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=rf"(?s).*({_NOISE.pattern})")
        if "SLURM_JOB_ID" not in os.environ:  # inside of a job it is advice, elsewhere it only says that Slurm is there
            warnings.filterwarnings("ignore", message="The `srun` command is available")
        for handler in handlers:
            handler.addFilter(_wanted)
        as_before, warnings.formatwarning = warnings.formatwarning, _as_one_line
        try:
            yield
        finally:
            warnings.formatwarning = as_before
            for handler in handlers:
                handler.removeFilter(_wanted)
