"""The processes of a trainer by accelerate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from creditd.adapters import processes

_T = TypeVar("_T")


class _Accelerated:
    """Processes as accelerate knows them."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.count: int = accelerator.num_processes
        self.rank: int = accelerator.process_index

    def gathered(self, own: Any) -> list[Any]:  # noqa: ANN401 - rows of any adapter
        """What each process has, in their order."""
        everything: list[Any] = gather_object([own])
        return everything

    def of_first(self, own: Any) -> Any:  # noqa: ANN401 - as above
        """What the first process has."""
        parcel = [own]
        broadcast_object_list(parcel)
        return parcel[0]


def by_all(accelerator: Accelerator, make: Callable[[], list[_T]]) -> list[_T]:
    """What each process makes, process after process; `processes.by_all` for an accelerator."""
    return processes.by_all(_Accelerated(accelerator), make)


def by_one(accelerator: Accelerator, make: Callable[[], _T]) -> _T:
    """What the main process makes; `processes.by_one` for an accelerator."""
    return processes.by_one(_Accelerated(accelerator), make)
