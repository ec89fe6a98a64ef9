"""What decides the numbers of a run: noted in its checkpoints, and compared when a run goes on from one."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_ssl.checkpoint import CheckpointError
from lit_ssl.random import resolve_seed

__all__ = ["allowed_changes", "as_names", "compare", "fingerprint", "warn_of_lost_states"]

# Arguments of a method that leave the numbers as they are, but for rounding, or that count only where a run begins.
_FREE = {"compile", "gradient_checkpointing", "channels_last", "chunk_size"}
_FREE |= {"pretrained", "init_from", "text_pretrained"}
_PACKAGES = ("torch", "torchvision", "timm", "lightning")


def fingerprint(trainer: Any, module: Any) -> dict[str, Any]:
    """Plain values by the names that the user knows them by.

    Not among them, because they may change: the length of the run, workers, paths, logging, how often is validated and
    saved, and on how many devices a step's batch is spread.
    """
    data: Any = getattr(trainer, "datamodule", None)
    source = getattr(trainer.fit_loop._data_source, "instance", None) if data is None else None
    size = getattr(data if data is not None else source, "batch_size", None)
    images = getattr(data, "train_set", None) if data is not None else getattr(source, "dataset", None)
    found: dict[str, Any] = {"method": type(module).__name__, **getattr(module, "_not_plain", {})}
    found |= {name: value for name, value in module.hparams.items() if name not in _FREE}
    found |= {
        "seed": resolve_seed(getattr(module, "seed", None)),
        "spec": module.spec.to_dict() if module.spec is not None else None,
        "batch_size": size,
        "step_batch": size * trainer.world_size if isinstance(size, int) else None,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "limit_train_batches": trainer.limit_train_batches,
        "overfit_batches": trainer.overfit_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": str(trainer.gradient_clip_algorithm or "norm"),
        "precision": str(trainer.precision),
        "data": type(data if data is not None else source).__name__,
        "images": _identity(images),
        **(data.fingerprint() if callable(getattr(data, "fingerprint", None)) else {}),
        **{name: metadata.version(name) for name in _PACKAGES},
        "numba": importlib.util.find_spec("numba") is not None,
        "lit_ssl": metadata.version("lit-ssl"),
    }
    return found


def _identity(dataset: Any) -> str | None:
    """The number of samples, and what a data set says of itself."""
    if callable(own := getattr(dataset, "fingerprint", None)):
        return own()
    try:
        return f"{len(dataset):,}"
    except TypeError:
        return None


def allowed_changes(trainer: Any) -> list[str]:
    """The keys that the run's checkpoint callback lets differ."""
    return [key for callback in trainer.callbacks for key in getattr(callback, "allow", ())]


def compare(trainer: Any, now: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the user lets differ from the run that saved a checkpoint, as the record of it says.

    Raises:
        CheckpointError: something else differs; the message names it with both values.
    """
    before = checkpoint.get("fingerprint")
    if not isinstance(before, Mapping):
        rank_zero_info("the checkpoint does not say what its run was made of: nothing could be compared with this one")
        return []
    differ = {
        key: (before[key], value)
        for key, value in now.items()
        if key in before and key not in ("batch_size", "step_batch", "lit_ssl") and repr(before[key]) != repr(value)
    }
    if before.get("step_batch") != now["step_batch"]:
        differ["batch_size"] = (_batch(before), _batch(now))
    if before.get("lit_ssl") != now["lit_ssl"]:
        rank_zero_warn(f"the checkpoint was written by lit_ssl {before.get('lit_ssl')}, this is {now['lit_ssl']}")
    allow = allowed_changes(trainer)
    if refused := {key: values for key, values in differ.items() if key not in allow}:
        told = "; ".join(f"{key} was {_short(old)}, now it is {_short(new)}" for key, (old, new) in refused.items())
        raise CheckpointError(
            f"this is not the run of the checkpoint: {told}. Give what it had, or start a new run without --ckpt_path, "
            f"or accept the change knowingly with --resume.allow {','.join(refused)} (allow=[...] of ExactCheckpoint)"
        )
    step = int(checkpoint.get("global_step", 0))
    changes = [{"step": step, "key": key, "was": old, "is": new} for key, (old, new) in differ.items()]
    for change in changes:
        rank_zero_info(f"from step {step} on {change['key']} is {_short(change['is'])}; it was {_short(change['was'])}")
    return changes


def warn_of_lost_states(trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Warn of callbacks that keep a state, of which the checkpoint has none: they begin anew."""
    states = checkpoint.get("callbacks") or {}
    kept = [callback for callback in trainer.callbacks if is_overridden("state_dict", callback, Callback)]
    saved = {str(key).partition("{")[0] for key in states}  # a key may tell settings behind the class
    lost = [type(callback).__name__ for callback in kept if type(callback).__qualname__ not in saved]
    if lost:
        rank_zero_warn(f"the checkpoint has no state of {', '.join(lost)}: what they know of the run before is gone")


def _batch(values: Mapping[str, Any]) -> str:
    size, whole = values.get("batch_size"), values.get("step_batch")
    if not isinstance(size, int) or not isinstance(whole, int):
        return str(size)
    return f"{size}" if size == whole else f"{size} on each of {whole // size} processes"


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) <= 100 else f"{text[:100]}…"


def as_names(value: str | Sequence[str]) -> list[str]:
    """One or several keys, also behind one another with commas."""
    parts = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(f"allow must be names of arguments, got {value!r}")
    return [name.strip() for part in parts for name in part.split(",") if name.strip()]
