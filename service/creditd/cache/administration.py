"""What an operator asks of the utilities in Redis: how many there are, what one key holds, and to forget some.

Calls that block, for a command line; the service itself makes none of them. Keys are found with SCAN, which lets the
service's own calls through in between; a key may be counted twice while Redis enlarges its table.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from redis import Redis, exceptions
from redis.asyncio.connection import parse_url
from redis.backoff import NoBackoff
from redis.retry import Retry

from creditd.cache.games import Corruption, CorruptValueError, header_of, unpacked
from creditd.cache.keys import CALLER_PREFIX, CALLERS, DIGEST_BYTES, NAMESPACE, GameKey, model_prefix, purge_key
from creditd.cache.redis import RedisChoice, failure_of

AdministeredRedis: TypeAlias = Redis

TIMEOUT_S = 5.0
"""Of one call, and of the connection."""
KEYS_PER_CALL = 1000
SAMPLED_GAMES = 200
"""Games of each model that are looked at; what is said of its size is what these say of all."""
SAMPLED_BYTES = 1 << 24
"""Values of them that are read, about."""
SAMPLED_GAMES_PER_CALL = 16
TOKEN_BYTES = 8
ADMIN_USER = "creditd-admin"
"""The user of deploy/redis who may do all this."""

_MODEL = r"[A-Za-z0-9._/-]{1,128}"
_KEY = re.compile(rf"{NAMESPACE}:(?:model:(?P<model>{_MODEL})|caller):[0-9a-f]{{{2 * DIGEST_BYTES}}}")


class AdministrationError(Exception):
    """Redis did not do what it was asked; the message says what to do, and holds no password."""


@dataclass(frozen=True)
class ServerStats:
    """What the server says of itself since it started.

    Attributes:
        version: Of the server.
        used_bytes: Memory that it takes.
        max_bytes: Memory that it may take; 0: as much as there is.
        policy: What it forgets when that is not enough.
        evicted_keys: Keys that it forgot for want of memory.
        expired_keys: Keys whose time was over.
        hits: Keys that were asked for and there.
        misses: Keys that were asked for and not there.
    """

    version: str
    used_bytes: int
    max_bytes: int
    policy: str
    evicted_keys: int
    expired_keys: int
    hits: int
    misses: int

    @property
    def hit_ratio(self) -> float | None:
        """Part of the keys that were asked for and there; None if none was asked for."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


@dataclass(frozen=True)
class SourceStats:
    """The games of a model, or those of all callers.

    Attributes:
        model: Its id; None for callers.
        games: Number of keys.
        sampled: Games that were looked at.
        sampled_bytes: Memory that these take in Redis, with their keys.
        read: Games among them whose values were read.
        read_utilities: Utilities that these know.
        damaged: Values among them that are not what their key promises.
    """

    model: str | None
    games: int
    sampled: int
    sampled_bytes: int
    read: int
    read_utilities: int
    damaged: int

    @property
    def exact(self) -> bool:
        """Whether all games were looked at and read, so that nothing is extrapolated."""
        return self.read == self.sampled == self.games

    @property
    def bytes(self) -> int:
        """Memory of all games, as those that were looked at let expect."""
        return round(self.sampled_bytes * self.games / self.sampled) if self.sampled else 0

    @property
    def utilities(self) -> int:
        """Utilities that all games know, as those that were read let expect."""
        return round(self.read_utilities * self.games / self.read) if self.read else 0


@dataclass(frozen=True)
class CacheStats:
    """What is in Redis.

    Attributes:
        server: What the server says of itself.
        sources: Whose games there are: models by their ids, then callers.
    """

    server: ServerStats
    sources: tuple[SourceStats, ...]


@dataclass(frozen=True)
class Inspection:
    """What one key holds.

    Attributes:
        key: The key.
        model: Whose utilities they are; None for a caller's.
        value_bytes: Length of the value.
        memory_bytes: What Redis takes for it, with the key; None if the key has gone meanwhile.
        ttl_s: Until it is forgotten, seconds; None: never.
        corruption: Why the service takes it for missing; None for a sound value.
        layout: Whether all utilities are known; this and what follows is None where the value does not say it.
        n_players: Number of players n.
        n_known: Number of known utilities.
        least: The least utility.
        mean: Their mean.
        greatest: The greatest one.
    """

    key: str
    model: str | None
    value_bytes: int
    memory_bytes: int | None
    ttl_s: float | None
    corruption: Corruption | None
    layout: Literal["table", "pairs"] | None = None
    n_players: int | None = None
    n_known: int | None = None
    least: float | None = None
    mean: float | None = None
    greatest: float | None = None


@dataclass(frozen=True)
class Purged:
    """What a purge did.

    Attributes:
        model: Whose utilities are never found again; None: callers'.
        token: What its keys are made with from now on.
        removed: Games that were removed from Redis.
    """

    model: str | None
    token: str
    removed: int


def place_of(choice: RedisChoice) -> str:
    """The address of a server, without user and password."""
    parts = parse_url(choice.url)
    return str(parts.get("path") or f"{parts.get('host', 'localhost')}:{parts.get('port', 6379)}")


@contextmanager
def administered(choice: RedisChoice) -> Iterator[AdministeredRedis]:
    """A client for the functions of this module.

    Args:
        choice: Where Redis is, and who asks; the times in it are the service's, and do not count here.

    Raises:
        AdministrationError: For everything that Redis or the way to it lets fail within.
    """
    patient = replace(choice, timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S)
    try:
        with Redis.from_url(choice.url, retry=Retry(NoBackoff(), 0), **patient.options()) as redis:
            yield redis
    except (exceptions.RedisError, OSError) as error:
        raise AdministrationError(_sentence(error, choice)) from error


def stats(redis: AdministeredRedis) -> CacheStats:
    """What is in Redis.

    Args:
        redis: Of `administered`.

    Returns:
        Counts of all games; sizes from `SAMPLED_GAMES` of each model at most.

    Cost:
        A call per thousand keys, and a few dozen for each model.
    """
    counts: dict[str | None, int] = {}
    samples: dict[str | None, list[str]] = {}
    for page in _pages(redis, f"{NAMESPACE}:*"):
        for key in page:
            match = _KEY.fullmatch(key)
            if match is not None:
                model = match["model"]
                counts[model] = counts.get(model, 0) + 1
                # SCAN gives keys in the order of a keyed hash: the first ones are as good a sample as any.
                sample = samples.setdefault(model, [])
                if len(sample) < SAMPLED_GAMES:
                    sample.append(key)
    order = sorted(counts, key=lambda model: (model is None, model or ""))
    return CacheStats(_server(redis), tuple(_looked_at(redis, model, counts[model], samples[model]) for model in order))


def inspect(redis: AdministeredRedis, key: str) -> Inspection | None:
    """What a key holds.

    Args:
        redis: Of `administered`.
        key: As Redis has it.

    Returns:
        What is there; None if nothing is.

    Raises:
        ValueError: If it is the key of no game.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(
            f"this is the key of no game; expected {NAMESPACE}:model:MODEL:DIGEST or {NAMESPACE}:caller:DIGEST, where "
            f"DIGEST is {2 * DIGEST_BYTES} hexadecimal digits"
        )
    pipeline = redis.pipeline(transaction=False)
    pipeline.get(key)
    pipeline.memory_usage(key)
    pipeline.pttl(key)
    value, memory, ttl_ms = pipeline.execute()
    if value is None:
        return None
    found = Inspection(key, match["model"], len(value), memory, None if ttl_ms < 0 else ttl_ms / 1e3, None)
    try:
        header = header_of(value)
        found = replace(found, layout=header["layout"], n_players=header["n_players"], n_known=header["n_known"])
        game = unpacked(value, GameKey.of(key).check, header["n_players"])
    except CorruptValueError as error:
        return replace(found, corruption=error.reason)
    utilities = game.utilities
    return replace(found, least=float(utilities.min()), mean=float(utilities.mean()), greatest=float(utilities.max()))


def purge(redis: AdministeredRedis, model: str | None) -> Purged:
    """Have all utilities of a model, or of all callers, forgotten, by Redis and by all services that ask it.

    A new token comes first. It is part of every key of theirs, so what is in the memory of services, or is written
    with the old token meanwhile, is never found again. Who may not remove keys sets no token either.

    Args:
        redis: Of `administered`.
        model: Id of the model; None: what callers supplied, all of them and under every `utility_id`.

    Returns:
        What was removed.

    Raises:
        ValueError: If no model can have this id.
    """
    if model is not None and re.fullmatch(_MODEL, model) is None:
        raise ValueError("expected a model's id: 1 to 128 letters, digits, dots, dashes, underscores or slashes")
    prefix, owner = (CALLER_PREFIX, CALLERS) if model is None else (model_prefix(model), model)
    redis.unlink(prefix)  # there is no such key: whoever may not unlink is refused here
    redis.scan(match=f"{prefix}*", count=1)
    token = f"{time.time_ns():016x}{secrets.token_hex(TOKEN_BYTES)}"  # of two tokens the later one is the larger one
    redis.set(purge_key(owner), token)
    removed = 0
    for page in _pages(redis, f"{prefix}*"):
        removed += int(_plain(redis.unlink(*page)))
    return Purged(model, token, removed)


def _pages(redis: AdministeredRedis, pattern: str) -> Iterator[list[str]]:
    """Keys in the portions in which SCAN finds them, none of them empty."""
    cursor = 0
    while True:
        cursor, keys = _plain(redis.scan(cursor, match=pattern, count=KEYS_PER_CALL))
        if keys:
            yield [key.decode("utf-8", "replace") for key in keys]
        if not int(cursor):
            return


def _server(redis: AdministeredRedis) -> ServerStats:
    """What INFO says; a server that does not count something has none of it."""
    said: dict[str, Any] = _plain(redis.info())
    return ServerStats(
        version=str(said.get("redis_version", "")),
        used_bytes=int(said.get("used_memory", 0)),
        max_bytes=int(said.get("maxmemory", 0)),
        policy=str(said.get("maxmemory_policy", "")),
        evicted_keys=int(said.get("evicted_keys", 0)),
        expired_keys=int(said.get("expired_keys", 0)),
        hits=int(said.get("keyspace_hits", 0)),
        misses=int(said.get("keyspace_misses", 0)),
    )


@dataclass
class _Sample:
    sizes: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    value_bytes: int = 0
    damaged: int = 0

    def read(self, key: str, value: bytes | None) -> None:
        """Take what a value says; one that has gone meanwhile says nothing."""
        if value is None:
            return
        self.value_bytes += len(value)
        try:
            header = header_of(value)
            self.known.append(unpacked(value, GameKey.of(key).check, header["n_players"]).n_known)
        except CorruptValueError:
            self.known.append(0)
            self.damaged += 1


def _looked_at(redis: AdministeredRedis, model: str | None, n_games: int, keys: Sequence[str]) -> SourceStats:
    """Sizes of some games, and what as many of them know as can be read in good time."""
    sample = _Sample()
    for some in _portions(keys):
        pipeline = redis.pipeline(transaction=False)
        for key in some:
            pipeline.memory_usage(key)
        sample.sizes += [size for size in pipeline.execute() if size is not None]
        if sample.value_bytes < SAMPLED_BYTES:
            for key, value in zip(some, _plain(redis.mget(some)), strict=True):
                sample.read(key, value)
    return SourceStats(
        model, n_games, len(sample.sizes), sum(sample.sizes), len(sample.known), sum(sample.known), sample.damaged
    )


def _portions(keys: Iterable[str]) -> Iterator[list[str]]:
    left = iter(keys)
    while some := list(itertools.islice(left, SAMPLED_GAMES_PER_CALL)):
        yield some


def _plain(answer: Any) -> Any:  # noqa: ANN401 - redis-py declares for each call that it may have to be awaited
    """The answer of a call that blocks."""
    return answer


def _sentence(error: Exception, choice: RedisChoice) -> str:
    """What failed and what to do. Words of Redis are repeated only where no password can be among them."""
    place, user = place_of(choice), parse_url(choice.url).get("username") or "default"
    if isinstance(error, exceptions.NoPermissionError):
        return (
            f"user {user} of Redis at {place} may not do this; {ADMIN_USER}, one of the users in deploy/redis, may: "
            f"name it in --url, as in redis://{ADMIN_USER}@HOST:6379/0, and give its password in REDISCLI_AUTH"
        )
    sentences = {
        "credentials": f"Redis at {place} does not let user {user} in: a password is missing or wrong",
        "timeout": f"Redis at {place} did not answer within {TIMEOUT_S:.0f} s",
        "connection": f"Redis at {place} cannot be reached: {_reason(error)}",
        "out_of_memory": f"Redis at {place} is full and its maxmemory-policy lets it forget nothing",
        "read_only": f"Redis at {place} is a replica and takes no changes; name the primary with --url",
    }
    return sentences.get(failure_of(error), f"Redis at {place} refused: {error}")


def _reason(error: BaseException) -> str:
    """Why a connection failed, in the words of the operating system where it says so."""
    last: BaseException | None = error
    while last is not None:
        if isinstance(last, OSError) and last.strerror:
            return last.strerror
        last = last.__cause__ or last.__context__
    return str(error) or type(error).__name__
