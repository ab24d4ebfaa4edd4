"""How several processes divide one training, and what they exchange; one process exchanges nothing.

* ``latents``: each process holds a contiguous part of the latents, with their gradients and moments, and reads the same
  batches. The processes add up their parts of each reconstruction, and find a cut among the highest scores of all.
* ``tokens``: each process holds the whole dictionary and does a contiguous part of the rows of each batch. The processes
  find a cut over the whole batch among the highest scores of all, and add up their gradients.

Sums have the same bits in all processes, so everything that is computed from them is equal everywhere.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.errors import SaeTrainingError
from sae_training.train_config import Divide

T = TypeVar("T")


@runtime_checkable
class Peers(Protocol):
    """The connected processes, numbered from 0."""

    index: int
    count: int

    def gather(self, value: T, /) -> list[T]:
        """The values of all processes in rank order; waits for all."""
        ...

    def agreeing(self) -> AbstractContextManager[None]:
        """Leave the block in all processes together, without an error or with an error in each."""
        ...

    def talk(self, message: Callable[[], Any], /) -> None:
        """Exchange a message, and wait for the work that it gives; raise one error for the user if another process has ended."""
        ...

    def poll(self, done: Callable[[], bool], /) -> None:
        """Wait until something is done; raise one error for the user if another process has ended."""
        ...


@dataclass(frozen=True)
class Share:
    """The rows of a batch that one process does.

    Attributes:
        first: First row.
        last: End of the rows (exclusive).
        n_rows: Rows of the whole batch.
    """

    first: int
    last: int
    n_rows: int

    @property
    def place(self) -> slice:
        """The rows."""
        return slice(self.first, self.last)

    def every(self, stride: int) -> tuple[slice, int]:
        """Own rows whose number in the batch is a multiple of ``stride``, and how many such rows the batch has."""
        return slice(-self.first % stride, None, stride), -(-self.n_rows // stride)


class Division:
    """What one of several processes does in a training, and its exchanges; by default this process does everything.

    Attributes:
        index: Index of this process.
        count: Number of processes.
        by_latents: Whether each process holds a part of the latents.
        by_tokens: Whether each process does a part of the rows of each batch.
    """

    def __init__(self, peers: Peers | None = None, way: Divide = "latents", group: Any = None) -> None:
        """Divide a training.

        Args:
            peers: The connected processes; None for this one alone.
            way: What is divided.
            group: Group of torch.distributed in which the processes exchange tensors of the device of the crosscoder.
        """
        self._peers, self._group = peers, group
        self.index, self.count = (0, 1) if peers is None else (peers.index, peers.count)
        self.by_latents = self.count > 1 and way == "latents"
        self.by_tokens = self.count > 1 and way == "tokens"

    @property
    def alone(self) -> bool:
        """Whether there is one process."""
        return self.count == 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes what exists once."""
        return self.index == 0

    def latents(self, d_sae: int) -> slice:
        """The latents that this process holds.

        Raises:
            SaeTrainingError: There are more processes than latents.
        """
        if not self.by_latents:
            return slice(0, d_sae)
        if d_sae < self.count:
            raise SaeTrainingError(f"{self.count} processes cannot divide {d_sae} latents; start fewer processes.")
        return slice(d_sae * self.index // self.count, d_sae * (self.index + 1) // self.count)

    def share(self, n_rows: int) -> Share:
        """The rows of a batch that this process does."""
        if not self.by_tokens:
            return Share(0, n_rows, n_rows)
        return Share(n_rows * self.index // self.count, n_rows * (self.index + 1) // self.count, n_rows)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over all processes."""
        if self._peers is not None and self.count > 1:
            import torch.distributed as dist

            # a work of a GPU would be waited for; `settle` does that
            self._peers.talk(lambda: dist.all_reduce(tensor, group=self._group, async_op=not tensor.is_cuda))
        return tensor

    def sum_of_latents_(self, tensor: Tensor) -> Tensor:
        """Replace a sum over the latents of this process by that over all latents."""
        return self.sum_(tensor) if self.by_latents else tensor

    def sum_of_tokens_(self, tensor: Tensor) -> Tensor:
        """Replace a sum over the rows of this process by that over all rows."""
        return self.sum_(tensor) if self.by_tokens else tensor

    def gathered(self, tensor: Tensor) -> Float[Tensor, "process *shape"]:
        """The tensors of all processes, which have one shape."""
        if self._peers is None or self.count == 1:
            return tensor[None]
        import torch.distributed as dist

        found = tensor.new_empty(self.count, *tensor.shape)
        own, asynchronous = tensor.contiguous(), not tensor.is_cuda
        self._peers.talk(lambda: dist.all_gather(list(found), own, group=self._group, async_op=asynchronous))
        return found

    def of_all_latents(self, values: Tensor, d_sae: int) -> Tensor:
        """Numbers ``[own latents]`` of all processes as ``[d_sae]``."""
        if not self.by_latents:
            return values
        whole = values.new_zeros(d_sae)
        whole[self.latents(d_sae)] = values
        return self.sum_(whole)

    def cut(self, scores: Float[Tensor, "group candidates"], n: int) -> Float[Tensor, "group 1"]:
        """The n-th highest score of each group among the scores of all processes, from the n highest of each."""
        own = torch.topk(scores, min(n, scores.shape[1]), dim=1, sorted=False).values
        missing = scores.new_full((scores.shape[0], n - own.shape[1]), float("-inf"))
        candidates = self.gathered(torch.cat((own, missing), dim=1)).movedim(0, 1).flatten(1)
        return torch.topk(candidates, n, dim=1, sorted=False).values.min(dim=1, keepdim=True).values

    def numbers(self, own: int, device: torch.device) -> list[int]:
        """A number of each process; waits for the device."""
        return [own] if self.alone else self.gathered(torch.tensor(own, device=device)).tolist()

    def agreeing(self) -> AbstractContextManager[None]:
        """Leave the block in all processes together, without an error or with an error in each."""
        return nullcontext() if self._peers is None else self._peers.agreeing()

    def of_first(self, value: T) -> T:
        """The value of the first process."""
        return value if self._peers is None else self._peers.gather(value)[0]

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        self.of_first(None)

    def settle(self, device: torch.device) -> None:
        """Wait for the device in short steps, in which this process notices that another one has ended."""
        if self._peers is not None and self.count > 1 and device.type == "cuda":
            reached = torch.cuda.Event()
            reached.record()
            self._peers.poll(reached.query)


ALONE = Division()
"""One process."""
