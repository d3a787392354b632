"""The models of a process by the ids that requests name; the only place that knows which backend a model has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from creditd.engines.errors import EngineError, ModelUnsuitableError
from creditd.engines.model_spec import ModelKind, ModelSpec
from creditd.engines.policy_protocol import SensitivityMeasurer
from creditd.engines.protocol import Engine, EngineStatus, TextEmbedder, TextScorer

E = TypeVar("E")
AnyEngine: TypeAlias = TextScorer | TextEmbedder


class UnknownModelError(EngineError):
    """No model has this id, or it is for something else; the message names those that would do."""


class Registry:
    """Loaded models. Requests name an id; nothing they can say loads another one."""

    def __init__(
        self,
        scorers: Mapping[str, TextScorer] | None = None,
        embedders: Mapping[str, TextEmbedder] | None = None,
        policies: Mapping[str, SensitivityMeasurer] | None = None,
    ) -> None:
        """Take engines that run.

        Args:
            scorers: Reward models by id.
            embedders: Embedding models by id.
            policies: Policies by id.
        """
        self._scorers = dict(scorers or {})
        self._embedders = dict(embedders or {})
        self._policies = dict(policies or {})

    @property
    def engines(self) -> tuple[Engine, ...]:
        """All engines, by id."""
        found: dict[str, Engine] = {**self._scorers, **self._embedders, **self._policies}
        return tuple(found[name] for name in sorted(found))

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, sorted."""
        return tuple(engine.spec.id for engine in self.engines)

    @property
    def has_scorers(self) -> bool:
        """Whether there is any reward model."""
        return bool(self._scorers)

    def scorer(self, name: str) -> TextScorer:
        """The reward model of an id.

        Raises:
            UnknownModelError: If there is none.
        """
        found = self._scorers.get(name)
        if found is None:
            raise _unknown("reward", self._scorers)
        return found

    @property
    def only_scorer(self) -> TextScorer:
        """The reward model of a service that has one, for callers who cannot name it.

        Raises:
            UnknownModelError: If there is none, or more than one.
        """
        if len(self._scorers) > 1:
            known = ", ".join(sorted(self._scorers)[:10])
            raise UnknownModelError(f"this service has {len(self._scorers)} reward models, and none is named: {known}")
        return self.scorer(next(iter(self._scorers), ""))

    def embedder(self, name: str) -> TextEmbedder:
        """The embedding model of an id.

        Raises:
            UnknownModelError: If there is none.
        """
        found = self._embedders.get(name)
        if found is None:
            raise _unknown("embedding", self._embedders)
        return found

    def policy(self, name: str) -> SensitivityMeasurer:
        """The policy of an id.

        Raises:
            UnknownModelError: If there is none.
        """
        found = self._policies.get(name)
        if found is None:
            raise _unknown("policy", self._policies)
        return found

    @property
    def policies(self) -> Mapping[str, SensitivityMeasurer]:
        """All policies, by id."""
        return self._policies

    def statuses(self) -> Iterator[EngineStatus]:
        """What every engine says of itself."""
        return (engine.status() for engine in self.engines)

    def close(self, timeout_s: float | None = None) -> None:
        """Close every engine."""
        for engine in self.engines:
            engine.close(timeout_s)


def load_registry(
    specs: Sequence[ModelSpec], root: Path | None, report: Callable[[str], None] = lambda _: None
) -> Registry:
    """Load every registered model, one after another.

    Args:
        specs: The models, with different ids.
        root: Directory that all local models are in; None if there are none.
        report: Told what is being done, in sentences.

    Returns:
        Engines that run.

    Raises:
        ModelUnsuitableError: If one cannot serve; those that were loaded before it are closed.

    Cost:
        Reading the weights of all of them.
    """
    scorers: dict[str, TextScorer] = {}
    embedders: dict[str, TextEmbedder] = {}
    policies: dict[str, SensitivityMeasurer] = {}
    try:
        for spec in specs:
            report(f"loading the {spec.kind} model {spec.id}")
            if spec.kind == "embedding":
                embedders[spec.id] = _embedder(spec, root)
            elif spec.kind == "policy":
                policies[spec.id] = _policy(spec, root)
            else:
                scorers[spec.id] = _scorer(spec, root, report)
    except BaseException:
        Registry(scorers, embedders, policies).close(timeout_s=5.0)
        raise
    return Registry(scorers, embedders, policies)


def _scorer(spec: ModelSpec, root: Path | None, report: Callable[[str], None]) -> TextScorer:
    if spec.remote is not None:
        from creditd.engines.remote import RemoteEngine  # noqa: PLC0415 - an HTTP client, only where it is used

        engine = RemoteEngine(spec)
        warning = engine.check()
        if warning is not None:
            report(warning)
        return engine
    try:
        from creditd.engines.reward_engine import RewardEngine  # noqa: PLC0415 - torch, only where it is used
    except ModuleNotFoundError as error:
        raise _no_torch(spec, error) from error
    return _loaded(RewardEngine.load, spec, _root_of(spec, root))


def _embedder(spec: ModelSpec, root: Path | None) -> TextEmbedder:
    if spec.remote is not None:
        raise ModelUnsuitableError(f"model {spec.id}: embedding models are run here; expected a path")
    try:
        from creditd.engines.embedding_engine import EmbeddingEngine  # noqa: PLC0415 - torch, only where it is used
    except ModuleNotFoundError as error:
        raise _no_torch(spec, error) from error
    return _loaded(EmbeddingEngine.load, spec, _root_of(spec, root))


def _policy(spec: ModelSpec, root: Path | None) -> SensitivityMeasurer:
    if spec.remote is not None:
        raise ModelUnsuitableError(f"model {spec.id}: policies are run here; expected a path")
    try:
        from creditd.engines.policy_engine import PolicyEngine  # noqa: PLC0415 - torch, only where it is used
    except ModuleNotFoundError as error:
        raise _no_torch(spec, error) from error
    return _loaded(PolicyEngine.load, spec, _root_of(spec, root))


def _loaded(load: Callable[[ModelSpec, Path], E], spec: ModelSpec, root: Path) -> E:
    """An engine of this process; whatever keeps it from loading is said in one sentence."""
    try:
        return load(spec, root)
    except EngineError:
        raise
    except Exception as error:
        # Architectures that nobody has tried fail in ways of their own.
        raise ModelUnsuitableError(f"model {spec.id} cannot be served: {type(error).__name__}: {error}") from error


def _root_of(spec: ModelSpec, root: Path | None) -> Path:
    if root is None:
        raise ModelUnsuitableError(f"model {spec.id} has a path; expected models_root, the directory it is in")
    return root


def _no_torch(spec: ModelSpec, error: ModuleNotFoundError) -> ModelUnsuitableError:
    return ModelUnsuitableError(
        f"model {spec.id} needs {error.name}, which is not installed: pip install 'creditd[service,models]'"
    )


def _unknown(kind: ModelKind, known: Mapping[str, object]) -> UnknownModelError:
    if not known:
        return UnknownModelError(f"this service has no {kind} model; its operator registers them in the settings")
    return UnknownModelError(f"there is no such {kind} model; this service has: {', '.join(sorted(known)[:10])}")
