"""A method's arguments as a checkpoint stores them: plain values, which name nothing that is imported or called."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import lit_ssl.views
from lit_ssl.spec import ImageSpec

__all__ = ["NotesArguments", "check_plain", "split_plain", "views_from"]

VIEWS: dict[str, Any] = {
    name: kind for name in lit_ssl.views.__all__ if is_dataclass(kind := getattr(lit_ssl.views, name))
}
"""The views that a file may name: this package's own."""

_CONFIGURATION = ("class_path", "init_args", "dict_kwargs")
_DEEPEST = 32


class NotesArguments:
    """Base of a class whose objects know the arguments of the very call that made them, in ``_given``.

    From these a twin is built: a subclass may give other arguments to its own base, which must not be given twice.
    It is a base of its own because tools that read signatures take a class's own ``__new__`` for its constructor.
    """

    _given: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        self.__dict__["_given"] = _by_name(cls, args, kwargs)
        return self


def _by_name(kind: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``kind``; the call itself will say what is wrong with them."""
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]
    try:
        bound = signature.bind(None, *args, **kwargs).arguments
    except TypeError:
        return dict(kwargs)
    more = next((name for name, given in signature.parameters.items() if given.kind is given.VAR_KEYWORD), "")
    return {**{name: bound[name] for name in list(bound)[1:] if name != more}, **bound.get(more, {})}


def split_plain(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Arguments as plain values, and the class of those that are none (modules, callables) by the argument's name.

    Specs and this package's views become dicts, tuples lists, and paths strings.
    """
    plain: dict[str, Any] = {}
    others: dict[str, str] = {}
    for name, value in arguments.items():
        if isinstance(value, ImageSpec):
            plain[name] = value.to_dict()
        elif type(value) in VIEWS.values():
            plain[name] = {"class_path": f"lit_ssl.views.{type(value).__name__}", "init_args": _as(list, asdict(value))}
        elif isinstance(value, Path):
            plain[name] = str(value)
        elif _is_plain(value):
            plain[name] = _as(list, value)
        else:
            others[name] = f"{type(value).__module__}.{type(value).__qualname__}"
    return plain, others


def _as(kind: type, value: Any) -> Any:
    """``value`` with every list or tuple in it as a ``kind``."""
    if isinstance(value, dict):
        return {name: _as(kind, item) for name, item in value.items()}
    return kind(_as(kind, item) for item in value) if isinstance(value, list | tuple) else value


def _is_plain(value: Any, depth: int = 0) -> bool:
    if depth > _DEEPEST:
        return False
    if isinstance(value, Mapping):
        return type(value) is dict and all(
            isinstance(name, str | int) and _is_plain(item, depth + 1) for name, item in value.items()
        )
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(_is_plain(item, depth + 1) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def check_plain(arguments: Any) -> dict[str, Any]:
    """The arguments that a file holds, if they are no more than values.

    Raises:
        ValueError: an argument that is no plain value, that has the form of a configuration (which names a class), or
            that names a model or a file which loading it would fetch or open; the message says which.
    """
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise ValueError(f"its arguments must be a dict of names and values, got a {type(arguments).__name__}")
    for name, value in arguments.items():
        if not _is_plain(value):
            raise ValueError(f"its argument {name!r} must be numbers, strings, lists or dicts of them, nothing else")
        if name == "views":
            views_from(value)
        elif (named := _named_class(value)) is not None:
            raise ValueError(f"its argument {name!r} names {named!r}, which a file may not choose; {_again(name)}")
        elif _names_a_place(name, value):
            raise ValueError(
                f"its argument {name!r} is {_shortened(value)}, which would be fetched or opened because a file says "
                f"so; {_again(name)}"
            )
    return dict(arguments)


def _again(name: str) -> str:
    return f"if you trust it, say so yourself: {name}=... in Python, --model.{name} in the command"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _named_class(value: Any) -> str | None:
    """What a configuration within ``value`` would resolve, if there is any."""
    if isinstance(value, Mapping):
        if any(key in value for key in _CONFIGURATION):
            return str(next((value[key] for key in _CONFIGURATION if key in value), ""))[:80]
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((named for item in value if (named := _named_class(item)) is not None), None)
    return None


def _names_a_place(name: str, value: Any) -> bool:
    if not isinstance(value, str):
        return False
    if name in ("backbone", "text_encoder"):  # hf-hub:NAME, local-dir:DIR, transformers:NAME
        return ":" in value or "/" in value
    return name == "tokenizer" and value != "bytes" and not value.lstrip().startswith("{")


def views_from(value: Any) -> Any:
    """The views that :func:`split_plain` wrote, or ``value`` itself.

    Raises:
        ValueError: others than this package's, or with arguments that they do not take.
    """
    if not isinstance(value, Mapping):
        return value
    home, _, name = str(value.get("class_path")).rpartition(".")
    if name not in VIEWS or not f"{home}.".startswith(("lit_ssl.views.", ".")):
        raise ValueError(
            f"views must be one of lit_ssl.views ({', '.join(VIEWS)}), got {value.get('class_path')!r}; pass views=... "
            "to load it"
        )
    arguments = value.get("init_args") or {}
    known = [field.name for field in fields(VIEWS[name]) if field.init]
    if not _is_plain(arguments) or not isinstance(arguments, Mapping) or not set(arguments) <= set(known):
        raise ValueError(f"views {name} takes plain values for {', '.join(known)}, got {_shortened(arguments)}")
    return VIEWS[name](**_as(tuple, arguments))
