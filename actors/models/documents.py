"""Documents that lie one behind the other in one sequence, some of which continue others.

Owns indices: who lies where, and whose tokens a document sees, also as tensors on a device, which
every layer of a model needs. Attention is `manta.actors.models.packed_attention`'s, what becomes a
document `manta.actors.models.layout`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Document:
    """`length` tokens, at least one. With `after` it continues that document (a place among all)
    and sees its tokens as well; that one comes before it and continues none."""

    length: int
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbours of one shape: `count` documents of `length` tokens, which all continue documents
    of `before` tokens (0: none). Those lie side by side from token `start` on; that of document i
    is the `after[i]`-th of them."""

    length: int
    before: int
    start: int
    after: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.after)

    @property
    def continued(self) -> int:
        """How many documents it continues."""
        return max(self.after) + 1


class Documents:
    """In the order in which they lie; equally long ones that others continue are neighbours."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = tuple(documents)
        self._indices: dict[torch.device, Indices] = {}
        self.starts = tuple(accumulate((each.length for each in documents), initial=0))[:-1]

    @cached_property
    def runs(self) -> list[Run]:
        shapes = groupby(self._documents, lambda each: (each.length, self._before(each)))
        return [self._run(length, before, list(equal)) for (length, before), equal in shapes]

    @property
    def is_plain(self) -> bool:
        """Whether none continues another."""
        return all(each.after is None for each in self._documents)

    def positions(self) -> Tensor:
        """int64[tokens]: each token's place in its document and what that continues."""
        return torch.cat(
            [self._before(each) + torch.arange(each.length) for each in self._documents]
        )

    def seen(self) -> Tensor:
        """int64[K]: the tokens that each document sees, its own last, document by document."""
        places = []
        for each, start in zip(self._documents, self.starts, strict=True):
            if each.after is not None:
                first = self.starts[each.after]
                places.append(torch.arange(first, first + self._before(each)))
            places.append(torch.arange(start, start + each.length))
        return torch.cat(places)

    def on(self, device: torch.device) -> Indices:
        """What attention on `device` needs to know of them; made once."""
        if device not in self._indices:
            self._indices[device] = Indices(self, device)
        return self._indices[device]

    def lengths(self) -> tuple[int, ...]:
        """Tokens of each."""
        return tuple(each.length for each in self._documents)

    def lengths_seen(self) -> tuple[int, ...]:
        """Tokens that each sees."""
        return tuple(self._before(each) + each.length for each in self._documents)

    def _before(self, document: Document) -> int:
        return 0 if document.after is None else self._documents[document.after].length

    def _run(self, length: int, before: int, documents: Sequence[Document]) -> Run:
        after = [each.after or 0 for each in documents]
        first = min(after)
        return Run(length, before, self.starts[first], tuple(place - first for place in after))


class Indices:
    """Tensors on `device`, each made when it is first asked for."""

    def __init__(self, documents: Documents, device: torch.device) -> None:
        self._documents, self._device = documents, device

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """For each run that continues documents bool[length, tokens seen]: all that is continued,
        and itself up to each token."""
        return [self._mask(run) if run.before else None for run in self._documents.runs]

    @cached_property
    def after(self) -> list[Tensor]:
        """`Run.after` of each run, int64[count]."""
        return [torch.tensor(run.after, device=self._device) for run in self._documents.runs]

    @cached_property
    def seen(self) -> Tensor:
        """`Documents.seen`."""
        return self._documents.seen().to(self._device)

    @cached_property
    def borders(self) -> Tensor:
        """int32[documents + 1]: where they begin and end."""
        return self._borders(self._documents.lengths())

    @cached_property
    def borders_seen(self) -> Tensor:
        """The same in `seen`."""
        return self._borders(self._documents.lengths_seen())

    def _mask(self, run: Run) -> Tensor:
        seen = run.before + run.length
        everything = torch.ones(run.length, seen, dtype=torch.bool, device=self._device)
        return everything.tril(run.before)

    def _borders(self, lengths: Sequence[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self._device)
