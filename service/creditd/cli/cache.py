"""`creditd cache stats | inspect KEY | purge --model ID | purge --callers`: what is remembered in Redis."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from creditd.cache.administration import (
    AdministeredRedis,
    AdministrationError,
    CacheStats,
    Inspection,
    SourceStats,
    administered,
    inspect,
    place_of,
    purge,
    stats,
)
from creditd.cache.redis import RedisChoice, check_url
from creditd.cache.tiers import WATCH_S
from creditd.server.settings import SettingsError, load_redis_settings

_DONE, _FAILED, _NOT_UNDERSTOOD = 0, 1, 2
_NO_REDIS = (
    "this service has no Redis: neither redis_url in its settings (--config FILE, CREDITD_REDIS_URL) nor --url names "
    "one; what it remembers is in its memory alone, until it ends"
)


def run(options: argparse.Namespace) -> int:
    """Run one of the commands.

    Args:
        options: Parsed command line; `action` is the name of the command.

    Returns:
        0; 1 if Redis does not do it, or has no sound value under a key; 2 for settings that cannot be used, and for
        what is no id of a model and the key of no game.
    """
    try:
        choice = _choice(options)
        if choice is None:
            return _said(options, _NO_REDIS, _NOT_UNDERSTOOD)
        with administered(choice) as redis:
            text, status = _ACTIONS[options.action](options, redis, choice)
    except AdministrationError as error:
        return _said(options, str(error), _FAILED)
    except (SettingsError, ValueError) as error:
        return _said(options, str(error), _NOT_UNDERSTOOD)
    print(text)
    return status


def _stats(options: argparse.Namespace, redis: AdministeredRedis, choice: RedisChoice) -> tuple[str, int]:
    found = stats(redis)
    return json.dumps(_stats_document(found, choice)) if options.json else "\n".join(_stats_lines(found, choice)), _DONE


def _inspect(options: argparse.Namespace, redis: AdministeredRedis, choice: RedisChoice) -> tuple[str, int]:
    found = inspect(redis, options.key)
    if found is None:
        raise AdministrationError(f"Redis at {place_of(choice)} has no value under this key")
    text = json.dumps(asdict(found)) if options.json else "\n".join(_inspection_lines(found))
    return text, _DONE if found.corruption is None else _FAILED


def _purge(options: argparse.Namespace, redis: AdministeredRedis, choice: RedisChoice) -> tuple[str, int]:
    done = purge(redis, None if options.callers else options.model)
    owner = "callers" if done.model is None else f"model {done.model}"
    removed = f"Removed {done.removed:,} games" if done.removed else "There were no games"
    text = (
        f"{removed} of {owner} in Redis at {place_of(choice)}.\n"
        "Services that use this Redis forget what they have in memory of it: with their next call of Redis, or within "
        f"{WATCH_S:.0f} s."
    )
    return text, _DONE


_ACTIONS: dict[str, Callable[[argparse.Namespace, AdministeredRedis, RedisChoice], tuple[str, int]]] = {
    "stats": _stats,
    "inspect": _inspect,
    "purge": _purge,
}


def _said(options: argparse.Namespace, sentence: str, status: int) -> int:
    print(f"creditd cache {options.action}: {sentence}", file=sys.stderr)
    return status


def _choice(options: argparse.Namespace) -> RedisChoice | None:
    """Where Redis is: of the command line with its own password, or of the service's settings."""
    password = os.environ.get("REDISCLI_AUTH")
    if options.url is not None and password:
        check_url(options.url)
        return RedisChoice(options.url, password=password)
    return load_redis_settings(options.config, redis_url=options.url).redis


def _stats_document(found: CacheStats, choice: RedisChoice) -> dict[str, Any]:
    server = {"address": place_of(choice), **asdict(found.server), "hit_ratio": found.server.hit_ratio}
    sources = [
        {
            "source": "caller" if source.model is None else "model",
            "model": source.model,
            "games": source.games,
            "bytes": source.bytes,
            "utilities": source.utilities,
            "exact": source.exact,
            "sampled": source.sampled,
            "read": source.read,
            "damaged": source.damaged,
        }
        for source in found.sources
    ]
    return {"server": server, "sources": sources}


def _stats_lines(found: CacheStats, choice: RedisChoice) -> list[str]:
    server = found.server
    most = f"of {_size(server.max_bytes)}" if server.max_bytes else "without a limit"
    ratio = "nothing was asked for yet" if server.hit_ratio is None else f"{server.hit_ratio:.1%} of the keys asked for"
    lines = [
        f"Redis {server.version} at {place_of(choice)}",
        f"  memory     {_size(server.used_bytes)} {most}, {server.policy}",
        f"  forgotten  {server.evicted_keys:,} keys for want of memory, {server.expired_keys:,} as their time was over",
        f"  hits       {ratio}",
        "",
    ]
    if not found.sources:
        return [*lines, "No utilities are remembered."]
    lines += [f"{'games':>10}{'memory':>12}{'utilities':>15}  of", *map(_source_line, found.sources)]
    if not all(source.exact for source in found.sources):
        sampled = ", ".join(f"{source.sampled:,}" for source in found.sources if not source.exact)
        lines += ["", f"~ extrapolated from games that were looked at: {sampled}."]
    damaged = sum(source.damaged for source in found.sources)
    if damaged:
        lines += ["", f"damaged among those that were looked at: {damaged:,}; services take them for missing."]
    return lines


def _source_line(source: SourceStats) -> str:
    about = "" if source.exact else "~"
    name = "callers" if source.model is None else f"model {source.model}"
    return f"{source.games:>10,}{about + _size(source.bytes):>12}{f'{about}{source.utilities:,}':>15}  {name}"


def _inspection_lines(found: Inspection) -> list[str]:
    whose = "a caller of /v1/credit/shapley/solve" if found.model is None else f"model {found.model}"
    memory = "" if found.memory_bytes is None else f", {_size(found.memory_bytes)} in Redis"
    fields = [("source", whose), ("size", f"{_size(found.value_bytes)}{memory}"), ("expires", _time(found.ttl_s))]
    if found.layout is not None:
        layout = "all coalitions" if found.layout == "table" else "some coalitions, each with its utility"
        fields += [("layout", f"{found.layout}: {layout}"), ("players", str(found.n_players))]
        fields += [("utilities", f"{found.n_known:,}")]
    if found.mean is not None:
        fields += [("values", f"least {found.least:.6g}, mean {found.mean:.6g}, greatest {found.greatest:.6g}")]
    sound = "sound" if found.corruption is None else f"damaged ({found.corruption}); services take it for missing"
    return [found.key, *(f"  {name:<11}{text}" for name, text in [*fields, ("value", sound)])]


def _size(n_bytes: int) -> str:
    if n_bytes < 1024:
        return f"{n_bytes} B"
    size, units = n_bytes / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"in {hours} h {minutes} min {rest} s"
