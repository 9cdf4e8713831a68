"""What a plan needs to know of a call."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Problem:
    """What a plan needs to know of a call.

    Attributes:
        steps, batch_size: T and B of the input; of packed input, the longest length and the number of sequences.
        layout: ``"dense"``, ``"lengths"`` (dense, but each sequence with a length of its own) or ``"packed"``.
        resets: whether sequences restart on the way.
        precision: of products of fp32 numbers, ``"tf32"`` or ``"ieee"``, as torch has it set for recurrent networks.
        obstacle: why no kernel can serve the call, by what is not said here (grad mode, ...); empty if nothing.
    """

    steps: int
    batch_size: int
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    dtype: torch.dtype
    precision: str
    reset_after: bool
    reverse: bool = False
    layout: str = "dense"
    resets: bool = False
    obstacle: str = ""

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def ieee(self) -> bool:
        """Whether products are of fp32 numbers as they are."""
        return self.dtype == torch.float32 and self.precision == "ieee"

    @property
    def single_step(self) -> bool:
        """Return whether ``step`` makes the call in one launch a layer, the projection included."""
        return self.steps == 1 and self.layout == "dense" and not self.resets

    @property
    def is_empty(self) -> bool:
        """Whether a size is 0, as a batch and the features of a cell may be: there is nothing to compile or to time."""
        return min(self.batch_size, self.input_size, self.hidden_size) < 1

    def __str__(self) -> str:
        precision = f" ({self.precision})" if self.dtype == torch.float32 else ""
        parts = [
            f"T={self.steps} B={self.batch_size} I={self.input_size} H={self.hidden_size}",
            f"layers={self.num_layers}",
            "bidirectional" if self.bidirectional else "reverse" if self.reverse else "",
            self.layout if self.layout != "dense" else "",
            "resets" if self.resets else "",
            f"{str(self.dtype)[6:]}{precision}",
            f"reset {'after' if self.reset_after else 'before'}",
        ]
        return ", ".join(filter(None, parts))
