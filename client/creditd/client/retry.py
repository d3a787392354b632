"""When to ask again: pure policy, no clock and no sleep.

Answers are pure functions of the request, so every request may be sent again. The limit is the total deadline, and for
a 500 a number of attempts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime

import httpx

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
MOST_SERVER_ERRORS = 4
"""Attempts that a 500 is worth: a defect that a request meets every time must not hold its caller to the deadline."""
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 8.0
OUT_OF_TIME_S = 0.01
"""With less than this left, a timeout is the deadline's own."""


def is_retried(failure: int | httpx.RequestError) -> bool:
    """Whether the same request may succeed when sent again.

    Args:
        failure: An HTTP status, or what the transport raised.

    Returns:
        True for failures of the connection and for statuses that pass.
    """
    if isinstance(failure, int):
        return failure in RETRIED_STATUSES
    return isinstance(failure, httpx.TransportError) and not isinstance(
        failure, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
    )


def retry_delay(
    attempt: int,
    failure: int | httpx.RequestError,
    headers: Mapping[str, str],
    *,
    elapsed_s: float,
    deadline_s: float,
    chance: float,
    wall_s: float,
) -> float | None:
    """Seconds to wait before the next attempt, or None to give up.

    `Retry-After` is obeyed, and when it asks for more time than is left there is no further attempt; up to half a
    second is added so that clients who were turned away together do not come back together. Without it the delay is
    uniform below 0.5, 1, 2, 4, 8, 8, … seconds. A 500 is tried four times.

    Args:
        attempt: Attempts made, from 1.
        failure: An HTTP status, or what the transport raised.
        headers: Headers of the failed answer; empty if none came.
        elapsed_s: Seconds since the first attempt began.
        deadline_s: Seconds allowed for everything.
        chance: A random number in [0, 1).
        wall_s: Seconds since the epoch, for a `Retry-After` that is a date in an answer without `Date`.

    Returns:
        A delay in [0, deadline_s − elapsed_s), or None.
    """
    if not is_retried(failure) or (failure == 500 and attempt >= MOST_SERVER_ERRORS):
        return None
    remaining_s = deadline_s - elapsed_s
    asked_s = retry_after(headers, wall_s)
    if asked_s is not None:
        delay_s = asked_s + chance * FIRST_DELAY_S
    else:
        delay_s = chance * min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt - 1, 10))
    return delay_s if delay_s < remaining_s else None


def retry_after(headers: Mapping[str, str], wall_s: float) -> float | None:
    """What `Retry-After` asks for, in seconds.

    Args:
        headers: Headers of an answer. A date is measured from its `Date`, so that clocks that differ do no harm.
        wall_s: Seconds since the epoch, for an answer without `Date`.

    Returns:
        A finite number ≥ 0 (a date in the past asks for 0), or None if the header is absent or makes no sense.
    """
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        then, now = _instant(text), _instant(headers.get("date", ""))
        return None if then is None else max(0.0, then - (wall_s if now is None else now))
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _instant(text: str) -> float | None:
    """Seconds since the epoch of an HTTP date, or None."""
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
