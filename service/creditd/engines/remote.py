"""A reward model that another server runs with vLLM: a queue with a limit, and a thread that asks.

Whoever waits has an answer or an error by their deadline, whatever the server does: each attempt has a time, repeats
are few, and the deadline ends them all.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from creditd.engines.batching import LONGEST_RETRY_S
from creditd.engines.errors import (
    EngineError,
    EngineExpiredError,
    EngineFailedError,
    EngineOverloadedError,
    EngineStoppedError,
    ModelUnsuitableError,
)
from creditd.engines.model_spec import ModelSpec
from creditd.engines.protocol import (
    AttendedTexts,
    EngineStatus,
    EngineUsage,
    PreparedAttention,
    PreparedTexts,
    ScoredTexts,
    TextFailure,
    VariantTexts,
)
from creditd.engines.remote_calls import InvalidURL, RemoteCalls, Scores, together
from creditd.engines.remote_texts import NO_ATTENTION, NO_TOKENIZER, RemoteTexts, parts, remote_texts

CHECK_S = 5.0
"""How long a server is waited for when the service starts."""
_FIRST_GUESS = 1e4
"""Tokens per second before any work has been timed."""
_MEMORY = 0.8
"""Share of the old estimate of tokens per second in the new one."""
_GRACE_S = 5.0
"""How long the thread may take to end what it was told to."""


@dataclass(eq=False)
class _Job:
    prepared: PreparedTexts
    work: RemoteTexts
    expires_s: float
    queued_s: float
    begun_s: float | None = None
    task: asyncio.Task[None] | None = None
    answer: Future[ScoredTexts] = field(default_factory=Future)

    def begin(self) -> None:
        """Note that a connection is free for it."""
        if self.begun_s is None:
            self.begun_s = time.monotonic()


class RemoteEngine:
    """A model on another server and the thread that asks it: a `TextScorer`."""

    def __init__(self, spec: ModelSpec) -> None:
        """Start the thread; the server is not asked for anything yet.

        Args:
            spec: A remote model for rewards.

        Raises:
            ModelUnsuitableError: If the model is not remote, or not for rewards, or its url is none.
        """
        if spec.remote is None or spec.kind != "reward":
            raise ModelUnsuitableError(f"got {spec.id!r}, a {spec.kind} model; expected a remote reward model")
        self._spec, self._remote = spec, spec.remote
        try:
            self._calls = RemoteCalls(spec, spec.remote)
        except InvalidURL as error:
            raise ModelUnsuitableError(f"remote.url of {spec.id!r} is no url; expected http://host:port") from error
        self._changed = threading.Lock()
        self._closed = False
        self._jobs: set[_Job] = set()
        self._queued_tokens = 0
        self._busy_since_s = time.monotonic()
        self._tokens_per_s = _FIRST_GUESS
        self._loop = asyncio.new_event_loop()
        self._ending: asyncio.Future[float] = self._loop.create_future()
        self._thread = threading.Thread(target=self._serve, name=f"creditd-engine-{spec.id}", daemon=True)
        self._thread.start()

    @property
    def spec(self) -> ModelSpec:
        """The model, as it was registered."""
        return self._spec

    @property
    def identity(self) -> str:
        """What decides a score beside the text, as far as it is known here: the server, the model's name, the head."""
        spec, remote = self._spec, self._remote
        return repr((spec.id, spec.revision, remote.url, remote.route, remote.model, spec.chat_template, spec.head))

    @property
    def numerics(self) -> str:
        """What rounds there is not known here."""
        return "remote"

    @property
    def is_remembered(self) -> bool:
        """Whether its operator says by a revision which weights the server has: nothing else does."""
        return self._spec.is_remembered(self._spec.chat_template)

    def check(self, timeout_s: float = CHECK_S) -> str | None:
        """Whether the server is there with this model, so that a wrong setting is said when the service starts.

        Args:
            timeout_s: How long it is waited for.

        Returns:
            None if it scores as registered; a sentence if it does not answer yet, which is no reason not to start.

        Raises:
            ModelUnsuitableError: If it serves another model, refuses the key, or has no scores that are rewards.
            EngineStoppedError: If the engine is closed.

        Cost:
            Three requests, one of them a score of one word.
        """
        if not self.is_alive:
            raise EngineStoppedError("the engine is stopped")

        async def checked() -> str | None:
            try:
                return await asyncio.wait_for(self._calls.check(), timeout_s)
            except asyncio.TimeoutError:
                return f"the remote model {self._spec.id!r} did not answer in {timeout_s:g} s"

        try:
            return asyncio.run_coroutine_threadsafe(checked(), self._loop).result(timeout_s + _GRACE_S)
        except CancelledError as error:
            raise EngineStoppedError("the engine is stopped") from error

    def prepared(
        self, texts: Sequence[VariantTexts], *, alone: bool = False, checkpoint: Callable[[], None] = lambda: None
    ) -> PreparedTexts:
        """Texts as the server is asked for them: whole, each different one once.

        How long a text is for the model is not known here: the server says so, of each by itself.

        Args:
            texts: Prompts with their completions.
            alone: Whether each prompt has to be run by itself, of which nobody can be sure here.
            checkpoint: Called before the work; what it raises ends it.

        Returns:
            The work; its usage has the different texts, and no tokens.

        Raises:
            ModelUnsuitableError: If a prompt has messages and the server takes none, or `alone` is asked for.
        """
        checkpoint()
        if alone:
            raise ModelUnsuitableError(
                "which texts another server runs together is not known; expected deterministic to be false"
            )
        return remote_texts(texts, takes_messages=self._remote.takes_messages)

    def submit(self, prepared: PreparedTexts, expires_s: float = float("inf")) -> Future[ScoredTexts]:
        """Ask for the rewards of prepared texts.

        Admission is by tokens as they are guessed here, four characters each: what the texts are to the model is known
        when it has answered.

        Args:
            prepared: From `prepared`.
            expires_s: When nobody waits any more, on `time.monotonic`.

        Returns:
            Rewards to come, or an `EngineError`. Cancelling it ends the calls.

        Raises:
            EngineOverloadedError: If more tokens wait than the limit; work that finds an idle engine is taken whatever
                its size.
            EngineStoppedError: If the engine is closed, or its thread has ended.
        """
        work = prepared.work
        with self._changed:
            if not self.is_alive:
                raise EngineStoppedError("the engine is stopped")
            if not isinstance(work, RemoteTexts):
                answer: Future[ScoredTexts] = Future()
                answer.set_result(ScoredTexts(np.full(prepared.n_variants, np.nan), dict(prepared.failures)))
                return answer
            if self._queued_tokens and self._queued_tokens + work.n_tokens > self._spec.max_queued_tokens:
                raise EngineOverloadedError(
                    f"about {self._queued_tokens} tokens wait for this model; expected at most "
                    f"{self._spec.max_queued_tokens} with those of the request",
                    retry_after_s=min(LONGEST_RETRY_S, max(1.0, self._queued_tokens / self._tokens_per_s)),
                )
            job = _Job(prepared, work, expires_s, time.monotonic())
            if not self._jobs:
                self._busy_since_s = job.queued_s
            self._jobs.add(job)
            self._queued_tokens += work.n_tokens
            self._loop.call_soon_threadsafe(self._start, job)
        job.answer.add_done_callback(lambda answer: self._drop(job) if answer.cancelled() else None)
        return job.answer

    def prepared_attention(
        self, texts: Sequence[VariantTexts], *, alone: bool = False, checkpoint: Callable[[], None] = lambda: None
    ) -> PreparedAttention:
        """Refused, as `attention` is: such a server gives scores alone."""
        del texts, alone, checkpoint
        raise ModelUnsuitableError(NO_ATTENTION)

    def attention(self, prepared: PreparedAttention, expires_s: float = float("inf")) -> Future[AttendedTexts]:
        """Refused: nothing can have been prepared for it."""
        del prepared, expires_s
        raise ModelUnsuitableError(NO_ATTENTION)

    def token_text(self, token_id: int) -> str:
        """Refused."""
        raise ModelUnsuitableError(f"got token {token_id}; {NO_TOKENIZER}")

    def status(self) -> EngineStatus:
        """What can be said of the engine now; a server that is wedged shows in `silent_s`."""
        calls = self._calls
        with self._changed:
            since_s = max(calls.last_answer_s, self._busy_since_s) if self._jobs else None
            return EngineStatus(
                spec=self._spec,
                backend="remote",
                n_bytes=None,
                max_tokens=calls.max_tokens,
                reads_tries=None,
                attention=None,
                working_bytes=None,
                queued_tokens=self._queued_tokens,
                n_batches=calls.n_answers,
                silent_s=0.0 if since_s is None else time.monotonic() - since_s,
                alive=self.is_alive,
                is_remembered=self.is_remembered,
            )

    @property
    def is_alive(self) -> bool:
        """Whether the thread can still answer."""
        return self._thread.is_alive() and not self._closed

    def close(self, timeout_s: float | None = None) -> None:
        """Finish what the server was asked for, fail what waits, and end the thread.

        Args:
            timeout_s: How long answers are waited for; None: as long as one attempt may take.
        """
        patience_s = self._remote.timeout_s if timeout_s is None else timeout_s
        with self._changed:
            self._closed = True
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._end, patience_s)
        self._thread.join(patience_s + _GRACE_S)
        self._fail_all(EngineStoppedError("the engine was stopped before this was answered"))

    def _end(self, patience_s: float) -> None:
        if not self._ending.done():
            self._ending.set_result(patience_s)

    def _serve(self) -> None:
        try:
            self._loop.run_until_complete(self._until_closed())
        finally:
            # Whatever ends the thread, nobody is left waiting for it.
            with self._changed:
                self._closed = True
                self._loop.close()
            self._fail_all(EngineStoppedError("the thread of the engine has ended"))

    async def _until_closed(self) -> None:
        try:
            patience_s = await self._ending
            for job in self._running():
                if job.begun_s is None:
                    self._finish(job, EngineStoppedError("the engine was stopped before this was asked"))
                    self._cancel(job)
            tasks = [job.task for job in self._running() if job.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=patience_s)
        finally:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            await self._calls.close()

    def _running(self) -> list[_Job]:
        with self._changed:
            return list(self._jobs)

    def _start(self, job: _Job) -> None:
        if not job.answer.done():
            job.task = self._loop.create_task(self._run(job))

    def _drop(self, job: _Job) -> None:
        """End the calls of work that nobody waits for."""
        self._finish(job, EngineStoppedError("nobody waits for this any more"))
        with self._changed:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._cancel, job)

    def _cancel(self, job: _Job) -> None:
        if job.task is not None:
            job.task.cancel()

    async def _run(self, job: _Job) -> None:
        """Have a work answered, whatever happens to it."""
        outcome: ScoredTexts | EngineError = EngineStoppedError("the engine was stopped before this was answered")
        left_s = job.expires_s - time.monotonic()
        try:
            if left_s <= 0:
                raise asyncio.TimeoutError  # noqa: TRY301 - as if it had come to pass a moment later
            outcome = await asyncio.wait_for(self._scored(job), left_s if left_s != float("inf") else None)
        except asyncio.TimeoutError:
            outcome = EngineExpiredError("the deadline passed before the remote model had answered")
        except EngineError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody is left waiting for it
            outcome = EngineFailedError(f"the remote model could not be asked: {type(error).__name__}")
            outcome.__cause__ = error
        finally:
            self._finish(job, outcome)

    async def _scored(self, job: _Job) -> ScoredTexts:
        """The scores of a work: some of its requests at a time, so that others have their turn between."""
        distinct = job.work.distinct
        requests = parts(distinct, self._remote.texts_per_request)
        todo, found = iter(requests), list[tuple[list[int], Scores]]()

        async def ask() -> None:
            for part in todo:
                texts = [distinct[place] for place in part]
                found.append((part, await self._calls.score(texts, job.begin, special=job.work.adds_special_tokens)))

        await together([ask() for _ in range(min(self._remote.max_connections, len(requests)))])
        values, failures = np.full(len(distinct), np.nan), dict[int, TextFailure]()
        for part, scores in found:
            values[part] = scores.values
            failures.update({part[place]: failure for place, failure in scores.failures.items()})
        return self._answered(job, values, failures, [scores for _, scores in found])

    def _answered(
        self, job: _Job, values: NDArray[np.float64], failures: dict[int, TextFailure], answers: list[Scores]
    ) -> ScoredTexts:
        prepared, work = job.prepared, job.work
        rewards, why = np.full(prepared.n_variants, np.nan), dict(prepared.failures)
        fitting = [place for place in range(prepared.n_variants) if place not in prepared.failures]
        rewards[fitting] = values[work.places]
        why.update(
            {
                place: failures[text]
                for place, text in zip(fitting, work.places.tolist(), strict=True)
                if text in failures
            }
        )
        n_tokens, now_s = sum(scores.n_tokens for scores in answers), time.monotonic()
        begun_s = now_s if job.begun_s is None else job.begun_s
        if now_s > begun_s:
            speed = work.n_tokens / (now_s - begun_s)
            self._tokens_per_s = _MEMORY * self._tokens_per_s + (1 - _MEMORY) * speed
        usage = prepared.usage + EngineUsage(
            tokens_computed=n_tokens,
            tokens_naive=round(n_tokens * work.naive_share),
            engine_s=sum(scores.seconds for scores in answers),
            queue_s=begun_s - job.queued_s,
        )
        return ScoredTexts(rewards, why, usage)

    def _finish(self, job: _Job, outcome: ScoredTexts | EngineError) -> None:
        """Answer a work once, from whichever thread."""
        with self._changed:
            if job not in self._jobs:
                return
            self._jobs.remove(job)
            self._queued_tokens -= job.work.n_tokens
        if job.answer.set_running_or_notify_cancel():
            if isinstance(outcome, ScoredTexts):
                job.answer.set_result(outcome)
            else:
                job.answer.set_exception(outcome)

    def _fail_all(self, error: EngineStoppedError) -> None:
        for job in self._running():
            self._finish(job, error)
