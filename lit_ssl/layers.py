"""What layers of the command's arguments are, beside files: shipped ones by name, and the model of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile

from lit_ssl import configs
from lit_ssl.checkpoint import CheckpointError, load
from lit_ssl.messages import UserError, line_of

__all__ = ["Layer", "with_checkpoint", "with_classes_first"]


class CheckpointLayer(str):
    """A layer that a checkpoint's hyper-parameters make: a configuration string that says where it came from."""

    path: str
    model: dict[str, Any]


class Layer(ActionConfigFile):
    """``--config``: a file, the name of a shipped layer, or a configuration string."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        if isinstance(values, CheckpointLayer):
            _check_same_class(values, cfg.get("model"))
            values = str(values)
        elif not values.lstrip().startswith("{"):
            try:
                values = str(configs.find(values))
            except FileNotFoundError as error:
                raise UserError(str(error)) from None
            _check_file(values)
        super().__call__(parser, cfg, values, option_string)


def _check_file(path: str) -> None:
    """What the parser would say of such a file names neither it nor the place."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" line {place.line + 1}" if place is not None else ""
        raise UserError(f"--config: {path}{where} is no YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"--config: {path} must hold sections such as model, data and trainer, got {kind}")


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags with their values, whether joined by ``=`` or not."""
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        flag, joined, value = arg.partition("=")
        if flag.startswith("-"):
            yield flag, value if joined else following


def with_classes_first(args: Sequence[str]) -> list[str]:
    """The arguments with the classes of model and data in front, so that a layer of arguments may come before them."""
    classes: dict[str, Any] = {}
    for flag, value in _options(args):
        given: Any = {}
        if flag in ("--config", "-c"):
            with suppress(OSError, yaml.YAMLError):  # told when the layer's turn comes
                given = yaml.safe_load(
                    str(value) if value.lstrip().startswith("{") else configs.find(value).read_text()
                )
        elif flag in ("--model", "--data"):
            given = {flag[2:]: {"class_path": value}}
        for key in ("model", "data"):
            section = given.get(key) if isinstance(given, dict) else None
            if isinstance(section, dict) and isinstance(section.get("class_path"), str):
                classes.setdefault(key, {"class_path": section["class_path"]})
    return [*args[:1], "--config", json.dumps(classes), *args[1:]] if classes else list(args)


def with_checkpoint(args: Sequence[str]) -> list[str]:
    """The arguments with the model of ``--ckpt_path FILE`` as a layer: over the others, under ``--model.…`` flags.

    Weights fit the model they were saved from: it need not be given again, and what a layer says of it gives way.
    A flag is deliberate and stays.
    """
    rest: list[str] = []
    flags: list[str] = []
    path, pending = None, iter(args)
    for arg in pending:
        flag, joined, value = arg.partition("=")
        if flag == "--ckpt_path":  # also last, so that the ``ckpt_path: null`` of a saved config.yaml does not undo it
            path = value if joined else next(pending, "")
        elif flag.startswith("--model.") and flag != "--model.help":
            flags += [arg] if joined else [arg, next(pending, "")]
        else:
            rest.append(arg)
    if path is None:
        return list(args)
    if path in ("null", "last", "best", "hpc") or "://" in path or (layer := _checkpoint_layer(path)) is None:
        return [*args, f"--ckpt_path={path}"]
    return [*rest, "--config", layer, *flags, f"--ckpt_path={path}"]


def _checkpoint_layer(path: str) -> CheckpointLayer | None:
    if not Path(path).is_file():
        raise UserError(f"--ckpt_path: no file {path!r}")
    try:
        checkpoint = load(path, mmap=True)
        arguments = dict(checkpoint.get("hyper_parameters", {}))
    except CheckpointError as error:
        raise UserError(f"--ckpt_path: {error}") from error
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"--ckpt_path: {path} is not a checkpoint of this package ({line_of(error)})") from error
    arguments.pop("_instantiator", None)
    class_path = arguments.pop("_class_path", None) or checkpoint.get("class_path")
    if not arguments:
        return None
    arguments |= {"pretrained": False, "init_from": None}  # the weights are in the checkpoint
    model = {"init_args": arguments, **({"class_path": class_path} if class_path else {})}
    layer = CheckpointLayer(json.dumps({"model": model}))
    layer.path, layer.model = path, model
    return layer


def _check_same_class(layer: CheckpointLayer, given: Any) -> None:
    saved = layer.model.get("class_path", "").rpartition(".")[2]
    named = str(given.get("class_path") or "").rpartition(".")[2] if hasattr(given, "get") else ""
    if saved and named and saved != named:
        raise UserError(f"--ckpt_path: {layer.path} holds a {saved}, the configuration says {named}")
