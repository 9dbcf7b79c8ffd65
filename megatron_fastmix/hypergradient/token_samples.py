"""Which sample every token of a module's output belongs to."""

from __future__ import annotations

import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.batch.packing import positions_in_samples


class TokenSamples:
    """The samples of a batch's tokens, in the layouts in which modules have them."""

    def __init__(
        self, batch: Batch, *, positions_first: bool = False, samples_run_alone: bool = False
    ) -> None:
        """`positions_first`: hidden states are (S, R, …) as in Megatron, not (R, S, …).
        `samples_run_alone`: the model is run with a row for each sample where a row has several."""
        self.count = batch.num_samples
        self.positions_first = positions_first
        self.rows, self.positions = batch.tokens.shape[:2]
        self._rows_are_samples = batch.segment is None
        if batch.segment is None:
            of_row = torch.arange(self.rows, device=batch.tokens.device)
        else:
            # Padding belongs to one sample more, which nobody reads.
            of_token = batch.segment.masked_fill(batch.segment < 0, self.count)
            place = positions_in_samples(batch.segment) if samples_run_alone else None
            if place is None:
                self._sample = of_token
                return
            of_row = of_token[place == 0]
            self.rows, self.positions = len(of_row), int(place.max()) + 1
            self._rows_are_samples = True
        self._sample = of_row[:, None].expand(self.rows, self.positions)

    def spread(self, output: torch.Tensor) -> torch.Tensor:
        """An output that serves all rows at once (a position table's) with one copy per row, as a
        view, so that each row gets a gradient of its own; any other as it is."""
        rows, positions, shape = self.rows, self.positions, output.shape
        if rows == 1 or output.dim() < 2:
            return output
        if self.positions_first:
            return output.expand(-1, rows, -1) if shape[:2] == (positions, 1) else output
        if shape[:2] == (1, positions):
            return output.expand(rows, *shape[1:])
        if output.dim() == 2 and shape[0] == positions != rows:
            return output.expand(rows, *shape)
        return output

    def sums(
        self,
        dots: torch.Tensor,
        *,
        of_ids: bool,
        strides: tuple[int, ...],
        routed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sums per sample, (B,) float64, of one value per token and possibly per head.

        Args:
            dots: (R, S, …), (R, …, S), (S, R, …), or (R·S, …) with tokens in the model's order;
                where rows are samples, (R, …).
            of_ids: they belong to token or position ids, which are (R, S) in every model.
            strides: of the output they are of; they tell positions from as many heads.
            routed: which tokens reached this expert, (N,) in the model's order, if it is one.

        Raises `ValueError` for another shape.
        """
        rows, positions, shape = self.rows, self.positions, tuple(dots.shape)
        sample, lead = self._sample, 2
        if routed is not None:
            sample = (sample.T if self.positions_first else sample).flatten()[routed]
            known, lead = shape[:1] == (len(routed),), 1
        elif self.positions_first and not of_ids:
            sample = sample.T
            known = shape[:2] == (positions, rows)
        elif self._rows_are_samples and shape[:1] == (rows,):
            sample, lead, known = sample[:, :1], 1, True
        else:
            known = shape[:2] == (rows, positions)
            heads_first = len(shape) == 3 and shape[0] == rows and shape[2] == positions
            # A token's heads lie side by side in memory, whichever way they are viewed.
            if heads_first and (not known or strides[1] < strides[2]):
                dots, known = dots.transpose(1, 2), True
        if not known:
            if routed is not None or shape[:1] != (rows * positions,):
                raise ValueError(
                    f"an output of leading shape {shape} for {rows} rows of {positions} tokens"
                )
            lead = 1
        values = dots.double()
        if values.dim() > lead:
            values = values.flatten(lead).sum(-1)
        total = values.new_zeros(self.count + 1)
        return total.index_add_(0, sample.flatten(), values.flatten())[: self.count]
