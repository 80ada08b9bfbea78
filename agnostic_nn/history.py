"""History: what a training run reported, epoch by epoch."""

from dataclasses import dataclass, field
from typing import Any

from .tables import table

__all__ = ["History"]


@dataclass
class History:
    """One dict an epoch. `history["loss"]` is a column, `str(history)` a table."""

    epochs: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, name: str) -> list:
        return [row[name] for row in self.epochs]

    def __len__(self) -> int:
        return len(self.epochs)

    def __str__(self) -> str:
        columns = list(self.epochs[0]) if self.epochs else ["epoch", "loss"]
        return table(columns, ([row.get(c) for c in columns] for row in self.epochs))
