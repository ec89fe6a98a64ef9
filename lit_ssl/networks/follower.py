"""A network that follows another one slowly: the key encoder of MoCo, the teachers of BYOL and its kin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_ssl.checks import check_choice, check_number

__all__ = ["Follower"]


class Follower(nn.Module):
    """Moves copies of networks towards the networks themselves: ``copy = momentum * copy + (1 - momentum) * network``.

    The copies are the method's own, and have the same parameters in the same order. Where parameters are shorter than
    float32 (``bf16-true``), a step of a thousandth is lost in rounding, so that a copy would stand still: the moving
    average is then kept in float32 beside them, in the state dict as ``masters``, and rounded for use. Networks that
    were built in float32 get it when they are converted. In float32 and longer there is nothing beside.

    Args:
        copies: that follow, already equal to ``networks``.
        networks: that are followed.
        momentum: in [0, 1].
        schedule: ``constant``, or ``cosine`` from ``momentum`` to 1 over the run (Grill et al. 2020, arXiv:2006.07733,
            section 3.2).

    Raises:
        ValueError: an argument outside its range.
    """

    masters: Tensor | None

    def __init__(
        self,
        copies: Sequence[nn.Module],
        networks: Sequence[nn.Module],
        momentum: float,
        schedule: Literal["constant", "cosine"] = "constant",
    ) -> None:
        super().__init__()
        check_number("momentum", momentum)
        check_choice("schedule", schedule, ("constant", "cosine"))
        self.momentum, self.schedule = momentum, schedule
        pairs: Any = tuple(zip(copies, networks, strict=True))
        self.__dict__["_pairs"] = pairs  # registered where they belong already
        self.register_buffer("masters", None)
        self._keep_masters()

    def _parameters_of(self, place: int) -> list[Tensor]:
        """Those of the copies (0) or of the networks (1)."""
        return [parameter for pair in self.__dict__["_pairs"] for parameter in pair[place].parameters()]

    def _keep_masters(self) -> None:
        """Begin the average in float32, if the copies are shorter and have none yet."""
        if self.masters is None and any(p.element_size() < 4 for p in self._parameters_of(0)):
            self.masters = self._bits()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """After a conversion, which reaches the copies before this module: they are the method's earlier children."""
        super()._apply(fn, recurse)
        self._keep_masters()
        return self

    def _bits(self) -> Tensor:
        """The copies in float32, as integers: a conversion of the module to another dtype leaves these as they are."""
        return torch.cat([p.detach().float().flatten() for p in self._parameters_of(0)]).view(torch.int32)

    def momentum_at(self, step: float, total: float) -> float:
        """The momentum behind ``step`` optimizer steps of ``total``."""
        if self.schedule == "constant" or not math.isfinite(total):
            return self.momentum
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * min(step / total, 1))) / 2

    @torch.no_grad()
    def follow(self, step: float, total: float) -> None:
        """One step behind the optimizer's.

        Args:
            step: optimizer steps done, this one included.
            total: of the run; infinite where it has no end.
        """
        weight = 1 - self.momentum_at(step, total)
        copies, networks = self._parameters_of(0), self._parameters_of(1)
        if self.masters is None:
            torch._foreach_lerp_(copies, networks, weight)
            return
        masters = [
            part.view_as(parameter)
            for part, parameter in zip(
                self.masters.view(torch.float32).split([p.numel() for p in copies]), copies, strict=True
            )
        ]
        torch._foreach_lerp_(masters, [parameter.float() for parameter in networks], weight)
        torch._foreach_copy_(copies, masters)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Masters of a state are kept in any precision: networks that are loaded first and converted afterwards go on
        exactly. A state of a longer precision has none, nor has one of before there were any.
        """
        key = f"{prefix}masters"
        if key in state_dict and self.masters is None:
            self.masters = self._bits()
        elif key not in state_dict and self.masters is not None:
            state_dict[key] = self._bits()  # of the copies, which were loaded before
        super()._load_from_state_dict(state_dict, prefix, *args)
