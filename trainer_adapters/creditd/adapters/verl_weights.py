"""Which weights answer for a batch of verl, and the checkpoints of verl as those that a service is given.

The weights of verl's actor are in worker groups, and its trainer's process has none of them. But a checkpoint that verl
writes with `hf_model` is a folder that a service can read by itself, from a disk that it shares with the workers.

Two things have to be known of a checkpoint, and each is known by somebody else. That it is whole, and of which step it
is, the trainer's process knows: it writes `latest_checkpointed_iteration.txt` below `trainer.default_local_dir` when
all workers have written theirs. What of it there was before this run is left out of account. What is in the folder,
which the trainer's process may not see at all, the service finds out: it verifies names, shapes and numbers, and
refuses a folder that is absent, or has a configuration and a tokenizer alone. Nothing of verl or torch is imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from creditd.adapters.sensitivity import CurrentWeights
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.client import Client, NotFoundError, OarResult, WeightsRefusedError, WeightVersionMismatchError
from creditd.wire.errors import ERROR_KINDS, ErrorCode

STEP = "{step}"
"""Stands for a step in names of versions and in paths."""
TRACKER = "latest_checkpointed_iteration.txt"
"""What verl calls the file that names the step of its last checkpoint."""

_WRITTEN_BY = "trainer.save_freq and hf_model in actor_rollout_ref.actor.checkpoint.save_contents"


class Answering(Protocol):
    """Weights that answer for batches."""

    def sampled(self, step: int) -> None:
        """Know that a batch was sampled, whether or not anybody is asked about it.

        Args:
            step: Verl's step − 1: after which the weights that wrote the batch were left.
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

    def path_at(self, step: int) -> str:
        """Where the weights after a step are; those after step 0 are the initial ones."""
        if step == 0 and self.initial_weights is not None:
            return self.initial_weights
        return self.weights.replace(STEP, str(step))


class Tracker:
    """The step of the checkpoint that this run wrote last, by the file that verl's trainer writes behind each.

    What was in the folder before counts for nothing: it may be of another run.

    Args:
        folder: `trainer.default_local_dir`, as the trainer's process sees it.
    """

    def __init__(self, folder: str) -> None:
        self.file = Path(folder) / TRACKER
        self._before = self._seen()

    def written(self) -> int | None:
        """The step, or None if this run wrote no checkpoint yet.

        Raises:
            ValueError: If the file does not hold a step.
        """
        seen = self._seen()
        if seen is None or seen == self._before:
            return None
        text = seen[1].strip()
        if not text.isdecimal():
            raise ValueError(f"got {text[:40]!r} in {self.file}; expected the step of a checkpoint of verl")
        return int(text)

    def _seen(self) -> tuple[int, str] | None:
        """When the file was written, and what is in it."""
        try:
            return self.file.stat().st_mtime_ns, self.file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None


@dataclass(frozen=True)
class _Handed:
    """What handing over a checkpoint cost; `n_bytes` are those of the tensors that the policy took."""

    seconds: float
    n_bytes: int


class NamedWeights:
    """Weights that others hand over: whatever the policy has, or those of a name.

    Args:
        version: The name, in which `{step}` is verl's step − 1; None: whatever the policy has.
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
    """Weights that verl itself wrote, handed over when a newer checkpoint is there, or when the service lost them.

    Before the first checkpoint the weights are those that the run starts with: the checkpoint that it was resumed from,
    or `initial_weights`, or, without these, those that the policy was loaded with, for as long as it was given no
    others.

    Args:
        client: Of the service, with an admin key if it has keys.
        config: How the policy is asked.
        keys: Where checkpoints are.
        tracker: Which one is the newest.
    """

    def __init__(self, client: Client, config: SensitivityConfig, keys: CheckpointKeys, tracker: Tracker) -> None:
        self._client, self._config, self._keys, self._tracker = client, config, keys, tracker
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
            step: Verl's step − 1.

        Returns:
            The answer.

        Raises:
            WeightVersionMismatchError: If the newest checkpoint is too old.
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
        written = self._tracker.written()
        newest = (self._began or 0) if written is None else written
        if newest > step:
            raise ValueError(
                f"got a checkpoint of step {newest} by {self._tracker.file}, and a batch that the weights after step "
                f"{step} wrote; expected a folder that this run alone writes to"
            )
        if step - newest > self._keys.max_weights_age:
            there = f"that of step {newest} is" if newest else "there is none, and the weights it began with are"
            _refuse(
                ErrorCode.WEIGHT_VERSION_MISMATCH,
                f"got no checkpoint of step {step}, whose weights wrote this batch: of this run, by "
                f"{self._tracker.file}, {there} the newest, {step - newest} steps older, and "
                f"max_weights_age={self._keys.max_weights_age}; expected {_WRITTEN_BY} to write it, or a larger "
                "max_weights_age",
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
                    "expected those that it was loaded with, from the folder that verl starts from: start the service "
                    "anew, or name that folder as sampler_kwargs.initial_weights"
                )
            self._loaded = policy.weight_version
        return self._loaded

    def _hand_over(self, version: str) -> _Handed:
        """Have the policy take a checkpoint under a version `RUN:STEP`."""
        config, model = self._config, str(self._config.model)
        path = self._keys.path_at(int(version.rpartition(":")[2]))
        started = time.perf_counter()
        patience_s = min(config.deadline_s, config.push_deadline_s)
        self._client.announce_weights(model, weight_version=version, deadline_s=patience_s)
        try:
            answer = self._client.load_weights(model, path, weight_version=version, deadline_s=config.push_deadline_s)
        except WeightsRefusedError as error:
            raise WeightsRefusedError(
                f"{error}; expected the weights of verl's actor at {path}, as the service sees it: {_WRITTEN_BY} write "
                "them",
                status=error.status,
                code=error.code,
                request_id=error.request_id,
                items=error.items,
                attempts=error.attempts,
                elapsed_s=error.elapsed_s,
            ) from error
        return _Handed(time.perf_counter() - started, answer.n_bytes)


def weights_of(
    given: Mapping[str, Any],
    config: SensitivityConfig,
    client: Client,
    trainer: Any,  # noqa: ANN401 - a DictConfig
) -> Answering:
    """Which weights answer, by the keys.

    Args:
        given: Keys of `kind=sensitivity` that are none of its configuration.
        config: How the policy is asked.
        client: Whom to ask.
        trainer: The configuration of verl's trainer, or None if nobody knows it.

    Returns:
        Weights that others hand over, or the checkpoints of verl.

    Raises:
        ValueError: If keys contradict each other, or verl will not write what they say.
    """
    version, weights = given.get("weight_version"), given.get("weights")
    if weights is None:
        return NamedWeights(version)
    if version is not None:
        raise ValueError(
            f"got weight_version {version!r} with weights {weights!r}, which are called by their run and step; "
            "expected one of the two"
        )
    keys = CheckpointKeys(weights, given.get("initial_weights"), given.get("max_weights_age", 0))
    return CheckpointWeights(client, config, keys, Tracker(_checked(trainer, keys)))


def _checked(config: Any, keys: CheckpointKeys) -> str:  # noqa: ANN401 - a DictConfig
    """The folder in which verl will write what the keys say, or the reason why it will not."""
    if config is None:
        raise ValueError("got weights and no trainer behind refill_fn; expected verl's, which knows where it saves")
    trainer, policy = config["trainer"], config["actor_rollout_ref"]
    mode = trainer["v1"]["trainer_mode"]
    if mode != "sync":
        raise ValueError(
            f"got weights with trainer.v1.trainer_mode={mode}, in which weights of several steps write one batch, and "
            "one request is answered by those of one; expected sync, or no weights"
        )
    frequency = trainer["save_freq"]
    if frequency < 1:
        raise ValueError(f"got weights with trainer.save_freq={frequency}, which saves nothing; expected at least 1")
    if keys.max_weights_age < frequency - 1:
        raise ValueError(
            f"got trainer.save_freq={frequency} with max_weights_age={keys.max_weights_age}, so that most steps would "
            f"have no weights; expected trainer.save_freq=1, or max_weights_age={frequency - 1}"
        )
    actor = policy["actor"]
    checkpoint = actor.get("checkpoint") or {}
    contents = list(checkpoint.get("save_contents") or [])
    # Megatron with a bridge writes the same for `model`.
    if "hf_model" not in contents and not (actor.get("strategy") == "megatron" and "model" in contents):
        raise ValueError(
            f"got weights with actor_rollout_ref.actor.checkpoint.save_contents={contents}, which no service can read; "
            "expected hf_model among them"
        )
    if checkpoint.get("async_save", False):
        raise ValueError(
            "got weights with actor_rollout_ref.actor.checkpoint.async_save=True, with which verl does not say when a "
            "checkpoint is whole; expected False"
        )
    model = policy["model"]
    adapter = model.get("lora_adapter_path") or (model.get("lora") or {}).get("rank") or model.get("lora_rank")
    if adapter:
        raise ValueError(
            f"got weights with an adapter (actor_rollout_ref.model: {adapter!r}), whose checkpoints have no weights "
            "under the names of the model; expected none"
        )
    folder, resumed = str(trainer["default_local_dir"]), trainer.get("resume_from_path")
    if trainer.get("resume_mode") == "resume_path" and Path(str(resumed)).resolve().parent != Path(folder).resolve():
        raise ValueError(
            f"got weights with trainer.resume_from_path={resumed}, outside of trainer.default_local_dir={folder}; "
            "expected a folder in it, because weights leads to one place for all steps"
        )
    return folder


def _refuse(code: ErrorCode, message: str) -> NoReturn:
    """Raise what the service would say."""
    kinds = {ErrorCode.UNKNOWN_MODEL: NotFoundError, ErrorCode.WEIGHT_VERSION_MISMATCH: WeightVersionMismatchError}
    raise kinds[code](message, status=ERROR_KINDS[code].status, code=code.value)
