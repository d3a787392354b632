"""One request from its first attempt to its last; no IO."""

from __future__ import annotations

import math
import os
import re
import uuid
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httpx

from creditd.client import answers
from creditd.client.bodies import JSON, Body
from creditd.client.exceptions import CreditdError
from creditd.client.retry import is_retried, retry_delay
from creditd.client.steps import Pause, Reply, Send, Steps, Timing
from creditd.wire import codec
from creditd.wire.versions import package_version

LOCAL_URL = "local:"
DEFAULT_URL = "http://127.0.0.1:8400"
DEFAULT_DEADLINE_S = 300.0
_LONGEST_TIMEOUT_MS = 10**9
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@dataclass(frozen=True)
class Ending:
    """How the attempts at one request ended.

    Attributes:
        outcome: The last answer, or what the transport raised.
        attempts: How often the request was sent.
        error: What is raised, or None for a success.
    """

    outcome: Reply | httpx.RequestError
    attempts: int
    error: CreditdError | None

    @property
    def reply(self) -> Reply | None:
        """The last answer, if one came."""
        return self.outcome if isinstance(self.outcome, Reply) else None

    def success(self) -> Reply:
        """The answer; raises what there is instead."""
        if self.reply is None or self.error is not None:
            cause = self.outcome if isinstance(self.outcome, Exception) else None
            raise (self.error or RuntimeError("an ending without answer and error")) from cause
        return self.reply


class Attempts:
    """How a service is asked, as steps.

    Attributes:
        base_url: Address of the service, or `local:`.
        is_local: Whether everything is computed in this process.
        is_loopback: Whether the service is on this machine, where no proxy stands between.
        timing: Clocks and chance.
    """

    def __init__(self, base_url: str | None, api_key: str | None, deadline_s: float, timing: Timing | None) -> None:
        self.base_url = (base_url or os.environ.get("CREDITD_URL") or DEFAULT_URL).rstrip("/")
        self.is_local = self.base_url == LOCAL_URL
        address = urlsplit(self.base_url)
        if not self.is_local and (address.scheme not in {"http", "https"} or not _names_a_host(address)):
            raise ValueError(f"got base_url {self.base_url!r}; expected http://HOST:PORT, https://… or {LOCAL_URL!r}")
        self.is_loopback = address.hostname in {"127.0.0.1", "::1", "localhost"}
        self._api_key = (api_key or os.environ.get("CREDITD_API_KEY") or "").strip()
        self._deadline_s = checked_seconds("deadline_s", deadline_s)
        self.timing = timing or Timing()

    def exchange(self, path: str, body: Body | None, deadline_s: float | None, request_id: str) -> Steps[Ending]:
        """Send until there is a success, a failure for good, or no time left.

        Args:
            path: Of the route.
            body: None for a GET.
            deadline_s: Seconds allowed for everything. None: those of the constructor.
            request_id: Identity of the request, the same in all attempts.

        Returns:
            How it ended; nothing is raised for a failure.

        Raises:
            ValueError: If the deadline makes no sense.
        """
        deadline_s = self._deadline_s if deadline_s is None else checked_seconds("deadline_s", deadline_s)
        clock = self.timing.clock
        started, elapsed_s, attempts = clock(), 0.0, 0
        while True:
            left_s = deadline_s - elapsed_s
            outcome = yield from self._send(path, body, request_id, retries=attempts, timeout_s=left_s)
            attempts += 1
            if isinstance(outcome, Reply) and outcome.status == 200:
                return Ending(outcome, attempts, None)
            elapsed_s = clock() - started
            error = answers.failure(
                outcome,
                body,
                url=self.base_url,
                request_id=request_id,
                attempts=attempts,
                elapsed_s=elapsed_s,
                deadline_s=deadline_s,
            )
            delay_s = retry_delay(
                attempts,
                outcome.status if isinstance(outcome, Reply) else outcome,
                outcome.headers if isinstance(outcome, Reply) else {},
                elapsed_s=elapsed_s,
                deadline_s=deadline_s,
                chance=self.timing.chance(),
                wall_s=self.timing.wall(),
            )
            if delay_s is not None:
                yield Pause(delay_s)
                elapsed_s = clock() - started
            if delay_s is None or elapsed_s >= deadline_s:
                return Ending(outcome, attempts, error)

    def probe(self, timeout_s: float) -> Steps[str | None]:
        """Ask `/readyz` once.

        Args:
            timeout_s: Seconds to wait for the answer.

        Returns:
            Why the service is not ready, or None if it is.

        Raises:
            StatusError: If something answers that will never be ready, such as another service.
        """
        request_id = uuid.uuid4().hex
        outcome = yield from self._send("/readyz", None, request_id, retries=0, timeout_s=timeout_s)
        if isinstance(outcome, Reply) and outcome.status == 200:
            return None
        if is_retried(outcome.status if isinstance(outcome, Reply) else outcome):
            return str(outcome) if isinstance(outcome, Reply) else f"{type(outcome).__name__}: {outcome}"
        raise answers.failure(
            outcome,
            None,
            url=self.base_url,
            request_id=request_id,
            attempts=1,
            elapsed_s=0.0,
            deadline_s=timeout_s,
        )

    def _send(
        self, path: str, body: Body | None, request_id: str, *, retries: int, timeout_s: float
    ) -> Steps[Reply | httpx.RequestError]:
        """One attempt."""
        headers = {
            "Accept": JSON
            if body is None or body.media_type != codec.MEDIA_TYPE
            else f"{codec.MEDIA_TYPE}, {JSON};q=0.5",
            "User-Agent": f"creditd-python/{package_version()}",
            "X-Request-Id": request_id,
            "X-Request-Timeout-Ms": str(max(1, min(int(timeout_s * 1e3), _LONGEST_TIMEOUT_MS))),
            "X-Retry-Count": str(retries),
        }
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        if body is not None:
            headers["Content-Type"] = body.media_type
            headers["Content-Length"] = str(len(body.content))
        outcome = yield Send(
            method="GET" if body is None else "POST",
            url=f"{self.base_url}{path}",
            headers=headers,
            content=None if body is None else body.content,
            timeout_s=timeout_s,
        )
        if outcome is None or isinstance(outcome, list):
            raise RuntimeError("a request was answered by nothing")
        return outcome


def checked_seconds(name: str, seconds: float) -> float:
    """Seconds, if they make sense."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"got {name} {seconds!r}; expected a finite number of seconds above 0")
    return float(seconds)


def checked_request_id(request_id: str | None) -> str:
    """The identity of a request, a new one if none is given."""
    if request_id is None:
        return uuid.uuid4().hex
    if not _REQUEST_ID.fullmatch(request_id):
        raise ValueError(f"got request_id {request_id!r}; expected {_REQUEST_ID.pattern}")
    return request_id


def _names_a_host(address: SplitResult) -> bool:
    """Whether an address has a host, and no port or one that exists."""
    try:
        return bool(address.hostname) and address.port != 0
    except ValueError:
        return False
