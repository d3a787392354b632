"""When a remote model is asked again: pure policy, no clock and no sleep.

A score is a function of its text, so a repeat can neither change nor double anything; what it may do is load a server
that has too much already, or meet the same defect again. Hence few attempts, and none for what will not change:

- `unreached`: no connection came about, so nothing was sent.
- `dropped`: the connection ended before a byte of an answer, as when an idle one is closed at both ends at a time. Once
  more, and no more: the text itself may be what ends the server.
- 429 and 503: the server says that it did not take the request, and may say when it will.
- 502 and 504: what stands before the server had no answer from it. The work may still be run, so there are few.
- Everything else, a 500 and an answer that came too late among it: not again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["unreached", "dropped"] | int
"""What kept an attempt from having an answer, or its status."""

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 4.0
LONGEST_ASKED_S = 60.0
"""What `Retry-After` may ask for; a server that wants more is overloaded for whoever waits."""
_ATTEMPTS: Mapping[Outcome, int] = {"unreached": 4, "dropped": 2, 429: 6, 503: 6, 502: 3, 504: 2}


def retry_delay(attempt: int, outcome: Outcome, asked_s: float | None = None) -> float | None:
    """Seconds to wait before the next attempt.

    Args:
        attempt: Attempts made, from 1.
        outcome: What came of the last.
        asked_s: What `Retry-After` asks for, or None.

    Returns:
        A quarter of a second, twice as long each time, or what is asked for if that is longer; None to give up.
    """
    if attempt >= _ATTEMPTS.get(outcome, 1) or (asked_s is not None and asked_s > LONGEST_ASKED_S):
        return None
    delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (attempt - 1))
    return max(delay_s, asked_s or 0.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` asks for.

    Args:
        headers: Of an answer, by names in lower case. A date is measured from its `date`.

    Returns:
        Seconds, finite and at least 0; None if there is none that makes sense.
    """
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        then, now = _instant(text), _instant(headers.get("date", ""))
        if then is None or now is None:
            return None
        seconds = max(0.0, (then - now).total_seconds())
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _instant(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
