"""Weights of a policy: what a client sends, shard by shard, and what it makes of the answers."""

import gc
import hashlib
import json
import tracemalloc
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from creditd.client import exceptions
from creditd.client.steps import PIECE_BYTES
from creditd.wire.errors import ErrorCode

SHARDS = [b"first shard", b"second", b"third one"]


ANSWER = {
    "request_id": "r",
    "service": {"version": "9.9", "methods": 1},
    "model": "org/policy",
    "weight_version": "v0",
    "n_bytes": 1,
    "n_tensors": 1,
    "seconds": {"receive": 0.0, "verify": 0.0, "swap": 0.0},
    "cast_from": None,
    "missing_shards": [],
    "status": "announced",
    "a later field": True,
}


class Spool:
    """A service that keeps shards until all are there, and loses them when told."""

    def __init__(self, loses_before=None):
        self.seen, self.arrived, self.live, self.loses_before = [], {}, "v0", loses_before

    def __call__(self, request):
        """Answer one request."""
        self.seen.append(request)
        answer = {**ANSWER, "weight_version": self.live}
        if request.headers["content-type"] == "application/json":
            if json.loads(request.content)["type"] == "path":
                answer |= {"status": "live", "weight_version": json.loads(request.content)["weight_version"]}
            return httpx.Response(200, json=answer)
        query = {name: values[0] for name, values in parse_qs(urlsplit(str(request.url)).query).items()}
        if query["shard"] == self.loses_before:
            self.arrived.clear()
        assert query["checksum"] == hashlib.blake2b(request.content, digest_size=16).hexdigest()
        self.arrived[int(query["shard"])] = request.content
        missing = [shard for shard in range(int(query["shards"])) if shard not in self.arrived]
        if not missing:
            self.live = query["weight_version"]
        status = "staged" if missing else "live"
        return httpx.Response(200, json={**answer, "status": status, "missing_shards": missing})


def test_shards_are_announced_and_sent_one_by_one(runner) -> None:
    """A generator is asked for a shard once the one before is answered, after the version was announced."""
    spool, made = Spool(), []

    def shards():
        for content in SHARDS:
            made.append((len(spool.seen), content))
            yield content

    answer = runner.call(
        runner.client(spool), "push_weights", "org/policy", shards(), weight_version="run 7:40", n_shards=3
    )
    assert (answer.status, answer.missing_shards) == ("live", [])
    assert [number for number, _ in made] == [1, 2, 3]
    assert [spool.arrived[place] for place in range(3)] == SHARDS
    assert {request.url.path for request in spool.seen} == {"/v1/models/org/policy/weights"}
    first, *others = spool.seen
    assert json.loads(first.content) == {"type": "announce", "weight_version": "run 7:40"}
    assert {request.headers["content-type"] for request in others} == {"application/vnd.creditd.safetensors"}
    assert {request.headers["accept"] for request in spool.seen} == {"application/json"}
    assert len({request.headers["x-request-id"] for request in spool.seen}) == 1
    query = parse_qs(urlsplit(str(others[1].url)).query)
    assert (query["weight_version"], query["shard"], query["shards"]) == (["run 7:40"], ["1"], ["3"])
    assert (query["adapter"], query["merged"]) == (["false"], ["false"])


def test_an_adapter_says_so(runner) -> None:
    """The query tells what the shards are."""
    spool = Spool()
    runner.call(
        runner.client(spool), "push_weights", "org/policy", [b"a"], weight_version="v", adapter=True, merged=True
    )
    assert "adapter=true&merged=true" in str(spool.seen[-1].url)


@pytest.mark.parametrize("size", [PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 17])
def test_a_long_shard_travels_in_pieces_and_whole(size, runner) -> None:
    """However long a shard is, its bytes arrive, with their number in the head; also when it is sent again."""
    spool, content = Spool(), bytes(number % 251 for number in range(size))
    lost = iter([httpx.ReadError("lost")])

    def service(request):
        if request.headers["content-type"] != "application/json":
            for error in lost:
                raise error
        return spool(request)

    runner.call(runner.client(service), "push_weights", "org/policy", [content], weight_version="v")
    assert spool.arrived == {0: content}
    assert spool.seen[-1].headers["content-length"] == str(size)
    assert "transfer-encoding" not in spool.seen[-1].headers
    assert spool.seen[-1].headers["x-retry-count"] == "1"


@pytest.mark.parametrize(("announced", "patience"), [(5.0, 5.0), (None, 60.0)])
def test_a_service_that_is_away_is_waited_for_before_anything_is_made(announced, patience, runner, clock) -> None:
    """No longer than the announcement may take; no shard is made for it."""
    start, made = clock.now, []

    def away(_):
        raise httpx.ConnectError("gone")

    def shards():
        made.append(1)
        yield b"a"

    options = {"deadline_s": 60.0, "announce_deadline_s": announced}
    with pytest.raises(exceptions.TransportError):
        runner.call(
            runner.client(away), "push_weights", "org/policy", shards(), weight_version="v", n_shards=1, **options
        )
    assert patience / 4 < clock.now - start <= patience
    assert made == []


def test_a_shard_has_the_time_of_a_shard(runner, clock) -> None:
    """However short that of the announcement is."""
    spool, start = Spool(), clock.now

    def slow(request):
        if request.headers["content-type"] != "application/json" and clock.now < start + 10.0:
            raise httpx.ConnectError("gone")
        return spool(request)

    options = {"weight_version": "v", "deadline_s": 60.0, "announce_deadline_s": 1.0}
    answer = runner.call(runner.client(slow), "push_weights", "org/policy", [b"a"], **options)
    assert answer.status == "live"
    assert clock.now >= start + 10.0


def test_weights_on_a_shared_disk_are_named(runner) -> None:
    """`load_weights` sends a path, and whatever else was said."""
    spool = Spool()
    answer = runner.call(
        runner.client(spool),
        "load_weights",
        "org/policy",
        "run/step_1",
        weight_version="v1",
        adapter=True,
        checksum="0" * 32,
    )
    assert json.loads(spool.seen[0].content) == {
        "type": "path",
        "path": "run/step_1",
        "weight_version": "v1",
        "adapter": True,
        "merged": False,
        "checksum": "0" * 32,
    }
    assert (answer.status, answer.weight_version) == ("live", "v1")


def test_shards_that_the_service_lost_are_an_unknown_version(runner) -> None:
    """A service that is restarted in the middle of a push says which shards it lacks: the push has to begin again."""
    spool = Spool(loses_before="2")
    with pytest.raises(exceptions.WeightVersionUnknownError, match="lost 2 shards") as caught:
        runner.call(runner.client(spool), "push_weights", "org/policy", SHARDS, weight_version="v")
    assert (caught.value.code, caught.value.status) == ("weight_version_unknown", 409)


@pytest.mark.parametrize(
    ("shards", "n_shards", "message"),
    [
        (lambda: iter(SHARDS), None, "expected n_shards"),
        (list, None, "got 0 shards; expected 1"),
        (lambda: SHARDS, 2, "got 3 shards; expected 2"),
        (lambda: SHARDS, 4, "got 3 shards; expected 4"),
        (lambda: iter(SHARDS), 4, "got 3 shards; expected 4"),
        (lambda: iter(SHARDS[:1]), 0, "got 0 shards; expected 1"),
        (lambda: iter(SHARDS), 2, "got more shards than 2"),
    ],
)
def test_a_number_of_shards_that_is_wrong_is_refused(shards, n_shards, message, runner) -> None:
    """A number that does not fit is said before anything is sent, as far as it is known by then."""
    spool = Spool()
    with pytest.raises(ValueError, match=message):
        runner.call(runner.client(spool), "push_weights", "m", shards(), weight_version="v", n_shards=n_shards)
    assert spool.live == ("v" if message == "got more shards than 2" else "v0")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ErrorCode.FORBIDDEN, exceptions.ForbiddenError),
        (ErrorCode.WEIGHTS_REFUSED, exceptions.WeightsRefusedError),
        (ErrorCode.WEIGHT_VERSION_MISMATCH, exceptions.WeightVersionMismatchError),
        (ErrorCode.WEIGHT_VERSION_UNKNOWN, exceptions.WeightVersionUnknownError),
        (ErrorCode.UNKNOWN_MODEL, exceptions.NotFoundError),
    ],
)
def test_a_refusal_is_raised_at_once_and_by_name(code, kind, runner, script, failing) -> None:
    """Nothing that is wrong for good is sent twice, and no shard is made after it."""
    service = script([failing(code)])

    def shards():
        raise AssertionError("a shard was made")
        yield b""

    with pytest.raises(kind):
        runner.call(runner.client(service), "push_weights", "policy", shards(), weight_version="v", n_shards=1)
    assert len(service.seen) == 1


def test_local_mode_has_no_policies(runner) -> None:
    """There is no model whose weights could be replaced."""
    client = runner.client(url="local:")
    for name, more in (("load_weights", ["path"]), ("push_weights", [[b"x"]]), ("announce_weights", [])):
        with pytest.raises(exceptions.NotFoundError, match="local mode has no models"):
            runner.call(client, name, "policy", *more, weight_version="v")


def test_a_shard_is_forgotten_before_the_next_is_made(runner) -> None:
    """However many shards come, no more than one is kept, whoever has sent it."""
    size, alive, seen = 8 << 20, [], []

    def shards():
        for number in range(5):
            gc.collect()  # this transport reads bodies, and httpx ties requests to their answers
            alive.append(tracemalloc.get_traced_memory()[0])
            yield bytes([number]) * size

    def service(request):
        seen.append(len(request.content))
        return httpx.Response(200, json={**ANSWER, "status": "live" if len(seen) == 6 else "staged"})

    client = runner.client(service)
    tracemalloc.start()
    try:
        runner.call(client, "push_weights", "m", shards(), weight_version="v", n_shards=5)
    finally:
        tracemalloc.stop()
    assert seen[1:] == [size] * 5
    assert max(alive[1:]) - alive[0] < size // 2
