"""A policy without a model: sensitivities that are a known function of tokens and of the version of its weights.

For tests and for trying out what stands around an engine, without torch. Nothing in the service chooses it by itself.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from creditd.engines.errors import (
    EngineError,
    EngineExpiredError,
    EngineFailedError,
    EngineOverloadedError,
    EngineStoppedError,
    ModelUnsuitableError,
    WeightVersionMismatchError,
    WeightVersionUnknownError,
)
from creditd.engines.model_spec import ModelSpec
from creditd.engines.policy_protocol import (
    Floats,
    MeasuredTokens,
    PreparedSensitivities,
    ReasonedTokens,
    SensitivityOptions,
    WeightPin,
    WeightState,
)
from creditd.engines.protocol import EngineStatus, EngineUsage, TextFailure
from creditd.engines.weight_files import StagedWeights, SwapReport

Measure: TypeAlias = Callable[[str, ReasonedTokens, SensitivityOptions], Sequence[float]]
"""Sensitivities of the measured tokens of a completion, by the version of the weights."""


@dataclass(frozen=True)
class _Work:
    """Items that fit, by their places."""

    items: tuple[tuple[int, ReasonedTokens], ...]
    options: SensitivityOptions


@dataclass
class _Job:
    """A work with what its answer needs."""

    prepared: PreparedSensitivities
    pin: WeightPin
    expires_s: float
    queued_s: float
    future: Future[MeasuredTokens] = field(default_factory=Future)

    @property
    def n_tokens(self) -> int:
        """What it costs."""
        return self.prepared.usage.tokens_computed

    def fail(self, error: EngineError) -> None:
        """Say why there is no answer, if anybody waits."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class FakePolicy:
    """A `SensitivityMeasurer` whose sensitivities are a function that is given.

    A character is a token, and its code point the token's id.

    Attributes:
        measured: Items of each work that was run.
    """

    def __init__(
        self,
        measure: Measure,
        spec: ModelSpec,
        *,
        version: str = "v0",
        pad_id: int | None = 0,
        eos_id: int | None = 3,
        vocabulary: int = sys.maxunicode + 1,
        per_work_s: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start the thread.

        Args:
            measure: Sensitivities of the measured tokens of a completion, by the version of the weights.
            spec: What it is called, and its limits.
            version: Of its first weights.
            pad_id: The padding token, or None.
            eos_id: The end of a text, or None.
            vocabulary: How many tokens there are.
            per_work_s: What a work costs.
            sleep: Spends the cost.
        """
        self._measure, self._spec, self._vocabulary = measure, spec, vocabulary
        self._pad_id, self._eos_id = pad_id, eos_id
        self._per_work_s, self._sleep = per_work_s, sleep
        self._state = WeightState(version)
        self._lock = threading.RLock()
        self._waiting: list[_Job] = []
        self._queued_tokens = 0
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="creditd-policy-fake")
        self.measured: list[int] = []

    @property
    def spec(self) -> ModelSpec:
        """What it is called, and its limits."""
        return self._spec

    @property
    def identity(self) -> str:
        """Name and version of its weights."""
        return repr((self._spec.id, self._spec.revision, self._state.current))

    @property
    def numerics(self) -> str:
        """Nothing decides last bits but the function."""
        return "fake"

    @property
    def is_remembered(self) -> bool:
        """Never: the weights change."""
        return False

    @property
    def weight_version(self) -> str:
        """The version of its current weights."""
        return self._state.current

    def weight_state(self) -> WeightState:
        """What can be said of its weights now."""
        return self._state

    def announce_weights(self, version: str) -> None:
        """Say that weights of this version will come."""
        with self._lock:
            state = self._state
            if version not in state.announced and not state.seen(version):
                self._state = WeightState(
                    state.current, (*state.announced, version), state.n_swaps, state.past, state.last_swap_s
                )

    def replace(self, version: str) -> None:
        """Have the weights of another version from now on, and run what waits for them."""
        with self._lock:
            state = self._state
            announced = tuple(name for name in state.announced if name != version)
            self._state = WeightState(version, announced, state.n_swaps + 1, state.past | {state.current}, 0.0)
            ready = [job for job in self._waiting if job.pin.version == version]
            self._waiting = [job for job in self._waiting if job.pin.version != version]
            for job in ready:
                self._thread.submit(self._run, job)

    def replace_weights(self, staged: StagedWeights) -> Future[SwapReport]:
        """Have the version of weights, whatever is in them."""
        skipped = staged.version == self._state.current
        if not skipped:
            self.replace(staged.version)
        report = SwapReport(staged.version, staged.n_bytes, len(staged.tensors), None, 0.0, 0.0, skipped)
        staged.release()
        staged.outcome.set_result(report)
        return staged.outcome

    def completion_text(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """The characters of code points, one for each token."""
        wrong = [one for one in ids if not _is_character(one, self._vocabulary)]
        if wrong:
            raise ValueError(f"got token {wrong[0]}; expected one of a vocabulary of {self._vocabulary}")
        return "".join(map(chr, ids)), [(place, place + 1) for place in range(len(ids))]

    def prepared_sensitivities(
        self,
        items: Sequence[ReasonedTokens],
        options: SensitivityOptions,
        *,
        alone: bool = False,
        checkpoint: Callable[[], None] = lambda: None,
    ) -> PreparedSensitivities:
        """Items that fit; as `SensitivityMeasurer.prepared_sensitivities`."""
        del alone  # one item changes no bit of another
        checkpoint()
        self._check(options)
        failures: dict[int, TextFailure] = {}
        usage = EngineUsage()
        for place, item in enumerate(items):
            failure = self._failure(item)
            if failure is not None:
                failures[place] = failure
                continue
            length = len(item.prompt_ids) + item.answer[1] - 1
            passes = 1 + (len(item.positions) if options.method == "perturbation" else options.noise_samples)
            tokens = passes * length
            usage += EngineUsage(evaluations=passes, tokens_computed=tokens, tokens_naive=tokens)
        fitting = tuple((place, item) for place, item in enumerate(items) if place not in failures)
        return PreparedSensitivities(len(items), failures, usage, _Work(fitting, options) if fitting else None)

    def sensitivities(
        self,
        prepared: PreparedSensitivities,
        expires_s: float = float("inf"),
        *,
        pin: WeightPin = WeightPin(),
    ) -> Future[MeasuredTokens]:
        """Ask for the function's values; as `SensitivityMeasurer.sensitivities`."""
        job = _Job(prepared, pin, expires_s, time.monotonic())
        with self._lock:
            if self._closed:
                raise EngineStoppedError("the engine is stopped")
            state = self._state
            if pin.version is not None and not (state.seen(pin.version) or pin.version in state.announced):
                raise WeightVersionUnknownError(
                    f"got a version that this policy never had; expected {state.current}, or one that is announced"
                )
            if self._queued_tokens and self._queued_tokens + job.n_tokens > self._spec.max_queued_tokens:
                raise EngineOverloadedError(f"{self._queued_tokens} tokens wait already; try again later", 1.0)
            self._queued_tokens += job.n_tokens
            job.future.add_done_callback(lambda _: self._count_off(job.n_tokens))
            if pin.version in {None, state.current}:
                self._thread.submit(self._run, job)
            elif pin.if_not_ready == "fail":
                job.fail(_mismatch(state.current))
            else:
                self._waiting.append(job)
        return job.future

    def status(self) -> EngineStatus:
        """What can be said of it now."""
        return EngineStatus(
            spec=self._spec,
            backend="fake",
            n_bytes=None,
            max_tokens=self._spec.max_tokens,
            reads_tries=None,
            attention=None,
            working_bytes=None,
            queued_tokens=self._queued_tokens,
            n_batches=len(self.measured),
            silent_s=0.0,
            alive=not self._closed,
        )

    def close(self, timeout_s: float | None = None) -> None:
        """End the thread, and fail what waits."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, []
        for job in waiting:
            job.fail(EngineStoppedError("the engine is stopped"))
        self._thread.shutdown(wait=timeout_s is None or timeout_s > 0, cancel_futures=True)

    def _count_off(self, n_tokens: int) -> None:
        with self._lock:
            self._queued_tokens -= n_tokens

    def _check(self, options: SensitivityOptions) -> None:
        """Refuse options that no item can be measured by."""
        if options.method != "perturbation":
            return
        if options.perturbation_id is None and self._pad_id is None:
            raise ModelUnsuitableError("the tokenizer has no padding token; expected a token_id to perturb with")
        if options.perturbation_id is None and self._pad_id == self._eos_id:
            raise ModelUnsuitableError(
                "the padding token is the end of a text as well; expected a token_id to perturb with"
            )
        if options.perturbation_id is not None and options.perturbation_id >= self._vocabulary:
            raise ModelUnsuitableError(
                f"got token {options.perturbation_id} to perturb with; expected one below {self._vocabulary}"
            )

    def _failure(self, item: ReasonedTokens) -> TextFailure | None:
        """Why an item cannot be measured."""
        longest, length = self._spec.max_tokens, len(item.prompt_ids) + len(item.completion_ids)
        if longest is not None and length > longest:
            return TextFailure("context_exceeded", f"got {length} tokens; expected at most {longest}")
        highest = max((int(ids.max()) for ids in (item.prompt_ids, item.completion_ids) if len(ids)), default=0)
        if highest >= self._vocabulary:
            return TextFailure("invalid_request", f"got token {highest}; expected one below {self._vocabulary}")
        return None

    def _run(self, job: _Job) -> None:
        """Measure one work, for the weights that are there."""
        if not job.future.set_running_or_notify_cancel():
            return
        begun_s, version = time.monotonic(), self._state.current
        refusal: EngineError | None = None
        if job.pin.version not in {None, version}:
            refusal = _mismatch(version)  # they were replaced once more
        elif begun_s > job.expires_s:
            refusal = EngineExpiredError("the deadline passed before the model was asked")
        if refusal is not None:
            job.future.set_exception(refusal)
            return
        try:
            job.future.set_result(self._measured(job, version, begun_s))
        except Exception as error:  # noqa: BLE001 - whatever the function raises is a failure of the model
            failure = EngineFailedError(f"{type(error).__name__} in the model")
            failure.__cause__ = error
            job.future.set_exception(failure)

    def _measured(self, job: _Job, version: str, begun_s: float) -> MeasuredTokens:
        """The function's values, once the time of the work has passed."""
        self._sleep(self._per_work_s)
        prepared, failures = job.prepared, dict(job.prepared.failures)
        found: list[Floats] = [np.full(0, np.nan)] * prepared.n_items
        spreads: list[float | None] = [None] * prepared.n_items
        work: _Work | None = prepared.work
        for place, item in () if work is None else work.items:
            options = prepared.work.options
            values = np.array(self._measure(version, item, options), dtype=np.float64)
            if not np.isfinite(values).all():
                failures[place] = TextFailure("non_finite_utility", "a sensitivity is not a finite number")
                values = np.full(len(item.positions), np.nan)
            elif options.method == "gradient" and options.noise_samples > 1:
                spreads[place] = 0.0
            found[place] = values
        self.measured.append(0 if work is None else len(work.items))
        times = EngineUsage(engine_s=time.monotonic() - begun_s, queue_s=begun_s - job.queued_s)
        return MeasuredTokens(tuple(found), tuple(spreads), version, failures, prepared.usage + times)


def _is_character(code: int, vocabulary: int) -> bool:
    """Whether a token has a character: halves of pairs have none."""
    return 0 <= code < min(vocabulary, sys.maxunicode + 1) and not 0xD800 <= code < 0xE000


def _mismatch(current: str) -> WeightVersionMismatchError:
    return WeightVersionMismatchError(f"the policy's weights have the version {current}; expected the pinned one")
