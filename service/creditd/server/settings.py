"""Every setting of the service, from a TOML file and from `CREDITD_…` variables, checked at boot."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict
from typing_extensions import Self

from creditd.server.model_settings import ModelSettings
from creditd.server.redis_settings import RedisSettings
from creditd.wire.fields import MAX_SETS
from creditd.wire.scar_choices import MAX_UNITS

S = TypeVar("S", bound=RedisSettings)


class SettingsError(Exception):
    """The settings cannot be used; the message names each wrong one."""


class Settings(RedisSettings):
    """Settings of one service process. Variables win over the file."""

    model_config = SettingsConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8400
    """Port to listen on; 0 takes a free one."""
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys that may call every route but the probes and the page, separated by commas in a variable. None: all may."""
    api_keys_file: Path | None = None
    """File with one key per line, read at boot; adds to `api_keys`."""
    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys that may replace the weights of policies as well. None: whoever may call the service may, if it has no keys
    at all, and nobody if it has some."""
    admin_keys_file: Path | None = None
    """File with one key per line, read at boot; adds to `admin_keys`."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 8 * 2**20
    """Largest JSON body, and the most that a binary body may have beside its buffers."""
    max_binary_body_bytes: Annotated[int, Field(ge=1024)] = 256 * 2**20
    """Largest binary body."""
    max_requests_in_flight: Annotated[int, Field(ge=1)] = 256
    """Requests worked on or waiting for a thread; more are refused with 503 and Retry-After."""
    max_held_bytes: Annotated[int, Field(ge=1024)] = 2**30
    """Bodies of all requests and answers that are not read yet, together; more are refused with 503 and Retry-After."""
    body_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """How long a head may take to arrive, and a body after it, and how long an answer may lie unread."""
    compute_threads: Annotated[int, Field(ge=1, le=64)] = min(4, os.cpu_count() or 1)
    """Threads that do the arithmetic."""
    max_inline_candidates: Annotated[int, Field(ge=0, le=1 << 20)] = 1 << 14
    """Largest request that is answered on the event loop, without a thread, in candidates; sets, their different sizes
    and tokens count as well. 0: none is."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Deadline of a request that names none; longer ones are cut to it."""
    drain_timeout_s: Annotated[float, Field(ge=0)] = 60.0
    """How long SIGTERM waits for requests in flight."""
    max_sets: Annotated[int, Field(ge=1, le=MAX_SETS)] = MAX_SETS
    """Candidate sets, or rows of responses, of one request."""
    max_candidates: Annotated[int, Field(ge=1, le=1000)] = 256
    """Candidates of one set with rewards."""
    max_all_candidates: Annotated[int, Field(ge=1)] = 1 << 22
    """Candidates of all sets of one request, each counted once for every reward that it has."""
    max_table_candidates: Annotated[int, Field(ge=1, le=20)] = 12
    """Candidates of one set with a table of 2^K utilities."""
    max_token_advantages: Annotated[int, Field(ge=1)] = 1 << 22
    """Token advantages of one answer."""
    max_tokens_per_set: Annotated[int, Field(ge=1, le=1 << 20)] = 131_072
    """Completion tokens of one set, or of one completion."""
    max_units: Annotated[int, Field(ge=1, le=MAX_UNITS)] = MAX_UNITS
    """Units of one completion whose credit is asked for, after merging."""
    max_evaluations: Annotated[int, Field(ge=2, le=1 << 20)] = 1 << 16
    """Utilities of one game that a caller, or a model, evaluates."""

    models_root: Path | None = None
    """Directory that all models of this process are in; nothing outside it is opened."""
    models: tuple[ModelSettings, ...] = ()
    """Models that requests may name; a variable holds a JSON list."""
    max_model_characters: Annotated[int, Field(ge=1)] = 1 << 26
    """Characters that a model reads for one request, prompts counted with each text."""
    max_span_characters: Annotated[int, Field(ge=1)] = 1 << 29
    """The same for coalitions of the units of completions, of which a round at a time is in memory."""
    max_policy_tokens: Annotated[int, Field(ge=1)] = 1 << 24
    """Tokens that a policy reads for one request, prompts counted with each pass."""
    engine_stall_s: Annotated[float, Field(gt=0)] = 600.0
    """A model with work that shows no sign of life for so long makes `/livez` fail."""

    weights_root: Path | None = None
    """Directory that weights which a request names are in; nothing outside it is opened. None: `models_root`."""
    weights_spool: Path | None = None
    """Directory of the shards that arrive, beside those of other processes. None: one of this process, which goes when
    it ends."""
    max_weight_bytes: Annotated[int, Field(ge=1024)] = 64 * 2**30
    """All shards of one version of weights together."""
    max_shard_bytes: Annotated[int, Field(ge=1024)] = 2**30
    """One shard."""
    weights_upload_ttl_s: Annotated[float, Field(gt=0)] = 600.0
    """How long shards wait for the others of their version, after the last one came."""

    cache_bytes: Annotated[int, Field(ge=0)] = 256 * 2**20
    """Memory for utilities that this process remembers, the least recently used forgotten first. 0: none."""
    cache_ttl_s: Annotated[float, Field(gt=0, le=10 * 365 * 86400)] = 86400.0
    """How long a game is remembered after something of it was last learned; in Redis up to a tenth longer, each for its
    own time. What a process reads from Redis it remembers as long again."""
    cache_budget_s: Annotated[float, Field(gt=0, le=60)] = 0.25
    """How long one request waits for Redis, all its calls together; then it goes on without. A call itself may
    last as long, and a quarter of a second at least."""
    cache_secret: SecretStr | None = None
    """Goes into every key, so that nobody who sees keys can try out texts. Replicas that share Redis share it."""
    cache_min_evaluation_s: Annotated[float, Field(ge=0)] = 50e-6
    """A utility that took a model less is not worth remembering."""
    cache_queued_bytes: Annotated[int, Field(ge=1024)] = 64 * 2**20
    """Utilities that wait to be written to Redis; beyond that the oldest are dropped."""

    _file_keys: tuple[SecretStr, ...] = PrivateAttr(default=())
    _admin_file_keys: tuple[SecretStr, ...] = PrivateAttr(default=())

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        """All keys that are let in: those of both settings and of both files."""
        return self.api_keys + self._file_keys + self.all_admin_keys

    @property
    def all_admin_keys(self) -> tuple[SecretStr, ...]:
        """All keys that may replace weights: those of `admin_keys` and those of the file."""
        return self.admin_keys + self._admin_file_keys

    @field_validator("api_keys", "admin_keys", mode="before")
    @classmethod
    def _separated(cls, keys: object) -> object:
        """A variable holds text: keys separated by commas or lines, or a JSON list. An empty one is an error."""
        if not isinstance(keys, str):
            return keys
        if keys.lstrip().startswith("["):
            return tuple(json.loads(keys))
        return tuple(key.strip() for key in re.split(r"[,\n]", keys) if key.strip()) or ("",)

    @model_validator(mode="after")
    def _models_are_different(self) -> Self:
        ids = [model.id for model in self.models]
        repeated = sorted({name for name in ids if ids.count(name) > 1})
        if repeated:
            raise ValueError(f"two models are called {repeated[0]}")
        if self.models_root is None and any(model.path is not None for model in self.models):
            raise ValueError("models with a path need models_root, the directory that they are in")
        if self.models_root is not None and not self.models_root.is_dir():
            raise ValueError("models_root is no directory")
        for name in ("weights_root", "weights_spool"):
            if getattr(self, name) is not None and not getattr(self, name).is_dir():
                raise ValueError(f"{name} is no directory")
        return self

    @model_validator(mode="after")
    def _keys_are_usable(self) -> Self:
        for name, keys in (("api_keys", self.api_keys), ("admin_keys", self.admin_keys)):
            if any(not key.get_secret_value().strip() for key in keys):
                raise ValueError(f"{name} holds an empty key")
        self._file_keys = _keys_in("api_keys_file", self.api_keys_file)
        self._admin_file_keys = _keys_in("admin_keys_file", self.admin_keys_file)
        return self


def _keys_in(name: str, path: Path | None) -> tuple[SecretStr, ...]:
    """The keys of a file that a setting names, one per line; none without a file."""
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from None
    keys = tuple(SecretStr(line.strip()) for line in lines if line.strip())
    if not keys:
        raise ValueError(f"{name} {path} holds no key")
    return keys


def load_settings(config: Path | None, **overrides: object) -> Settings:
    """The settings of a process.

    Args:
        config: TOML file, or None.
        overrides: Settings given on the command line; None means not given.

    Returns:
        Checked settings.

    Raises:
        SettingsError: If a file cannot be read, or a setting or a variable is unknown or out of range.
    """

    class FileSettings(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    settings: Settings = _loaded(FileSettings, config, overrides)
    _refuse_unknown_variables(settings)
    return settings


def load_redis_settings(config: Path | None, **overrides: object) -> RedisSettings:
    """Where the Redis of a service is, whatever else its settings say and this machine has of it.

    Args:
        config: TOML file of the service, or None.
        overrides: Settings given on the command line; None means not given.

    Returns:
        Checked settings.

    Raises:
        SettingsError: If a file cannot be read, or one of these settings is out of range.
    """

    class FileSettings(RedisSettings):
        model_config = SettingsConfigDict(toml_file=config)

    return _loaded(FileSettings, config, overrides)


def _loaded(kind: type[S], config: Path | None, overrides: Mapping[str, object]) -> S:
    """Settings of a kind that reads the file; whatever is wrong with them is one `SettingsError`."""
    if config is not None and not config.is_file():
        raise SettingsError(f"there is no configuration file {config}")
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return kind(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, entry['loc'])) or 'settings'}: {entry['msg']}"
            for entry in error.errors(include_url=False, include_input=False)
        ]
        raise SettingsError("; ".join(lines)) from None
    except (OSError, ValueError) as error:
        raise SettingsError(str(error)) from None


def _refuse_unknown_variables(settings: Settings) -> None:
    """A misspelt variable is an error: a service that was meant to have a key must not run without one."""
    known = {f"CREDITD_{name.upper()}" for name in Settings.model_fields} | {"CREDITD_URL", "CREDITD_BROWSER"}
    if settings.keys:
        known.add("CREDITD_API_KEY")
    unknown = sorted(name for name in os.environ if name.upper().startswith("CREDITD_") and name.upper() not in known)
    if unknown:
        raise SettingsError(
            f"unknown variables: {', '.join(unknown)} (the service's key is CREDITD_API_KEYS or CREDITD_API_KEYS_FILE; "
            "in Kubernetes, enableServiceLinks: false keeps a Service of this name from setting them)"
        )
