"""A policy of this process: what is asked of its weights, the queue, and weights that are replaced while it answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import transformers
from numpy.typing import NDArray

from creditd.engines.batching import answer_of
from creditd.engines.completion_text import completion_text
from creditd.engines.errors import EngineStoppedError, ModelUnsuitableError
from creditd.engines.live_weights import LiveWeights
from creditd.engines.local_engine import LocalEngine
from creditd.engines.model_spec import ModelSpec
from creditd.engines.perturbation import padding_to_perturb
from creditd.engines.policy_loading import LoadedPolicy, load_policy
from creditd.engines.policy_protocol import (
    MeasuredTokens,
    PreparedSensitivities,
    ReasonedTokens,
    SensitivityOptions,
    WeightPin,
    WeightState,
)
from creditd.engines.policy_work import Distinct, PolicyScorer, PolicyWork, sliced
from creditd.engines.protocol import EngineUsage, TextFailure
from creditd.engines.weight_files import StagedWeights, SwapReport
from creditd.engines.weight_versions import WeightVersions
from creditd.engines.work_queue import Answered

Floats: TypeAlias = NDArray[np.float64]

SLICE_BATCHES = 4
"""Batches of tokens that one request has in a row before others have their turn."""


@dataclass(frozen=True)
class _Asked:
    """What was prepared.

    Attributes:
        slices: Works that are run one at a time.
        lengths: Numbers that come out for each different item.
        places: Which different item each fitting item is; −1 for one without measured tokens.
    """

    slices: tuple[PolicyWork, ...]
    lengths: tuple[int, ...]
    places: tuple[int, ...]


class PolicyEngine(LocalEngine[LoadedPolicy, PolicyWork]):
    """A loaded policy and the thread that runs it: a `SensitivityMeasurer` whose weights can be replaced."""

    def __init__(self, loaded: LoadedPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the thread.

        Args:
            loaded: The model.
            clock: Monotonic seconds.
        """
        self._versions = WeightVersions(loaded.fingerprint)
        # A tokenizer is changed by being used: one thread at a time.
        self._alone = threading.Lock()
        super().__init__(loaded, PolicyScorer(loaded), clock, self._versions)
        self._weights = LiveWeights(loaded.model, self._batcher, self._versions, name=loaded.spec.id)

    @classmethod
    def load(cls, spec: ModelSpec, root: Path) -> PolicyEngine:
        """The engine of a registered policy.

        Args:
            spec: The model.
            root: Directory that all models are in.

        Raises:
            ModelUnsuitableError: If it cannot serve.

        Cost:
            Reading the weights, and some thousand tokens.
        """
        return cls(load_policy(spec, root))

    @property
    def identity(self) -> str:
        """What decides its numbers beside tokens and the version of its weights: code, type, attention, length."""
        spec = self._loaded.spec
        files = (self._loaded.fingerprint, transformers.__version__, self._loaded.tokenizer_identity)
        return repr((*files, spec.revision, spec.dtype, spec.attention, self._loaded.max_tokens))

    @property
    def weight_version(self) -> str:
        """The version of its current weights."""
        return self._versions.current

    def weight_state(self) -> WeightState:
        """What can be said of its weights now."""
        return self._versions.state()

    def announce_weights(self, version: str) -> None:
        """Say that weights of this version will come, so that work may wait for them."""
        self._versions.announce(version)

    def replace_weights(self, staged: StagedWeights) -> Future[SwapReport]:
        """Verify weights and make them the policy's; as `LiveWeights.replace`."""
        return self._weights.replace(staged)

    def close(self, timeout_s: float | None = None) -> None:
        """Finish the batch that is being run, fail what waits, and end the threads."""
        super().close(timeout_s)
        self._weights.close()

    def completion_text(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """The text of a completion, and the characters of each of its tokens.

        Special tokens have none. Tokens that make a character together have it together.

        Args:
            ids: T token ids.

        Raises:
            ValueError: If a token is not in the vocabulary.
        """
        wrong = [token for token in ids if not 0 <= token < self._loaded.n_embeddings]
        if wrong:
            raise ValueError(f"got token {wrong[0]}; expected one of a vocabulary of {self._loaded.n_embeddings}")
        with self._alone:
            return completion_text(self._loaded.tokenizer, ids)

    def prepared_sensitivities(
        self,
        items: Sequence[ReasonedTokens],
        options: SensitivityOptions,
        *,
        alone: bool = False,
        checkpoint: Callable[[], None] = lambda: None,
    ) -> PreparedSensitivities:
        """Items as the model runs them; as `SensitivityMeasurer.prepared_sensitivities`.

        Items that are the same are measured once.

        Args:
            items: Completions with their measured positions and answers.
            options: How they are measured.
            alone: Whether each item is run by itself, so that no other changes a bit of its sensitivities. By
                perturbation it always is.
            checkpoint: Called before each item, in every loop over them; what it raises ends the work.

        Raises:
            ModelUnsuitableError: If there is no token to perturb with.
            ValueError: If the options have values outside their ranges.

        Cost:
            O(tokens of all items).
        """
        options = self._checked(options)
        failures: dict[int, TextFailure] = {}
        measured: list[ReasonedTokens] = []
        places: list[int] = []
        for place, item in enumerate(items):
            checkpoint()
            failure = self._failure(item)
            if failure is not None:
                failures[place] = failure
            elif not len(item.positions):
                places.append(-1)
            else:
                places.append(len(measured))
                measured.append(item)
        distinct = Distinct.of(measured, checkpoint)
        work = PolicyWork(distinct.items, options, alone)
        most_tokens = SLICE_BATCHES * self.spec.batch_tokens
        slices = sliced(work, self._loaded, most_tokens, checkpoint) if distinct.items else []
        usage = EngineUsage(
            evaluations=sum(_passes(item, options) for item in distinct.items),
            tokens_computed=sum(one.n_tokens or 0 for one in slices),
            tokens_naive=sum((len(one.prompt_ids) + one.answer[1] - 1) * _passes(one, options) for one in measured),
        )
        asked = _Asked(tuple(slices), work.lengths, tuple(one if one < 0 else distinct.places[one] for one in places))
        return PreparedSensitivities(len(items), failures, usage, asked)

    def sensitivities(
        self,
        prepared: PreparedSensitivities,
        expires_s: float = float("inf"),
        *,
        pin: WeightPin = WeightPin(),
    ) -> Future[MeasuredTokens]:
        """Ask for the sensitivities of prepared items; as `SensitivityMeasurer.sensitivities`.

        Args:
            prepared: From `prepared_sensitivities`.
            expires_s: When nobody waits any more, on the clock.
            pin: Which weights the answer has to be of, also where nothing is left to measure.

        Raises:
            EngineOverloadedError: If more tokens wait than the limit.
            EngineStoppedError: If the engine is closed, or its thread has ended.
            WeightVersionUnknownError: If the pinned version was neither announced nor ever current.

        Cost:
            O(slices), so that it may be called where nothing may take long.
        """
        asked: _Asked = prepared.work
        version = self.weight_version
        if asked.slices or pin.version not in {None, version}:
            # A work of nothing waits for the weights that it is pinned to, or fails, as any other.
            slices = asked.slices or (PolicyWork((), SensitivityOptions("gradient")),)
            queued = self._batcher.submit_slices(slices, expires_s, pin)
            return answer_of(queued, partial(_measured, prepared))
        if not self._batcher.is_alive:
            raise EngineStoppedError("the engine is stopped")
        answer: Future[MeasuredTokens] = Future()
        answer.set_result(_measured(prepared, Answered(np.empty(0), 0.0, 0.0, version)))
        return answer

    def _checked(self, options: SensitivityOptions) -> SensitivityOptions:
        """The options with the token to perturb with, if they are measured by one."""
        if options.method == "gradient":
            if not (options.noise_std > 0 and np.isfinite(options.noise_std)) or options.noise_samples < 1:
                raise ValueError(
                    f"got noise_std {options.noise_std} and noise_samples {options.noise_samples}; expected a finite "
                    "number above 0 and at least 1"
                )
            if not 0 <= options.seed < 2**64:
                raise ValueError(f"got the seed {options.seed}; expected 0 ≤ seed < 2⁶⁴")
            return replace(options, perturbation_id=None)
        found = options.perturbation_id
        if found is None:
            model = self._loaded.model
            found = padding_to_perturb(self._loaded.tokenizer, model.config, model.generation_config)
        if not 0 <= found < self._loaded.n_embeddings:
            raise ModelUnsuitableError(
                f"got token {found} to perturb with; expected one of a vocabulary of {self._loaded.n_embeddings}"
            )
        return SensitivityOptions("perturbation", options.probe, found)

    def _failure(self, item: ReasonedTokens) -> TextFailure | None:
        """Why an item cannot be measured."""
        n_prompt, n_completion = len(item.prompt_ids), len(item.completion_ids)
        start, stop = item.answer
        if not 0 <= start < stop <= n_completion or n_prompt + start < 1:
            detail = f"got the answer [{start}, {stop}) of {n_completion} tokens; expected tokens of the completion"
            return TextFailure("invalid_request", f"{detail} with one before them")
        positions = np.asarray(item.positions)
        if len(positions) and not (positions[0] >= 0 and positions[-1] < start and (np.diff(positions) > 0).all()):
            return TextFailure("invalid_request", "measured positions ascend and stand before the answer: got others")
        n_tokens = n_prompt + stop - 1
        if n_tokens > self._loaded.max_tokens:
            detail = f"got {n_tokens} tokens before the last one of the answer"
            return TextFailure("context_exceeded", f"{detail}; expected at most {self._loaded.max_tokens}")
        ids = np.concatenate([item.prompt_ids, item.completion_ids])
        if ids.min() < 0 or ids.max() >= self._loaded.n_embeddings:
            detail = f"got token {int(ids.max() if ids.min() >= 0 else ids.min())}"
            return TextFailure("invalid_request", f"{detail}; expected one below {self._loaded.n_embeddings}")
        return None


def _passes(item: ReasonedTokens, options: SensitivityOptions) -> int:
    """How often an item is evaluated: once clean, then for each measured token or each draw of noise."""
    return 1 + (options.noise_samples if options.method == "gradient" else len(item.positions))


def _measured(prepared: PreparedSensitivities, answered: Answered) -> MeasuredTokens:
    """The sensitivities of all items, those without any named."""
    asked: _Asked = prepared.work
    failures = dict(prepared.failures)
    parts = np.split(answered.scores, np.cumsum(asked.lengths)[:-1]) if asked.lengths else []
    by_gradient = bool(asked.slices) and asked.slices[0].options.method == "gradient"
    found: list[Floats] = [np.empty(0)] * prepared.n_items
    spreads: list[float | None] = [None] * prepared.n_items
    fitting = [place for place in range(prepared.n_items) if place not in prepared.failures]
    for place, number in zip(fitting, asked.places, strict=True):
        if number < 0:
            continue
        values = parts[number][:-1] if by_gradient else parts[number]
        if np.isfinite(values).all():
            found[place] = values.copy()
            spread = float(parts[number][-1]) if by_gradient else np.nan
            spreads[place] = None if np.isnan(spread) else spread
        else:
            found[place] = np.full(len(values), np.nan)
            failures[place] = TextFailure("non_finite_utility", "a sensitivity is not a finite number")
    usage = prepared.usage + EngineUsage(engine_s=answered.engine_s, queue_s=answered.queue_s)
    return MeasuredTokens(tuple(found), tuple(spreads), answered.weight_version, failures, usage)
