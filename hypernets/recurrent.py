"""Recurrent hypernetworks: chunks of a target in sequence, each depending on those before it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from hypernets.base import HyperNetwork
from hypernets.card import HyperCard
from hypernets.chunks import ChunkHead
from hypernets.fields import Field
from hypernets.parametrization import Parametrization
from hypernets.target import Target, TensorSpec

__all__ = ["RecurrentHyperNetwork"]

_State = tuple[Tensor, Tensor]


@final
class RecurrentHyperNetwork(HyperNetwork):
    """An LSTM that emits a target chunk by chunk, layer after layer (Chandra et al., WACV 2023, arXiv 2209.07712).

    Step k reads ``[E(condition), v_k]`` with a learned vector ``v_k`` per chunk; the state carries over, so a weight
    depends on all weights before it. One linear head makes the chunk.

    Differs from the paper: it published no code; chunk vectors, head and scales are those of
    :class:`ChunkedHyperNetwork`.

    >>> from hypernets import Categorical
    >>> hypernet = RecurrentHyperNetwork(Target.of(nn.Linear(3, 2)), {"task": Categorical(1)}, width=8)
    >>> hypernet.add_task()
    1
    >>> hypernet.generate({"task": torch.tensor([0, 1])})["weight"].shape
    torch.Size([2, 2, 3])

    Args:
        target: what is generated.
        conditions: name -> field.
        width: of the LSTM.
        vectors: length of the chunk vectors.
        chunk: values per chunk.
        low_rank_above: see :class:`ChunkedHyperNetwork`.
        rank: see :class:`ChunkedHyperNetwork`.
        parametrization: the default is magnitude-invariant.
    """

    def __init__(
        self,
        target: Target,
        conditions: Mapping[str, Field],
        *,
        width: int = 64,
        vectors: int = 8,
        chunk: int = 512,
        low_rank_above: int | None = 1_000_000,
        rank: int = 8,
        parametrization: Parametrization | None = None,
    ) -> None:
        super().__init__(target, conditions, parametrization=parametrization)
        if min(width, vectors) < 1:
            raise ValueError(f"width and vectors must be >= 1, got {width} and {vectors}")
        self.width, self.vectors, self.chunk = width, vectors, chunk
        self.low_rank_above, self.rank = low_rank_above, rank
        self.head = ChunkHead(target, width, chunk=chunk, low_rank_above=low_rank_above, rank=rank)
        self.table = nn.Parameter(torch.randn(self.head.count, vectors))
        self.recurrence = self._lstm()
        self.finish()

    @property
    def card(self) -> HyperCard:  # noqa: D102
        return HyperCard.of(
            type(self).__name__,
            self.conditions.values(),
            outputs="component-wise",
            architecture="rnn",
            reference="Chandra et al.: Continual learning with dependency preserving hypernetworks, arXiv 2209.07712",
        )

    def emit(  # noqa: D102
        self, code: Tensor, specs: Sequence[TensorSpec], *, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        (made,) = self.emit_groups(code, [specs], generator=generator)
        return made

    def emit_groups(  # noqa: D102
        self, code: Tensor, groups: Sequence[Sequence[TensorSpec]], *, generator: torch.Generator | None
    ) -> Iterator[dict[str, Tensor]]:
        del generator
        state: _State | None = None
        done = 0
        for specs in groups:
            rows = self.head.rows(specs)
            last = rows.stop if isinstance(rows, slice) else int(rows[-1]) + 1
            features, state = self._run(code, done, last, state)
            yield self.head(features[:, _shifted(rows, done)], specs)
            done = last

    def _lstm(self) -> nn.LSTM:
        """An LSTM whose gates start with variance 1 from a code of norm 1, and 1 from the chunk vectors."""
        lstm = nn.LSTM(self.encoder.width + self.vectors, self.width, batch_first=True)
        weight: Tensor = lstm.get_parameter("weight_ih_l0")
        nn.init.normal_(weight[:, : self.encoder.width])
        nn.init.normal_(weight[:, self.encoder.width :], std=self.vectors**-0.5)
        return lstm

    def _run(self, code: Tensor, start: int, end: int, state: _State | None) -> tuple[Tensor, _State | None]:
        """Features ``(K, end - start, width)`` of some chunks, and the state after them."""
        if end <= start or not len(code):
            return code.new_zeros(len(code), end - start, self.width), state
        steps = torch.cat(
            [
                code[:, None].expand(-1, end - start, -1),
                self.table[start:end].expand(len(code), -1, -1),
            ],
            dim=-1,
        )
        features, state = self.recurrence(steps, state)
        return features, state

    @torch.no_grad()
    def widen(self, extra: int) -> None:
        """Give the LSTM more units without changing what is generated, for tasks that the present ones cannot hold.

        Old units do not read new ones and the head starts by ignoring them (function-preserving growth as in Net2Net,
        arXiv 1511.05641); both learn to. Parameters are replaced: make the optimiser after this call.

        Args:
            extra: number of new units.

        Raises:
            ValueError: it is below 1.
        """
        if extra < 1:
            raise ValueError(f"extra must be >= 1, got {extra}")
        old, self.width = self.recurrence, self.width + extra
        self.recurrence = self._lstm()
        self.recurrence.to(self.table.device, self.table.dtype)
        for name, value in old.named_parameters():
            new = dict(self.recurrence.named_parameters())[name].view(4, self.width, -1)  # one block per gate
            if name == "weight_hh_l0":
                new[:, : old.hidden_size, old.hidden_size :] = 0
            kept = value.view(4, old.hidden_size, -1)
            new[:, : old.hidden_size, : kept.shape[2]] = kept
        self.head.widen(extra)

    def rescale(self, name: str, factor: float) -> None:  # noqa: D102
        self.head.rescale(name, factor)


def _shifted(rows: slice | Tensor, by: int) -> slice | Tensor:
    return slice(rows.start - by, rows.stop - by) if isinstance(rows, slice) else rows - by
