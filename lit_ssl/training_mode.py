"""Which parts of a network are in evaluation mode while they are trained."""

from __future__ import annotations

from torch import nn

__all__ = ["parts_in_evaluation_mode"]


def parts_in_evaluation_mode(module: nn.Module) -> list[str]:
    """Names of the parts that are in evaluation mode though they have parameters that are trained.

    Args:
        module: in training mode itself; what is frozen, such as a momentum encoder, may be in either.

    Returns:
        the outermost names, so that of a backbone only its own and not those of its layers.
    """
    found: list[str] = []
    for name, part in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and not part.training and not inside and any(p.requires_grad for p in part.parameters()):
            found.append(name)
    return found
