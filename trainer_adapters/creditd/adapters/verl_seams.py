"""The places of verl that the adapter holds on to; a newer verl that moved one is told from a mistake of a user."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection
from typing import Any

from creditd.adapters.compatibility import VERL, SeamMovedError


def seam(module: str, name: str, arguments: Collection[str] = ()) -> Any:  # noqa: ANN401 - whatever verl has there
    """An attribute of a module of verl.

    Args:
        module: The module.
        name: The attribute.
        arguments: What it has to take by name.

    Returns:
        The attribute.

    Raises:
        SeamMovedError: If it is not there, or takes something else.
    """
    try:
        found = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise SeamMovedError(_moved(f"{module}.{name}", f"which is not there ({error})")) from error
    if arguments:
        takes(found, arguments)
    return found


def takes(function: Any, arguments: Collection[str]) -> None:  # noqa: ANN401 - as above
    """Make sure that a function of verl takes arguments by name.

    Args:
        function: Of verl.
        arguments: Their names.

    Raises:
        SeamMovedError: If it does not.
    """
    known = inspect.signature(function).parameters
    lacking = [argument for argument in arguments if argument not in known]
    if lacking:
        place = f"{function.__module__}.{function.__qualname__}"
        raise SeamMovedError(_moved(place, f"which takes no argument {lacking[0]}"))


def moved(place: str, what: str) -> SeamMovedError:
    """An error that names a place of verl.

    Args:
        place: Where.
        what: What is wrong with it, as a relative clause.

    Returns:
        It, to be raised.
    """
    return SeamMovedError(_moved(place, what))


def _moved(place: str, what: str) -> str:
    return (
        f"creditd holds on to {place} of verl, {what}: verl here is {VERL.installed}, and the adapter is tested with "
        f"{VERL.tested}; "
        "expected that release, or a creditd that knows this one"
    )
