"""Calls of a remote model: pooled connections, times that end, repeats where they are safe, answers read to a limit."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Literal

import httpx
import numpy as np

from creditd.engines.errors import EngineFailedError, EngineOverloadedError, ModelUnsuitableError
from creditd.engines.model_spec import ModelSpec, RemoteChoice
from creditd.engines.protocol import TextFailure
from creditd.engines.remote_retry import FIRST_DELAY_S, retry_after, retry_delay
from creditd.engines.remote_wire import Floats, Refusal, Text, body, refusal, rewards, served_models

InvalidURL = httpx.InvalidURL
CONNECT_S = 5.0
"""How long a connection may take to come about."""
_IDLE_S = 4.0
"""How long an idle connection is kept: vLLM closes them after 5 s, and who sends into that has no answer."""
_MOST_BYTES, _MOST_BYTES_PER_TEXT = 1 << 22, 1 << 16
"""Of an answer: some thousand labels for each text, and as much again as anything else needs."""
_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_DROPPED = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
_PROBE = "creditd"
"""What is scored to see whether a model can be."""
_MOST_NAMES, _MOST_NAME = 8, 100


class UnreachableError(EngineFailedError):
    """The server gave no answer, or failed itself; the next request may find it well."""


@dataclass
class Scores:
    """What came of texts.

    Attributes:
        values: Shape (texts,), float64; NaN where there is a failure.
        failures: Why a text has none, by its place.
        n_tokens: Tokens of the answers.
        seconds: Of the answers.
    """

    values: Floats
    failures: dict[int, TextFailure] = field(default_factory=dict)
    n_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: httpx.Headers
    content: bytes
    seconds: float


@dataclass(frozen=True)
class _NoReply:
    outcome: Literal["unreached", "dropped"]
    cause: Exception


class RemoteCalls:
    """The connections to one remote model.

    Attributes:
        n_answers: Answers of the server, refusals among them.
        last_answer_s: When the last of them came, monotonic seconds; at first, when this was made.
        max_tokens: Longest sequence, as `/v1/models` says; None before, and where it does not.
    """

    def __init__(self, spec: ModelSpec, remote: RemoteChoice) -> None:
        """Open nothing yet.

        Args:
            spec: The model.
            remote: Where it is.
        """
        self._spec, self._remote = spec, remote
        # Whatever answers on this machine is not behind a proxy.
        proxied = not _is_loopback(httpx.URL(remote.url).host)
        self._client = httpx.AsyncClient(
            base_url=remote.url,
            headers={"authorization": f"Bearer {remote.key}"} if remote.key else {},
            limits=httpx.Limits(
                max_connections=remote.max_connections,
                max_keepalive_connections=remote.max_connections,
                keepalive_expiry=_IDLE_S,
            ),
            # The whole attempt has a time of its own: a timeout of each read would never end a drip.
            timeout=httpx.Timeout(None, connect=min(CONNECT_S, remote.timeout_s)),
            trust_env=proxied,
        )
        self._places = asyncio.Semaphore(remote.max_connections)
        self.n_answers = 0
        self.last_answer_s = time.monotonic()
        self.max_tokens: int | None = None

    async def score(
        self,
        texts: Sequence[Text],
        begun: Callable[[], None] = lambda: None,
        *,
        patient: bool = True,
        special: bool = True,
    ) -> Scores:
        """The scores of texts of one request.

        A request that is refused because of one of its texts is asked again in halves, until that text is alone: the
        server refuses before it computes, and does not say which it was.

        Args:
            texts: Strings, or one conversation.
            begun: Called when one of the connections is free for them.
            patient: Whether the server is asked again where that is safe.
            special: Whether its tokenizer adds its special tokens around strings.

        Returns:
            A score or a failure of each.

        Raises:
            EngineOverloadedError: If the server takes nothing now.
            EngineFailedError: If it fails, or answers what is no answer.

        Cost:
            One request, and at most two for each text beside if some are refused.
        """
        content = body(self._spec, texts, special=special)
        reply = await self._asked("POST", f"/{self._remote.route}", content, len(texts), begun, patient=patient)
        if reply.status == httpx.codes.OK:
            found = rewards(self._spec, reply.content, len(texts))
            failures = {int(place): _non_finite() for place in np.flatnonzero(np.isnan(found.values))}
            return Scores(found.values, failures, found.n_tokens, reply.seconds)
        refused = refusal(reply.status, reply.content)
        if len(texts) == 1 and (refused.reason is not None or refused.status in {400, 422}):
            return Scores(np.full(1, np.nan), {0: self._text_failure(refused)})
        if refused.reason is None:
            raise self._failure(refused, reply.headers)
        half = len(texts) // 2
        first = await self.score(texts[:half], begun, patient=patient, special=special)
        second = await self.score(texts[half:], begun, patient=patient, special=special)
        return Scores(
            np.concatenate([first.values, second.values]),
            first.failures | {half + place: failure for place, failure in second.failures.items()},
            first.n_tokens + second.n_tokens,
            first.seconds + second.seconds,
        )

    async def check(self) -> str | None:
        """Ask for the server's health and models, and for one score.

        Returns:
            None if everything is as registered; a sentence if the server cannot be asked now.

        Raises:
            ModelUnsuitableError: If the server has another model, another key, or scores that are no rewards.
        """
        try:
            health = await self._asked("GET", "/health", None, 1, patient=False)
            if health.status in {500, 503}:
                return f"{self._whose} is not well: HTTP {health.status} of /health"
            listed = await self._asked("GET", "/v1/models", None, 1, patient=False)
            if listed.status != httpx.codes.OK:
                raise self._failure(refusal(listed.status, listed.content), listed.headers)
            self._take(served_models(listed.content))
            await self.score([_PROBE], patient=False)
        except (UnreachableError, EngineOverloadedError) as error:
            return str(error)
        except EngineFailedError as error:
            raise ModelUnsuitableError(str(error)) from error
        return None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    @property
    def _whose(self) -> str:
        return f"the remote model {self._spec.id!r}"

    def _take(self, models: dict[str, int | None]) -> None:
        """Find the registered model among those that are served."""
        name = self._remote.model or next(iter(models), "")
        if name not in models:
            got = ", ".join(repr(one[:_MOST_NAME]) for one in list(models)[:_MOST_NAMES]) or "none"
            raise ModelUnsuitableError(f"{self._whose} is not served there: got {got}; expected {name!r}")
        self.max_tokens = models[name]

    async def _asked(
        self,
        method: str,
        path: str,
        content: bytes | None,
        n_texts: int,
        begun: Callable[[], None] = lambda: None,
        *,
        patient: bool,
    ) -> _Reply:
        """The server's answer, whatever it is, after the repeats that are safe."""
        attempt = 0
        while True:
            attempt += 1
            async with self._places:
                begun()
                reply = await self._tried(method, path, content, n_texts)
            outcome = reply.status if isinstance(reply, _Reply) else reply.outcome
            asked_s = retry_after(reply.headers) if isinstance(reply, _Reply) else None
            delay_s = retry_delay(attempt, outcome, asked_s) if patient else None
            if delay_s is not None:
                await asyncio.sleep(delay_s)
            elif isinstance(reply, _Reply):
                return reply
            else:
                kind = type(reply.cause).__name__
                raise UnreachableError(
                    f"{self._whose} cannot be reached: {kind}, in {attempt} attempts"
                ) from reply.cause

    async def _tried(self, method: str, path: str, content: bytes | None, n_texts: int) -> _Reply | _NoReply:
        """One attempt, within its time; what may be repeated is returned."""
        try:
            return await asyncio.wait_for(self._attempt(method, path, content, n_texts), self._remote.timeout_s)
        except asyncio.TimeoutError as error:
            raise UnreachableError(f"{self._whose} did not answer in {self._remote.timeout_s:g} s") from error
        except _UNREACHED as error:
            return _NoReply("unreached", error)
        except _DROPPED as error:
            return _NoReply("dropped", error)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise EngineFailedError(f"{self._whose} could not be asked: {type(error).__name__}") from error

    async def _attempt(self, method: str, path: str, content: bytes | None, n_texts: int) -> _Reply:
        headers = {"content-type": "application/json"} if content is not None else {}
        most, begun_s = _MOST_BYTES + n_texts * _MOST_BYTES_PER_TEXT, time.monotonic()
        async with self._client.stream(method, path, content=content, headers=headers) as response:
            read = bytearray()
            try:
                async for part in response.aiter_bytes():
                    read += part
                    if len(read) > most:
                        raise EngineFailedError(f"{self._whose} answered with more than {most} bytes")
            except _DROPPED as error:
                raise UnreachableError(f"{self._whose} broke off its answer") from error
        self.n_answers += 1
        self.last_answer_s = time.monotonic()
        return _Reply(response.status_code, response.headers, bytes(read), self.last_answer_s - begun_s)

    def _text_failure(self, refused: Refusal) -> TextFailure:
        """What is said of a text that is refused by itself."""
        if refused.reason == "too_long":
            longest = "" if self.max_tokens is None else f", 1 to {self.max_tokens} tokens"
            return TextFailure("context_exceeded", f"longer than the remote model reads{longest}; nothing is cut")
        if refused.reason == "empty":
            return TextFailure("context_exceeded", "no token at all; the model reads at least 1")
        if refused.reason == "non_finite":
            return _non_finite()
        return TextFailure("engine_failed", f"the remote model refused it: {refused.name}")

    def _failure(self, refused: Refusal, headers: httpx.Headers) -> EngineFailedError | EngineOverloadedError:
        """What a status means for whoever asked."""
        status, said = refused.status, f"{self._whose} answered {refused.name}"
        if status in {429, 503}:
            wait_s = retry_after(headers)
            return EngineOverloadedError(f"{said}: it takes nothing now", max(wait_s or 0.0, 4 * FIRST_DELAY_S))
        if status in {401, 403}:
            return EngineFailedError(f"{said}; expected remote.key to be a key of the server")
        if status == 404:
            route, model = self._remote.route, self._remote.model
            return EngineFailedError(
                f"{said}; expected remote.route {route!r} to be there, with remote.model {model!r}"
            )
        if status in {405, 501}:
            return EngineFailedError(f"{said}; expected a model for classification at /{self._remote.route}")
        if status >= 500:
            return UnreachableError(said)
        return EngineFailedError(f"{said}; expected 200")


def _non_finite() -> TextFailure:
    return TextFailure("non_finite_utility", "the model's score is not a finite number")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def together(calls: Sequence[Coroutine[object, object, None]]) -> None:
    """Run calls at a time; if one fails, or nobody waits any more, end them all before that is said.

    Args:
        calls: Coroutines that have not begun.

    Raises:
        Exception: What the first of them that fails raises.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
