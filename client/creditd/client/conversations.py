"""One request from its body to what the caller gets: answered here or by a service, recorded, settled; no IO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from typing import Literal, TypeAlias, TypeVar

from creditd.client.arrays import refusal
from creditd.client.attempts import checked_request_id
from creditd.client.bodies import JSON, Body
from creditd.client.compose_results import ComposeResult
from creditd.client.exceptions import CreditdError, PartialResultError
from creditd.client.exchanges import exchange_of
from creditd.client.inquiries import Inquiries
from creditd.client.mappings import Name
from creditd.client.oar_results import OarResult
from creditd.client.results import GroupResult, ShapleyResult
from creditd.client.scar_results import ScarResult
from creditd.client.steps import Keep, Reply, Steps, Timing
from creditd.wire import codec

_R = TypeVar("_R", ShapleyResult, GroupResult, ScarResult, OarResult, ComposeResult)

WireFormat: TypeAlias = Literal["binary", "json"]
MEDIA_TYPES: dict[WireFormat, str] = {"binary": codec.MEDIA_TYPE, "json": JSON}
OnItemError: TypeAlias = Literal["raise", "return"]


class Conversations(Inquiries):
    """How a request with a body is led to its result, as steps.

    Attributes:
        keeps: Whether a `Keep` is yielded before a result is returned or an error raised.
        media_type: Format of requests, and of the answers that are asked for.
    """

    def __init__(
        self,
        base_url: str | None,
        api_key: str | None,
        deadline_s: float,
        timing: Timing | None,
        *,
        keeps: bool = False,
        wire_format: WireFormat = "binary",
    ) -> None:
        super().__init__(base_url, api_key, deadline_s, timing)
        check_choice("wire_format", wire_format, tuple(MEDIA_TYPES))
        self.keeps = keeps
        self.media_type = MEDIA_TYPES[wire_format]

    def answered(
        self,
        path: str,
        body: Body,
        deadline_s: float | None,
        request_id: str | None,
        computed: Callable[[Body, str], _R],
        read: Callable[[Reply, Body], _R],
    ) -> Steps[_R]:
        """The answer of this process or of the service, kept before the caller gets it.

        Args:
            path: Of the route.
            body: The request.
            deadline_s: Seconds allowed for everything. None: the client's.
            request_id: Identity of the request. None: a new one.
            computed: Answers in local mode.
            read: Makes the result of what a service answered.

        Returns:
            The result, rows without an answer included.

        Raises:
            CreditdError: Whatever came instead.
        """
        request_id = checked_request_id(request_id)
        started, ending = self.timing.clock(), None
        outcome: _R | CreditdError
        try:
            if self.is_local:
                outcome = computed(body, request_id)
            else:
                ending = yield from self.exchange(path, body, deadline_s, request_id)
                outcome = read(ending.success(), body)
        except CreditdError as error:
            outcome = error
        if self.keeps:
            exchange = partial(
                exchange_of,
                outcome,
                body,
                None if ending is None else ending.reply,
                time=datetime.fromtimestamp(self.timing.wall(), timezone.utc),
                url=self.base_url,
                operation=path,
                request_id=request_id,
                attempts=0 if ending is None else ending.attempts,
                elapsed_s=self.timing.clock() - started,
            )
            yield Keep(exchange)
        if isinstance(outcome, CreditdError):
            raise outcome
        return outcome


def refuse_unused(choices: Mapping[str, object]) -> None:
    """Refuse choices that say nothing about a utility that the caller evaluates, instead of passing over them."""
    for name, value in choices.items():
        if value is not None:
            raise refusal(f"/{name}", "got a choice that a utility which you evaluate does not take; expected None")


def settled(result: _R, ids: tuple[Name | None, ...] | None, on_item_error: OnItemError) -> _R:
    """The result, unless some rows have no answer and the caller wants to know."""
    if not result.errors or on_item_error == "return":
        return result
    causes = [error for error in result.errors if error.code != "group_incomplete"]
    first, many = (causes or result.errors)[0], f"{len(result.errors)} of {len(result)} rows have no answer"
    name = f" (id {ids[first.row]!r})" if ids is not None and first.row is not None else ""
    raise PartialResultError(
        f"{many}; first: {first}{name} [request {result.request_id}]",
        result,
    )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of some names."""
    if value not in choices:
        raise ValueError(f"got {name} {value!r}; expected one of {', '.join(choices)}")
