"""A method from its file: the class by a name that the package or the user gave, and plain values as arguments."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_ssl.checkpoint import CheckpointError
from lit_ssl.hyperparameters import check_plain
from lit_ssl.spec import ImageSpec

if TYPE_CHECKING:
    from lit_ssl.module import SSLModule

__all__ = ["SavedMethod", "class_of", "saved_method"]


def class_of(class_path: str) -> type[SSLModule] | None:
    """The method of that name, without importing or calling anything: one of the package, or of a module that is there.

    Args:
        class_path: from a file, so whatever somebody wrote into it.

    Returns:
        None where it is neither.
    """
    import lit_ssl.methods
    from lit_ssl.module import SSLModule

    home, _, name = class_path.rpartition(".")
    if home.partition(".")[0] == "lit_ssl" and name in lit_ssl.methods.__all__:
        return getattr(lit_ssl.methods, name)
    module = sys.modules.get(home)
    found = vars(module).get(name) if module is not None else None  # a module's own __getattr__ would be called
    return found if isinstance(found, type) and issubclass(found, SSLModule) else None


@dataclass(frozen=True)
class SavedMethod:
    """What a file says of the method that it was saved from, checked.

    Attributes:
        source: the file, for messages.
        class_path: module and name of the class; empty where the file does not say.
        arguments: plain values, of the class's constructor.
        given: the classes of arguments that were no plain values, by name; they have to be passed again.
        spec: of the data.
    """

    source: str
    class_path: str
    arguments: dict[str, Any]
    given: dict[str, str]
    spec: ImageSpec | None

    @property
    def name(self) -> str:
        return self.class_path.rpartition(".")[2]

    def kind(self, asked: type[SSLModule]) -> type[SSLModule]:
        """The class to build, where the user asked for ``asked`` (:class:`SSLModule`: for whatever the file holds).

        Raises:
            CheckpointError: the file holds another method, or one that only the user can name.
        """
        from lit_ssl.module import SSLModule

        found = class_of(self.class_path)
        if asked is not SSLModule:
            if not self.name or asked.__name__ == self.name or (found is not None and issubclass(asked, found)):
                return asked
            raise CheckpointError(
                f"{self.source} holds a {self.name}, not a {asked.__name__}: load it with "
                f"{self.name}.load_from_checkpoint, or SSLModule.load_from_checkpoint"
            )
        if found is not None:
            return found
        if not self.name:
            raise CheckpointError(f"{self.source} does not say which method it holds: load it with that one's class")
        raise CheckpointError(
            f"{self.source} holds a {self.class_path}, a method that is not of this package, and a file may not choose "
            f"what is imported: if you trust it, name it yourself, --model {self.class_path} in the command, or "
            f"{self.name}.load_from_checkpoint in Python"
        )

    def check_given(self) -> None:
        """Raises CheckpointError where a module is missing; warns where views are."""
        for name, kind in self.given.items():
            what = f"{self.source} was saved with {name} given as a {kind}, which no file can hold"
            if name == "views":
                warnings.warn(f"{what}: without views=... the method has its own", stacklevel=4)
                continue
            raise CheckpointError(f"{what}: give it again, {name}=... in Python, --model.{name} in the command")

    def build(self, asked: type[SSLModule], **arguments: Any) -> SSLModule:
        """The method with its networks, whose weights are still its first ones, in training mode on the host.

        Args:
            asked: see :meth:`kind`.
            arguments: in place of the file's; those that :func:`saved_method` was told of.

        Raises:
            CheckpointError: see :meth:`kind`; an argument that was given as a module and is not here; or arguments
                that the class does not take.
        """
        kind = self.kind(asked)
        self.check_given()
        try:
            method = kind(**{**self.arguments, **arguments})
            method.spec = method.spec or self.spec
            method.configure_model()
        except Exception as error:  # what a constructor raises on values that anybody may have written
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{self.source} cannot be rebuilt as a {kind.__name__}: {reason}") from error
        return method


def saved_method(content: Any, source: str, instead: Collection[str] = ()) -> SavedMethod:
    """What the content of a checkpoint says of its method.

    Args:
        content: as it was read with ``weights_only=True``.
        source: the file, for messages.
        instead: names of arguments that the user gives: what the file says of them does not count.

    Raises:
        CheckpointError: it is none of this package, or holds what is no plain value.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise CheckpointError(f"{source} is not a checkpoint of this package (it has no state_dict)")
    try:
        arguments = content.get("hyper_parameters") or {}
        if isinstance(arguments, Mapping):
            arguments = {name: value for name, value in arguments.items() if name not in instead}
        arguments = check_plain(arguments)
        given = check_plain(content.get("given") or {})
        spec = arguments.pop("spec", None)
        spec = None if spec is None else ImageSpec.of(spec)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{source} is refused: {' '.join(str(error).split())}") from error
    inner = arguments.pop("_class_path", None)  # of files that the command wrote before 0.2
    arguments.pop("_instantiator", None)
    # First weights are superseded by those in the file; whether to start a compiler is for the user to say.
    for name in ("pretrained", "init_from", "compile"):
        arguments.pop(name, None)
    class_path = content.get("class_path") or inner or ""
    if "given" not in content and arguments and "backbone" not in arguments:  # older files left it out without a note
        given = {"backbone": "module"}
    given = {str(name): str(kind)[:80] for name, kind in given.items() if name not in instead}
    return SavedMethod(source, str(class_path), arguments, given, spec)
