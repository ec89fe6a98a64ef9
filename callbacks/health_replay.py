"""The batch at which a run went wrong, on disk, and back in a debugger."""

from __future__ import annotations

import os
import pickle
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lit_ssl import SSLModule
from lit_ssl.random import resolve_seed
from lit_ssl.rebuild import saved_method
from lit_ssl.views import Batch

__all__ = ["load_replay", "rebuilt", "save_replay"]


def rebuilt(trainer: Trainer, module: LightningModule, batch: Batch) -> Batch:
    """``batch`` with its views, which are made anew if they were not kept: they follow from its keys."""
    if "views" in batch:
        return batch
    data: Any = getattr(trainer, "datamodule", None)
    maker: Any = data if data is not None and is_overridden("on_after_batch_transfer", data) else module
    return maker.on_after_batch_transfer(dict(batch), 0)


def save_replay(path: Path, trainer: Trainer, module: Any, batch: Batch, found: Mapping[str, Any]) -> None:
    """Writes what :func:`load_replay` reads: aside, then renamed, so that a file of that name is always whole.

    Args:
        path: of the file.
        trainer, module: of the run, with the weights of before the step.
        batch: with its views.
        found: plain values that say what was found, stored beside.

    Raises:
        OSError, RuntimeError: it cannot be written.
    """
    checkpoint: dict[str, Any] = {"hyper_parameters": dict(getattr(module, "hparams", {}))}
    module.on_save_checkpoint(checkpoint)
    arguments = checkpoint["hyper_parameters"]
    arguments |= {"seed": resolve_seed(getattr(module, "seed", None)), "compile": False}
    record = {
        **found,
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "seed": arguments["seed"],
        "precision": str(trainer.precision),
        "batch": _plain(batch),
        "class_path": checkpoint.get("class_path"),
        "given": checkpoint.get("given", {}),
        "hyper_parameters": _plain(arguments),
        "state_dict": _plain(module.state_dict()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        torch.save(record, aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def load_replay(path: str | Path, module: SSLModule | None = None) -> tuple[SSLModule, Batch]:
    """The method as it stood before the step that went wrong, in training mode on the CPU, and that step's batch.

    ::

        module, batch = load_replay("runs/simclr-quickstart/version_0/nonfinite-step12.pt")
        with torch.autograd.detect_anomaly():
            module.loss(batch)["loss"].backward()

    The draws of the step are those of the run: keys, seed and ``global_step`` are restored. Under ``16-mixed`` and
    ``bf16-mixed`` put ``torch.autocast`` around the loss. A run on several processes leaves a file for each; the loss
    is then of that process's rows alone.

    Args:
        path: a file that :class:`~lit_ssl.callbacks.HealthGuard` saved. It is read with ``weights_only=True``, and no
            class that it names is imported: a method of your own is passed, or its module imported before.
        module: the method, where the file cannot hold it (its backbone was given as a module); its weights become
            those of the file.

    Raises:
        ValueError: the file is none of these, or the method cannot be rebuilt from it alone.
    """
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, LookupError, EOFError):
        record = None
    if not isinstance(record, dict) or not {"batch", "state_dict", "class_path"} <= record.keys():
        raise ValueError(f"{path} is not a batch that HealthGuard saved")
    try:
        saved = saved_method(record, str(path))
        if module is None:
            module = saved.build(SSLModule)
        module.spec = module.spec or saved.spec
        module.configure_model()
        module.to(dtype=next(value.dtype for value in record["state_dict"].values() if value.is_floating_point()))
        module.load_state_dict(record["state_dict"])
        step = int(record["step"])
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} does not fit {record['class_path']} alone; pass the method as it was built in the run, "
            f"load_replay(path, module) ({textwrap.shorten(reason, 400, placeholder=' …')})"
        ) from error
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"global_step": step})  # without a trainer it is 0
    return module.train(), record["batch"]


def _plain(value: Any) -> Any:
    """``value`` on the host, without what would need code to load."""
    if isinstance(value, Tensor):
        value = value.detach()
        return (value.full_tensor() if hasattr(value, "full_tensor") else value).cpu()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)
