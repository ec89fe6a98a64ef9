"""What measurements of memory share: a process of their own, and its peak."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["apart", "forget_peak", "peak_memory"]


def apart(measure: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What ``measure`` returns in a process of its own, forked from this one, which must have no threads.

    Raises:
        RuntimeError: it failed; its traceback is on stderr.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            os.write(writer, json.dumps(measure(*arguments)).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"{measure.__name__}{arguments} ended with {os.waitstatus_to_exitcode(status)}")
    return json.loads(answer)


def forget_peak() -> int:
    """The peak counts from here. Returns the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """The most bytes that were resident at once since :func:`forget_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    """Bytes, from this process's own record."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
