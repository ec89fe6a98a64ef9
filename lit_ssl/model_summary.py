"""The table of networks that a run begins with."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities import rank_zero_info

__all__ = ["NetworkSummary"]


class NetworkSummary(ModelSummary):
    """Lightning's summary with a line a network: its class and its number of parameters, trainable ones beside.

    Lightning's own has columns that are empty here: networks are built for the data, so it has no example to trace.
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *more: Any,
        **kwargs: Any,
    ) -> None:
        columns = {name.strip(): values for name, values in summary_data}
        rows = [("network", "class", "parameters")]
        rows += zip(columns["Name"], columns["Type"], columns["Params"], strict=True)
        rows.append(("in all", "", f"{total_parameters:,}, {trainable_parameters:,} of them trained"))
        widths = [max(len(str(row[place])) for row in rows) for place in (0, 1)]
        rank_zero_info("\n".join(f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {size}" for name, kind, size in rows))
