"""Which weights answer for a batch, and checkpoints of a trainer as those that a service is given.

A trainer whose weights are in processes of its workers has none in the one that asks. But a checkpoint in the form of
`save_pretrained` is a folder that a service can read by itself, from a disk that it shares with the workers.

Two things have to be known of a checkpoint, and each is known by somebody else. That it is whole, and of which step it
is, the trainer's process knows (`Checkpoints`); what there was before this run is left out of account. What is in the
folder the service finds out: it verifies names, shapes and numbers, and refuses a folder that is absent, or has a
configuration and a tokenizer alone.

That both speak of one folder is shown by a name that only they can know: for as long as a checkpoint is handed over,
the trainer's process has a symbolic link to it beside it, named after this run, and the service is told the link. A
service whose disk, mount or `weights_root` is another finds no such name, and never the same step of another run.
Nothing of a trainer or torch is imported.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, Protocol

from creditd.adapters.sensitivity import CurrentWeights
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.client import Client, NotFoundError, OarResult, WeightsRefusedError, WeightVersionMismatchError
from creditd.wire.errors import ERROR_KINDS, ErrorCode
from creditd.wire.weights import WeightsResponse

log = logging.getLogger("creditd.adapters")

STEP = "{step}"
"""Stands for a step in names of versions and in paths."""


@dataclass(frozen=True)
class Words:
    """What messages call things of a trainer.

    Attributes:
        trainer: Its name.
        evidence: What says which checkpoint is the newest.
        written_by: The settings by which it writes checkpoints.
        initial: The option that names the weights that a run starts with.
    """

    trainer: str
    evidence: str
    written_by: str
    initial: str


class Checkpoints(Protocol):
    """What a trainer's process knows of the checkpoints of its run."""

    @property
    def words(self) -> Words:
        """What messages call them."""

    @property
    def folder(self) -> Path:
        """Where they are, as the trainer's process sees it: what the part of `weights` with `{step}` is in."""

    def written(self) -> int | None:
        """The step of the last one that is whole, or None if this run wrote none yet.

        Raises:
            ValueError: If that cannot be read.
        """


class Answering(Protocol):
    """Weights that answer for batches."""

    def sampled(self, step: int) -> None:
        """Know that a batch was sampled, whether or not anybody is asked about it.

        Args:
            step: The one after which the weights that wrote the batch were left.
        """

    def answer(self, ask: Callable[[str | None], OarResult], step: int) -> OarResult:
        """The answer of the weights of a batch.

        Args:
            ask: Asks for a version; raises what the client does.
            step: As in `sampled`.

        Returns:
            The answer.

        Raises:
            CreditdError: If these weights do not answer.
            ValueError: If what is configured cannot be.
        """

    def metrics(self, *, answered: bool) -> dict[str, float]:
        """Numbers for the trainer's log since the last call, by name.

        Args:
            answered: Whether weights answered for the batch.
        """


@dataclass(frozen=True)
class CheckpointKeys:
    """Where the checkpoints of a run are.

    Attributes:
        weights: Path of one as the service sees it, from its `weights_root`; `{step}` in it is the step after which it
            was written.
        initial_weights: Path of the weights that the run starts with. None: those that the policy was loaded with.
        max_weights_age: By how many steps the newest checkpoint may be older than the weights that wrote a batch.

    Raises:
        ValueError: If a value is not what is written here.
    """

    weights: str
    initial_weights: str | None = None
    max_weights_age: int = 0

    def __post_init__(self) -> None:
        weights: object = self.weights
        if not isinstance(weights, str) or STEP not in weights:
            raise ValueError(f"got weights {weights!r}; expected a path of the service with {STEP} in it")
        initial: object = self.initial_weights
        if initial is not None and not (isinstance(initial, str) and initial):
            raise ValueError(f"got initial_weights {initial!r}; expected a path of the service, or null")
        age: object = self.max_weights_age
        if isinstance(age, bool) or not isinstance(age, int) or age < 0:
            raise ValueError(f"got max_weights_age {age!r}; expected a whole number of at least 0")

    def folder_at(self, step: int) -> str:
        """The part of the path that has the step, as it is called after it."""
        return next(part for part in PurePosixPath(self.weights).parts if STEP in part).replace(STEP, str(step))

    def path_at(self, step: int, through: str) -> str:
        """Where the weights after a step are for the service, by another name for the part that has the step."""
        parts = PurePosixPath(self.weights).parts
        place = next(place for place, part in enumerate(parts) if STEP in part)
        rest = (part.replace(STEP, str(step)) for part in parts[place + 1 :])
        return str(PurePosixPath(*parts[:place], through, *rest))


@dataclass(frozen=True)
class _Handed:
    """What handing over a checkpoint cost; `n_bytes` are those of the tensors that the policy took."""

    seconds: float
    n_bytes: int


class NamedWeights:
    """Weights that others hand over: whatever the policy has, or those of a name.

    Args:
        version: The name, in which `{step}` is the step after which the weights that wrote the batch were left; None:
            whatever the policy has.
    """

    def __init__(self, version: str | None) -> None:
        self._version = version

    def sampled(self, step: int) -> None:
        """Nothing is remembered."""

    def answer(self, ask: Callable[[str | None], OarResult], step: int) -> OarResult:
        """The answer, or the error, of the version of a step."""
        return ask(None if self._version is None else self._version.replace(STEP, str(step)))

    def metrics(self, *, answered: bool) -> dict[str, float]:
        """None: nothing is handed over here, and nobody knows how old the weights are."""
        del answered
        return {}


class CheckpointWeights:
    """Weights that a trainer itself wrote, handed over when a newer checkpoint is there, or when the service lost them.

    Before the first checkpoint the weights are those that the run starts with: the checkpoint that it was resumed from,
    or `initial_weights`, or, without these, those that the policy was loaded with, for as long as it was given no
    others.

    Args:
        client: Of the service, with an admin key if it has keys.
        config: How the policy is asked.
        keys: Where checkpoints are.
        checkpoints: Which one is the newest.
    """

    def __init__(
        self, client: Client, config: SensitivityConfig, keys: CheckpointKeys, checkpoints: Checkpoints
    ) -> None:
        self._client, self._config, self._keys, self._checkpoints = client, config, keys, checkpoints
        self._words = checkpoints.words
        self._weights = CurrentWeights(self._hand_over, config.run)
        self._began: int | None = None
        self._loaded: str | None = None
        self._lag = 0

    def sampled(self, step: int) -> None:
        """Know with which weights the run began: those after the step before its first batch."""
        if self._began is None:
            self._began = step

    def answer(self, ask: Callable[[str | None], OarResult], step: int) -> OarResult:
        """The answer of the newest weights, which are handed over first if the policy was not given them.

        Args:
            ask: Asks for a version; raises what the client does.
            step: As in `sampled`.

        Returns:
            The answer.

        Raises:
            WeightVersionMismatchError: If the newest checkpoint is too old, or is not where the trainer saves.
            WeightsRefusedError: If the service does not find it, or it does not fit the policy.
            CreditdError: Whatever else the client raises.
            ValueError: If the policy has been given the weights of others, and nobody says with which the run starts.
        """
        newest = self._newest(step)
        self._lag = step - newest
        if newest == 0 and self._keys.initial_weights is None:
            return ask(self._as_loaded())
        return self._weights.answer(ask, newest)

    def metrics(self, *, answered: bool) -> dict[str, float]:
        """What pushes cost, and how many steps older the weights that answered are than those that wrote the batch."""
        return self._weights.taken() | ({"credit/version_lag": float(self._lag)} if answered else {})

    def _newest(self, step: int) -> int:
        """The step of the newest weights that are not too old for a batch that those of a step wrote."""
        self.sampled(step)
        written = self._checkpoints.written()
        newest = (self._began or 0) if written is None else written
        if newest > step:
            raise ValueError(
                f"got a checkpoint of step {newest} by {self._words.evidence}, and a batch that the weights after step "
                f"{step} wrote; expected a folder that this run alone writes to"
            )
        if step - newest > self._keys.max_weights_age:
            there = f"that of step {newest} is" if newest else "there is none, and the weights it began with are"
            _refuse(
                ErrorCode.WEIGHT_VERSION_MISMATCH,
                f"got no checkpoint of step {step}, whose weights wrote this batch: of this run, by "
                f"{self._words.evidence}, {there} the newest, {step - newest} steps older, and "
                f"max_weights_age={self._keys.max_weights_age}; expected {self._words.written_by} to write it, or a "
                "larger max_weights_age",
            )
        return newest

    def _as_loaded(self) -> str:
        """The version of the weights that the policy was loaded with, as it is called since the run began."""
        if self._loaded is None:
            model = self._config.model
            policy = next((one for one in self._client.info().weights if one.id == model), None)
            if policy is None:
                _refuse(ErrorCode.UNKNOWN_MODEL, f"got model={model}, and the service has no such policy")
            if policy.swaps:
                raise ValueError(
                    f"got the policy {model} with the weights {policy.weight_version}, after {policy.swaps} pushes; "
                    f"expected those that it was loaded with, from the folder that {self._words.trainer} starts from: "
                    f"start the service anew, or name that folder as {self._words.initial}"
                )
            self._loaded = policy.weight_version
        return self._loaded

    def _hand_over(self, version: str) -> _Handed:
        """Have the policy take a checkpoint under a version `RUN:STEP`."""
        started = time.perf_counter()
        step, initial = int(version.rpartition(":")[2]), self._keys.initial_weights
        if step == 0 and initial is not None:
            answer = self._taken(version, initial, initial)
        else:
            with self._named(version, step) as name:
                path = self._keys.path_at(step, self._keys.folder_at(step))
                answer = self._taken(version, self._keys.path_at(step, name), path)
        return _Handed(time.perf_counter() - started, answer.n_bytes)

    def _taken(self, version: str, path: str, called: str) -> WeightsResponse:
        """What the service says when it has the weights of a path, and what people call that."""
        config, model = self._config, str(self._config.model)
        patience_s = min(config.deadline_s, config.push_deadline_s)
        self._client.announce_weights(model, weight_version=version, deadline_s=patience_s)
        try:
            return self._client.load_weights(model, path, weight_version=version, deadline_s=config.push_deadline_s)
        except WeightsRefusedError as error:
            raise WeightsRefusedError(
                f"{error}; expected the weights of {self._words.trainer}'s actor at {called}, told to the service as "
                f"{path}, below its weights_root and on the disk on which {self._checkpoints.folder} is here: "
                f"{self._words.written_by} write them",
                status=error.status,
                code=error.code,
                request_id=error.request_id,
                items=error.items,
                attempts=error.attempts,
                elapsed_s=error.elapsed_s,
            ) from error

    @contextmanager
    def _named(self, version: str, step: int) -> Iterator[str]:
        """A name for the checkpoint of a step that this run alone knows, for as long as it is needed."""
        folder, target = self._checkpoints.folder.absolute(), self._keys.folder_at(step)
        if not (folder / target).exists():
            _refuse(
                ErrorCode.WEIGHT_VERSION_MISMATCH,
                f"got no {target} in {folder}, whose weights are the newest of this run; expected it there, by "
                f"{self._words.written_by}, also of the step at which a run is resumed",
            )
        link = folder / f"creditd-{hashlib.blake2b(version.encode(), digest_size=12).hexdigest()}"
        try:
            link.unlink(missing_ok=True)  # of a process that was killed with it
            link.symlink_to(target)
        except OSError as error:
            raise ValueError(
                f"got {type(error).__name__} for a symbolic link in {folder}: {error.strerror}; expected a folder that "
                "this process may write to, on a disk that has such links"
            ) from error
        try:
            yield link.name
        finally:
            try:
                link.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s is left, and can be removed: %s", link, error)


def _refuse(code: ErrorCode, message: str) -> NoReturn:
    """Raise what the service would say."""
    kinds = {ErrorCode.UNKNOWN_MODEL: NotFoundError, ErrorCode.WEIGHT_VERSION_MISMATCH: WeightVersionMismatchError}
    raise kinds[code](message, status=ERROR_KINDS[code].status, code=code.value)


def weights_of(
    given: Mapping[str, Any],
    config: SensitivityConfig,
    client: Client,
    checkpoints: Callable[[CheckpointKeys], Checkpoints],
) -> Answering:
    """Which weights answer, by the choices of a trainer's configuration.

    Args:
        given: Among others `weight_version`, or `weights`, `initial_weights` and `max_weights_age`.
        config: How the policy is asked.
        client: Whom to ask.
        checkpoints: Those of the run, for what they are called by; raises if the trainer will not write them.

    Returns:
        Weights that others hand over, or the checkpoints of the trainer.

    Raises:
        ValueError: If choices contradict each other, or the trainer will not write what they say.
    """
    keys = keys_of(given)
    if keys is None:
        return NamedWeights(given.get("weight_version"))
    return CheckpointWeights(client, config, keys, checkpoints(keys))


def keys_of(given: Mapping[str, Any]) -> CheckpointKeys | None:
    """Where the checkpoints of a run are, by the same choices.

    Args:
        given: As in `weights_of`.

    Returns:
        None without `weights`.

    Raises:
        ValueError: If choices contradict each other, or one is not what it should be.
    """
    version, weights = given.get("weight_version"), given.get("weights")
    if weights is None:
        return None
    if version is not None:
        raise ValueError(
            f"got weight_version {version!r} with weights {weights!r}, which are called by their run and step; "
            "expected one of the two"
        )
    return CheckpointKeys(weights, given.get("initial_weights"), given.get("max_weights_age", 0))
