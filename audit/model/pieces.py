"""A denoiser that makes do with the memory that there is."""

from __future__ import annotations

import torch
from torch import Tensor

from audit.model.denoiser import Condition, Denoiser
from audit.model.memory import free_memory, is_out_of_memory


class InPieces(Denoiser):
    """Evaluates as many rows at once as memory suffices for, down to single ones, and remembers how many these were.

    Args:
        inner: of every row on its own.

    Attributes:
        max_rows: most rows at once; None for any number.
    """

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.schedule = inner.schedule
        self.prediction_type = inner.prediction_type
        self.max_rows: int | None = None

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See `Denoiser.native`.

        Raises:
            Exception: what the inner one raises; that memory does not suffice only of a single row.
        """
        outputs: list[Tensor] = []
        start = 0
        while start < len(x):
            part = slice(start, start + min(self.max_rows or len(x), len(x) - start))
            found = self._try(x[part], t[part], {name: tensor[part] for name, tensor in condition.items()})
            if found is None:
                # Outside of the handler, since the error holds on to the frames that hold the memory.
                self.max_rows = (part.stop - part.start) // 2
                free_memory()
            else:
                outputs.append(found)
                start = part.stop
        return torch.cat(outputs) if outputs else torch.empty_like(x)

    def _try(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor | None:
        """None where memory does not suffice for several rows."""
        try:
            return self.inner.native(x, t, condition)
        except (RuntimeError, MemoryError) as error:
            if len(x) < 2 or not is_out_of_memory(error):
                raise
            return None
