"""What the command's arguments say before they are parsed: layers by name, classes, and the method of a checkpoint."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile

from lit_ssl import configs
from lit_ssl.checkpoint import CheckpointError, load
from lit_ssl.messages import UserError, line_of
from lit_ssl.module import SSLModule
from lit_ssl.rebuild import SavedMethod, saved_method
from lit_ssl.yaml_files import YAMLFileError, read_yaml

__all__ = ["Layer", "find_own_classes", "flags_of", "given_of", "with_checkpoint", "with_classes_first"]


class Layer(ActionConfigFile):
    """``--config``: a file, the name of a shipped layer, or a configuration string."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        if not values.lstrip().startswith("{"):
            try:
                values = str(configs.find(values))
            except FileNotFoundError as error:
                raise UserError(str(error)) from None
            _check_file(values)
        self.take(parser, cfg, values, option_string)

    def take(self, parser: Any, cfg: Any, values: str, option_string: str | None) -> None:
        """Apply a configuration string, or a file that is there."""
        super().__call__(parser, cfg, values, option_string)


def _check_file(path: str) -> None:
    """What the parser would say of such a file names neither it nor the place."""
    try:
        content = read_yaml(Path(path).read_text(encoding="utf-8"))
    except (YAMLFileError, UnicodeDecodeError) as error:
        what = f" is no YAML: {error}" if isinstance(error, UnicodeDecodeError) else str(error)
        raise UserError(f"--config: {path}{what}") from error
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"--config: {path} must hold sections such as model, data and trainer, got {kind}")


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags with their values, whether joined by ``=`` or not."""
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        flag, joined, value = arg.partition("=")
        if flag.startswith("-"):
            yield flag, value if joined else following


def _layers(args: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each flag says that is a layer, or the class of model or data, as a layer, with the flag in front."""
    for flag, value in _options(args):
        given: Any = {}
        if flag in ("--config", "-c"):
            with suppress(OSError, ValueError):  # told when the layer's turn comes
                text = value if value.lstrip().startswith("{") else configs.find(value).read_text(encoding="utf-8")
                given = read_yaml(text)
        elif flag in ("--model", "--data"):
            given = {flag[2:]: {"class_path": value}}
        if isinstance(given, dict):
            yield flag, given


def classes_of(args: Sequence[str]) -> dict[str, str]:
    """The class of model and of data, as the first layer that names one says."""
    classes: dict[str, str] = {}
    for _, given in _layers(args):
        for key in ("model", "data"):
            section = given.get(key)
            if isinstance(section, dict) and isinstance(section.get("class_path"), str):
                classes.setdefault(key, section["class_path"])
    return classes


def flags_of(args: Sequence[str], key: str) -> set[str]:
    """Names of the arguments of ``key`` that flags give, such as ``lr`` for ``--model.lr``."""
    given = (flag.removeprefix(f"--{key}.").removeprefix("init_args.") for flag, _ in _options(args))
    return {name.partition(".")[0].rstrip("+") for name in given if not name.startswith("-")}


def given_of(args: Sequence[str], key: str) -> set[str]:
    """Names of the arguments of ``key`` that flags and layers give."""
    names = flags_of(args, key)
    for _, given in _layers(args):
        section = given.get(key)
        if isinstance(section, dict):
            arguments = section.get("init_args", section)
            names |= set(arguments) if isinstance(arguments, dict) else set()
    return names


def _dotted_names(value: Any) -> Iterator[str]:
    """Every string within a layer that may be the import path of a class."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _dotted_names(item)
    elif isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value):
        yield value


def find_own_classes(args: Sequence[str]) -> None:
    """Let the working folder be searched, last of all, if the user names a class of a module that is only there.

    A file never makes this happen: what a checkpoint names is not among the arguments.
    """
    given: list[Any] = [layer for _, layer in _layers(args)]
    for _, value in _options(args):
        with suppress(ValueError):  # told when its turn comes
            given.append(read_yaml(value))  # a value may be a configuration of its own
    for module in {name.partition(".")[0] for value in given for name in _dotted_names(value)}:
        here = Path(module).with_suffix(".py").is_file() or Path(module, "__init__.py").is_file()
        if here and module not in sys.modules and importlib.util.find_spec(module) is None:
            sys.path.append(os.getcwd())
            return


def with_classes_first(args: Sequence[str]) -> list[str]:
    """The arguments with the classes of model and data in front, so that a layer of arguments may come before them."""
    classes = {key: {"class_path": class_path} for key, class_path in classes_of(args).items()}
    return [*args[:1], "--config", json.dumps(classes), *args[1:]] if classes else list(args)


def with_checkpoint(args: Sequence[str]) -> tuple[list[str], SavedMethod | None]:
    """The arguments with the class of ``--ckpt_path FILE`` in front, and what the file says of its method.

    Weights fit the model they were saved from: it need not be given again, and what a layer says of it gives way to the
    file. A flag is deliberate and stays. The parser, which would resolve what a configuration names, sees no value of
    the file: they go to the method's constructor as they are, see :meth:`lit_ssl.cli.CLI.instantiate`.
    """
    path = next((value for flag, value in reversed([*_options(args)]) if flag == "--ckpt_path"), None)
    if path is None:
        return list(args), None
    args = [
        *args,
        f"--ckpt_path={path}",
    ]  # last, so that the ``ckpt_path: null`` of a saved config.yaml does not undo it
    if path in ("null", "last", "best", "hpc") or "://" in path:
        return args, None
    if not Path(path).is_file():
        raise UserError(f"--ckpt_path: no file {path!r}")
    try:
        saved = saved_method(load(path, mmap=True), path, flags_of(args, "model"))
        if "model" not in classes_of(args):
            kind = saved.kind(SSLModule)
            args = [args[0], f"--model={kind.__module__}.{kind.__qualname__}", *args[1:]]
        return args, saved
    except CheckpointError as error:
        raise UserError(f"--ckpt_path: {error}") from error
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"--ckpt_path: {path} is not a checkpoint of this package ({line_of(error)})") from error
