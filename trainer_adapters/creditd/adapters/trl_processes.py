"""What several processes of one training do together: all, or one for all; where one fails, all raise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from creditd.client import CreditdError

_T = TypeVar("_T")


def by_all(accelerator: Accelerator, make: Callable[[], list[_T]]) -> list[_T]:
    """What each process makes, process after process.

    Args:
        accelerator: Of the trainer.
        make: Makes the rows of this process.

    Returns:
        The rows of all processes.

    Raises:
        Exception: In every process, what any of them raised.
    """
    if accelerator.num_processes == 1:
        return make()
    made, failure = _attempt(make)
    parcels: list[Any] = gather_object([made if failure is None else _transportable(failure)])
    _raise_any(parcels, failure)
    return [row for part in parcels for row in part]


def by_one(accelerator: Accelerator, make: Callable[[], _T]) -> _T:
    """What the main process makes: a group may span processes, so one of them asks.

    Args:
        accelerator: Of the trainer.
        make: Makes it, in the main process alone.

    Returns:
        The same in every process.

    Raises:
        Exception: In every process, what the main one raised.
    """
    if accelerator.num_processes == 1:
        return make()
    parcel: list[Any] = [None]
    failure: Exception | None = None
    if accelerator.is_main_process:
        made, failure = _attempt(make)
        parcel = [made if failure is None else _transportable(failure)]
    broadcast_object_list(parcel)
    _raise_any(parcel, failure)
    answer: _T = parcel[0]
    return answer


def _attempt(make: Callable[[], _T]) -> tuple[_T | None, Exception | None]:
    try:
        return make(), None
    except Exception as error:  # noqa: BLE001 - all processes raise it
        return None, error


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
