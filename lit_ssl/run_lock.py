"""One process at a time writes into the folder of a run."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from lit_ssl.checkpoint import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["RunLock"]


class RunLock:
    """A lock of the operating system on ``.lock`` in a folder, which ends with the process, however that ends.

    It belongs to the process that took it, not to those that it starts: workers that outlive it do not hold it. Where a
    file system has no locks, it does nothing.

    Args:
        folder: that exists.

    Raises:
        CheckpointError: another process holds it; the message says which, on which host.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._file: Any = None
        while fcntl is not None and self._file is None:
            try:
                file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - held as long as the run
            except OSError:
                return  # what cannot be written to is told where something is written
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                holder = self._holder(file)
                file.close()
                raise CheckpointError(
                    f"{folder} is in use by {holder}: wait for it, or stop it, or let this run write elsewhere "
                    "(--trainer.default_root_dir, --checkpoint.dirpath)"
                ) from None
            except OSError:
                file.close()
                return
            if not self._is_mine(file):  # another run has ended in between, and taken its file away
                file.close()
                continue
            file.truncate(0)
            json.dump({"host": socket.gethostname(), "process": os.getpid()}, file)
            file.flush()
            self._file = file

    @staticmethod
    def _holder(file: Any) -> str:
        try:
            file.seek(0)
            noted = json.load(file)
            return f"process {int(noted['process'])} on {str(noted['host'])[:64]}"
        except (ValueError, KeyError, TypeError, OSError):
            return "another process"

    def _is_mine(self, file: Any) -> bool:
        try:
            return os.fstat(file.fileno()).st_ino == self.path.stat().st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others in; a second call does nothing."""
        file, self._file = self._file, None
        if file is not None:
            self.path.unlink(missing_ok=True)
            file.close()
