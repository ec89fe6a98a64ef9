"""YAML from a file that anybody may have written: no more than values, and not more of them than it says."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["YAMLFileError", "read_yaml"]

_MOST_VALUES = 100_000  # a full configuration of a run has about 600


class YAMLFileError(ValueError):
    """A file that is no YAML, or one that nobody writes by hand; the message names the place."""


def read_yaml(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        YAMLFileError: it is no YAML, refers to itself, is nested too deeply, or stands for more than 100,000 values.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _size(root, {}) > _MOST_VALUES:
            raise YAMLFileError(f" stands for more than {_MOST_VALUES:,} values by its aliases")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" line {place.line + 1}" if place is not None else ""
        raise YAMLFileError(f"{where} is no YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise YAMLFileError(" is nested too deeply") from error


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node stands for, aliases written out; each node is counted once."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise YAMLFileError(f" line {node.start_mark.line + 1} refers to itself by an alias")
        return sizes[id(node)]
    sizes[id(node)] = 0  # on the way
    parts = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    sizes[id(node)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(node)]
