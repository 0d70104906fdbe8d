"""A model that makes do with the memory that there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from audit.model.checkpoint import Model
from audit.model.denoiser import Condition, Denoiser, kind_of_rows
from audit.model.memory import Pieces


class InPieces(Denoiser):
    """Evaluates as many rows at once as memory suffices for; see `audit.model.memory.Pieces`.

    Args:
        inner: of every row on its own.
        device: where it computes; None looks at no free memory.
    """

    def __init__(self, inner: Denoiser, device: torch.device | None = None) -> None:
        self.inner = inner
        self.schedule = inner.schedule
        self.prediction_type = inner.prediction_type
        self.pieces = Pieces(device)

    def native(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See `Denoiser.native`.

        Raises:
            Exception: what the inner one raises; that memory does not suffice only of a single row.
        """

        def evaluate(part: slice) -> Tensor:
            return self.inner.native(x[part], t[part], {name: tensor[part] for name, tensor in condition.items()})

        return self.pieces.run(evaluate, len(x), kind_of_rows(x, condition)) if len(x) else torch.empty_like(x)


def in_pieces(model: Model) -> Model:
    """The same model, which evaluates, decodes and encodes as many rows at once as memory suffices for."""
    return replace(
        model,
        denoiser=InPieces(model.denoiser, model.device),
        decode=_by_pieces(model.decode, model.device),
        encode=_by_pieces(model.encode, model.device),
    )


def _by_pieces(function: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    pieces = Pieces(device)
    return lambda rows: pieces.run(lambda part: function(rows[part]), len(rows), (rows.shape[1:], rows.dtype))
