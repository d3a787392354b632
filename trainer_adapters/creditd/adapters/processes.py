"""What several processes of one training do together: all, or one for all; where one fails, all raise."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from creditd.client import CreditdError

_T = TypeVar("_T")


class Processes(Protocol):
    """The processes that train one model together; they trust each other, and exchange objects by pickle.

    Attributes:
        count: How many there are.
        rank: Which of them this is, from 0.
    """

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""

    def gathered(self, own: Any) -> list[Any]:  # noqa: ANN401 - rows of any adapter
        """What each process has, in their order; all of them come here together."""

    def of_first(self, own: Any) -> Any:  # noqa: ANN401 - rows of any adapter
        """What the first process has; all of them come here together."""


class OneProcess:
    """A training in one process."""

    count, rank = 1, 0

    def gathered(self, own: Any) -> list[Any]:  # noqa: ANN401 - as above
        """What it has."""
        return [own]

    def of_first(self, own: Any) -> Any:  # noqa: ANN401 - as above
        """What it has."""
        return own


class TorchProcesses:
    """The processes of a group of `torch.distributed`, by its collectives of objects.

    A process that waits for the one that asks gives up after the timeout of its group: that has to be longer than the
    deadline of a request. Under NCCL each process has to have chosen its device (`torch.cuda.set_device`).

    Args:
        group: The group; None: all processes.

    Raises:
        RuntimeError: If `torch.distributed` was not initialised.
    """

    def __init__(self, group: Any = None) -> None:  # noqa: ANN401 - torch says no type
        import torch.distributed as dist  # noqa: PLC0415 - whoever has several processes has it

        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("torch.distributed is not initialised; expected init_process_group before")
        self._dist, self._group = dist, group
        self.count: int = dist.get_world_size(group)
        self.rank: int = dist.get_rank(group)
        if self.rank < 0:
            raise RuntimeError("this process is not in the group; expected one of its own")

    def gathered(self, own: Any) -> list[Any]:  # noqa: ANN401 - as above
        """What each process has, in their order."""
        everything: list[Any] = [None] * self.count
        self._dist.all_gather_object(everything, own, group=self._group)
        return everything

    def of_first(self, own: Any) -> Any:  # noqa: ANN401 - as above
        """What the first process has."""
        parcel = [own]
        first = 0 if self._group is None else self._dist.get_global_rank(self._group, 0)
        self._dist.broadcast_object_list(parcel, src=first, group=self._group)
        return parcel[0]


def by_all(processes: Processes, make: Callable[[], list[_T]]) -> list[_T]:
    """What each process makes, process after process.

    Args:
        processes: All of which come here together.
        make: Makes the rows of this process.

    Returns:
        The rows of all processes.

    Raises:
        Exception: In every process, what any of them raised.
    """
    if processes.count == 1:
        return make()
    made, failure = _attempt(make)
    parcels = processes.gathered(made if failure is None else _transportable(failure))
    _raise_any(parcels, failure)
    return [row for part in parcels for row in part]


def by_one(processes: Processes, make: Callable[[], _T]) -> _T:
    """What the first process makes: a group may span processes, so one of them asks.

    Args:
        processes: All of which come here together.
        make: Makes it, in the first process alone.

    Returns:
        The same in every process.

    Raises:
        Exception: In every process, what the first one raised.
    """
    if processes.count == 1:
        return make()
    own: Any = None
    failure: Exception | None = None
    if processes.rank == 0:
        made, failure = _attempt(make)
        own = made if failure is None else _transportable(failure)
    parcel = processes.of_first(own)
    _raise_any([parcel], failure)
    answer: _T = parcel
    return answer


def _attempt(make: Callable[[], _T]) -> tuple[_T | None, Exception | None]:
    """What was made and can travel, or why there is nothing: what cannot would fail here alone, while others wait."""
    try:
        made = make()
        pickle.dumps(made)
    except Exception as error:  # noqa: BLE001 - all processes raise it
        return None, error
    return made, None


def _transportable(error: Exception) -> Exception:
    """The error as other processes can be sent it: the client's own travel whole, of any other its name and message."""
    return error if isinstance(error, CreditdError) else RuntimeError(f"{type(error).__name__}: {error}")


def _raise_any(parcels: Sequence[Any], own: Exception | None) -> None:
    """Raise what went wrong in any process; where it went wrong, with its traceback."""
    if isinstance(own, CreditdError):
        raise own
    if own is not None:
        raise _transportable(own) from own
    for parcel in parcels:
        if isinstance(parcel, Exception):
            raise parcel
