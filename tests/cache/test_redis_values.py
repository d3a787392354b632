"""Values in Redis that are not what their key promises: each is counted, missed, and replaced by a sound one."""

from __future__ import annotations

import struct
import zlib

import anyio
import numpy as np
import pytest

from cache.replicas import N_KINDS, agreed, asked, faults, moved, replica, shared, without_cache
from creditd.cache.games import KnownGame, header_of, unpacked
from creditd.cache.keys import GameKey, purge_key
from redis_servers import RedisServer

pytestmark = pytest.mark.redis

BODIES = [asked(number) for number in range(2 * N_KINDS)]
HEADER_BYTES = 24


def games(client):
    """All values of games, by key."""
    return {key: client.get(key) for key in client.scan_iter("creditd:1:model:*")}


def put(client, key, value):
    """Put a value in the place of another, which expires when that would have."""
    client.set(key, value, keepttl=True)


def flipped(value, bit):
    """A value with one bit turned over."""
    found = bytearray(value)
    found[bit // 8] ^= 1 << bit % 8
    return bytes(found)


def with_checksum(value):
    """A value that was changed by somebody who knows the format."""
    return value[:4] + struct.pack("<I", zlib.crc32(value[8:])) + value[8:]


def own_check(key):
    """The check bytes that a value of a key has."""
    return GameKey.of(key.decode()).check


def truncated(_, value, others):
    """Less than a header."""
    del others
    return value[: HEADER_BYTES - 1]


def empty(_, value, others):
    """Nothing at all."""
    del value, others
    return b""


def half(_, value, others):
    """A header and the beginning of the numbers."""
    del others
    return value[: (HEADER_BYTES + len(value)) // 2]


def longer(_, value, others):
    """A byte too much."""
    del others
    return value + b"\0"


def flipped_in_front(_, value, others):
    """Another format."""
    del others
    return flipped(value, 3)


def flipped_in_a_number(_, value, others):
    """The last bit of a mantissa: nobody would see it in a credit."""
    del others
    return flipped(value, 8 * HEADER_BYTES)


def foreign(key, value, others):
    """The value of another key, of a game of the same size."""
    size = header_of(value)["n_players"]
    return next(
        other
        for other_key, other in others.items()
        if other_key != key and other != value and header_of(other)["n_players"] == size
    )


def somebody_elses(_, value, others):
    """What another program keeps under this key."""
    del others
    return b'{"json": true, "what": "is this doing here"}' + value


def of_another_size(key, value, others):
    """A sound value of the key, of a game with other players."""
    del others
    n = header_of(value)["n_players"] + 1
    return KnownGame(n, np.zeros(2**n), None).packed(own_check(key))


def not_finite(key, value, others):
    """A sound value of the key, with a number that is none."""
    del others
    n = header_of(value)["n_players"]
    return KnownGame(n, np.full(2**n, np.nan), None).packed(own_check(key))


def more_than_there_is(_, value, others):
    """A header that claims more numbers than follow."""
    del others
    return with_checksum(value[:12] + struct.pack("<I", 2**31) + value[16:])


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (empty, "truncated"),
        (truncated, "truncated"),
        (half, "checksum"),
        (longer, "checksum"),
        (flipped_in_front, "unknown_format"),
        (flipped_in_a_number, "checksum"),
        (foreign, "foreign"),
        (somebody_elses, "unknown_format"),
        (of_another_size, "shape"),
        (not_finite, "not_finite"),
        (more_than_there_is, "shape"),
    ],
)
def test_a_value_that_is_damaged_is_evaluated_anew(damaged, reason):
    """Each damaged value is counted once and replaced; credits have the bits of a service without a cache."""

    async def scenario(server):
        client = server.client()
        async with without_cache() as reference, replica(server.url) as one:
            await agreed(one, reference, BODIES)
            await one.written()
            sound = games(client)
            for key, value in sound.items():
                put(client, key, damaged(key, value, sound))
            before = await one.counters()
            usages = await agreed(one, reference, BODIES)
            await one.written()
            assert faults(moved(before, await one.counters())) == {f"corrupt {reason}": len(sound)}
            assert all(usage["evaluations"] for usage in usages)
            assert not any(usage["from_cache"] for usage in usages)
            assert games(client) == sound
            assert not any(usage["evaluations"] for usage in await shared(server.url, reference, BODIES))

    with RedisServer() as server:
        anyio.run(scenario, server)


def test_one_damaged_value_costs_its_own_game_alone():
    """The other games of the same request are remembered."""

    async def scenario(server):
        client = server.client()
        async with without_cache() as reference, replica(server.url) as one:
            await agreed(one, reference, BODIES[:1])
            await one.written()
            sound = games(client)
            key = min(sound)
            put(client, key, flipped(sound[key], 8 * len(sound[key]) - 1))
            (usage,) = await agreed(one, reference, BODIES[:1])
            n_known = header_of(sound[key])["n_known"]
            assert (usage["evaluations"], usage["from_cache"]) == (n_known, 16 - n_known)

    with RedisServer() as server:
        anyio.run(scenario, server)


def test_a_key_that_holds_something_else_than_a_value_is_a_miss():
    """A list, a hash or a set under the key of a game: it is missed, and replaced."""
    others = (
        lambda client, key: client.lpush(key, "1"),
        lambda client, key: client.hset(key, "1", "1"),
        lambda client, key: client.sadd(key, "1"),
        lambda client, key: client.zadd(key, {"1": 1.0}),
        lambda client, key: client.xadd(key, {"1": "1"}),
    )

    async def scenario(server):
        client = server.client()
        async with without_cache() as reference, replica(server.url) as one:
            await agreed(one, reference, BODIES)
            await one.written()
            sound = games(client)
            for number, key in enumerate(sound):
                client.delete(key)
                others[number % len(others)](client, key)
            before = await one.counters()
            await agreed(one, reference, BODIES)
            await one.written()
            changes = moved(before, await one.counters())
            assert faults(changes) == {}
            assert set(changes) == {"games missed"}
            assert games(client) == sound
            assert not any(usage["evaluations"] for usage in await shared(server.url, reference, BODIES))

    with RedisServer() as server:
        anyio.run(scenario, server)


@pytest.mark.parametrize("token", [b"", b"\xff\xfe\x00", b"x" * 100_000, None])
def test_any_token_of_a_purge_is_a_token(token):
    """Whatever stands where a purge leaves its token changes keys and no answer; replicas go on to share."""

    async def scenario(server):
        client = server.client()
        async with without_cache() as reference, replica(server.url) as one:
            await agreed(one, reference, BODIES)
            await one.written()
            if token is None:
                client.lpush(purge_key("rm"), "1")
            else:
                client.set(purge_key("rm"), token)
            await agreed(one, reference, BODIES)
            await one.written()
            await agreed(one, reference, BODIES)
            await one.written()
            assert faults(await one.counters()) == {}
            assert not any(usage["evaluations"] for usage in await shared(server.url, reference, BODIES))

    with RedisServer() as server:
        anyio.run(scenario, server)


def test_all_values_are_of_their_own_key_and_expire():
    """What is written can be checked by anybody, and is forgotten in the time that the settings say."""

    async def scenario(server):
        client = server.client()
        async with without_cache() as reference, replica(server.url, cache_ttl_s=1000.0) as one:
            await agreed(one, reference, BODIES)
            await one.written()
        found = games(client)
        assert len(found) == client.dbsize()
        for key, value in found.items():
            game = unpacked(value, own_check(key), header_of(value)["n_players"])
            assert game.n_known > 0
            assert 900_000 < client.pttl(key) <= 1_100_000

    with RedisServer() as server:
        anyio.run(scenario, server)
