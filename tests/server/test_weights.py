"""What becomes of weights that are pushed to a policy, named for it, or announced."""

import json
import threading
from pathlib import Path

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from creditd.engines.fingerprints import digest_of
from creditd.wire.weights import WeightsResponse
from server.oar_calls import item_of
from server.running import OAR, nested, on_service
from server.test_errors import problem_of
from server.weight_calls import (
    PATIENCE_S,
    POLICY,
    ROUTE,
    TakingPolicy,
    name,
    push,
    query_of,
    safetensors_of,
    send,
    shards_of,
    taking,
)

ITEM = item_of([5, 6, 7, 8])


def spooled(folder):
    """Every file of shards in a spool."""
    return [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "lock"]


def pinned(version, **more):
    """A request about one completion that is pinned to a version."""
    return {"model": POLICY, "weight_version": version, "items": [ITEM], **more}


async def reached(true):
    """Wait until something is so."""
    with anyio.fail_after(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - what is waited for happens on threads
            await anyio.sleep(0.002)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 0, 2)])
def test_the_last_shard_that_was_missing_makes_weights_live(order, tmp_path):
    """Shards come in any order, and twice; each answer says what is missing, the last one that the weights are live."""
    policy = TakingPolicy(version="first")

    async def ask(service):
        found = await push(service, order=order)
        return found, (await service.client.get("/v1/models")).json(), (await service.client.get("/v1/info")).json()

    answers, models, info = on_service(ask, taking(policy, weights_spool=tmp_path))
    for answer in answers:
        WeightsResponse.model_validate_json(json.dumps(answer))
    seen = set()
    for number, answer in zip(order[:-1], answers, strict=False):
        seen.add(number)
        assert (answer["status"], answer["weight_version"]) == ("staged", "first")
        assert answer["missing_shards"] == sorted({0, 1, 2} - seen)
        assert (answer["n_tensors"], answer["n_bytes"]) == (0, len(seen) * len(shards_of()[0]))
    last = answers[-1]
    assert (last["status"], last["weight_version"], last["missing_shards"]) == ("live", "v1", [])
    assert (last["n_tensors"], last["n_bytes"], last["model"]) == (3, 48, POLICY)
    assert policy.taken == [("v1", False, False)]
    (weights,) = info["weights"]
    assert weights["id"] == POLICY
    assert (weights["weight_version"], weights["announced_versions"], weights["swaps"]) == ("v1", [], 1)
    one = next(entry for entry in models["models"] if entry["id"] == POLICY)
    assert (one["kind"], one["weight_version"], one["weights"]) == ("policy", "v1", weights)
    assert next(entry for entry in models["models"] if entry["id"] == "rm")["weights"] is None
    assert spooled(tmp_path) == []


def test_a_swap_is_counted_and_its_log_line_names_the_route_alone(log, tmp_path):
    """Counters know how often weights were replaced; neither they nor the log hold a version, or an id from a path."""

    async def ask(service):
        await push(service, version="v1")
        await push(service, version="v1")
        await push(service, version="secret-run:2")
        await service.client.post("/v1/models/some-other/weights", json={})
        return (await service.client.get("/metrics")).text

    text = on_service(ask, taking(weights_spool=tmp_path))
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["creditd_weight_swaps_total", POLICY] == 2
    assert samples["creditd_weight_swap_seconds_count", POLICY] == 2
    assert samples["creditd_requests_total", ROUTE, "200"] == 9
    assert samples["creditd_requests_total", ROUTE, "404"] == 1
    assert {line["route"] for line in log.requests} == {ROUTE, "/metrics"}
    assert not any("secret-run" in line or "some-other" in line for line in [*log.texts, text])


def test_weights_that_do_not_fit_are_refused_and_may_come_again(tmp_path):
    """What the policy refuses is 422 for whoever sent the last shard; the version is then free for other bytes."""
    policy = TakingPolicy()

    async def ask(service):
        content = safetensors_of({"z": b"1"})
        refused = await send(service, content, shards=1)
        again = await push(service)
        return refused, again

    refused, again = on_service(ask, taking(policy, weights_spool=tmp_path))
    assert "got 1 tensors; expected 3" in problem_of(refused, "weights_refused")["detail"]
    assert again[-1]["status"] == "live"
    assert spooled(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-1] + b"?", "checksum"),
        (lambda content: content[:-1], "checksum"),
        (lambda content: content + b"?", "checksum"),
        (lambda _: b"", "checksum"),
    ],
)
def test_a_shard_that_is_not_what_was_named_is_refused_and_forgotten(damage, words, tmp_path):
    """Bytes with another checksum leave nothing behind, and the right ones are taken afterwards."""

    async def ask(service):
        shard = shards_of()[0]
        refused = await send(service, shard, body=damage(shard))
        left = spooled(tmp_path)
        return refused, left, await push(service)

    refused, left, answers = on_service(ask, taking(weights_spool=tmp_path))
    assert words in problem_of(refused, "weights_refused")["detail"]
    assert left == []
    assert answers[-1]["status"] == "live"


@pytest.mark.parametrize("content", [b"", b"no safetensors", (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_shard_that_is_no_safetensors_file_is_refused(content, tmp_path):
    """The right checksum does not make a file of weights."""
    response = on_service(lambda service: send(service, content), taking(weights_spool=tmp_path))
    problem_of(response, "weights_refused")


def test_a_shard_with_other_bytes_than_before_is_refused(tmp_path):
    """A shard that comes again is the same one, or the two cannot both be of this version."""

    async def ask(service):
        await send(service, shards_of()[0])
        return await send(service, shards_of(b"y")[0]), await push(service)

    refused, answers = on_service(ask, taking(weights_spool=tmp_path))
    assert "other bytes" in problem_of(refused, "weights_refused")["detail"]
    assert answers[-1]["status"] == "live"


def test_two_who_push_one_version_at_once_get_one_answer(tmp_path):
    """Both are told that it is live, and it was taken once."""
    policy = TakingPolicy()

    async def ask(service):
        answers = []

        async def one():
            answers.append(await push(service))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            tasks.start_soon(one)
        return answers

    answers = on_service(ask, taking(policy, weights_spool=tmp_path))
    assert [answer[-1]["status"] for answer in answers] == ["live", "live"]
    assert policy.taken == [("v1", False, False)]
    assert spooled(tmp_path) == []


def test_two_who_push_other_bytes_as_one_version_do_not_mix(tmp_path):
    """While one is being taken, the other is refused; never are shards of both in one set of weights."""
    policy = TakingPolicy()

    async def ask(service):
        policy.gate.clear()
        first = []

        async def one():
            first.extend(await push(service))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            await reached(lambda: len(spooled(tmp_path)) == 3)
            others = [await send(service, shard, number) for number, shard in enumerate(shards_of(b"y"))]
            policy.gate.set()
        return first, others

    first, others = on_service(ask, taking(policy, weights_spool=tmp_path))
    assert first[-1]["status"] == "live"
    for response in others:
        problem_of(response, "weight_version_mismatch")
    assert len(policy.taken) == 1


def test_an_adapter_brings_its_configuration(tmp_path):
    """Metadata of the first shard hold it; the query says whether it is merged."""
    policy = TakingPolicy()

    async def ask(service):
        tensors = dict.fromkeys("abc", b"x")
        config = {"adapter_config": json.dumps({"r": 1})}
        without = await send(service, safetensors_of(tensors), shards=1, adapter="true", version="bad")
        content = safetensors_of(tensors, config)
        return without, await send(service, content, shards=1, adapter="true", merged="true", version="good")

    without, good = on_service(ask, taking(policy, weights_spool=tmp_path))
    assert "adapter_config" in problem_of(without, "weights_refused")["detail"]
    assert good.json()["status"] == "live"
    assert policy.taken == [("good", True, True)]


# Weights that are named


@pytest.fixture
def saved(tmp_path):
    """A directory with weights below a root, and what stands outside it."""
    root = tmp_path / "root"
    (root / "run" / "step_1").mkdir(parents=True)
    (root / "run" / "step_1" / "model.safetensors").write_bytes(safetensors_of(dict.fromkeys("abc", b"xyz")))
    (tmp_path / "outside.safetensors").write_bytes(safetensors_of(dict.fromkeys("abc", b"xyz")))
    return root


def test_weights_below_the_root_are_named(saved, tmp_path):
    """A directory, its file, and the same with a checksum: all are taken, and the files stay."""
    folder = saved / "run" / "step_1"
    checksum = digest_of(folder, [folder / "model.safetensors"])

    async def ask(service):
        return [
            await name(service, type="path", path="run/step_1", weight_version="v1"),
            await name(service, type="path", path="run/step_1/model.safetensors", weight_version="v2"),
            await name(service, type="path", path="run/step_1", weight_version="v3", checksum=checksum),
        ]

    for number, response in enumerate(on_service(ask, taking(weights_root=saved, weights_spool=tmp_path)), start=1):
        found = response.json()
        assert (found["status"], found["weight_version"], found["n_tensors"]) == ("live", f"v{number}", 3)
        assert found["seconds"]["receive"] == 0.0
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "named",
    [
        {"path": "../outside.safetensors"},
        {"path": "/etc"},
        {"path": "run"},
        {"path": "nowhere"},
        {"path": "run/step_1", "checksum": "0" * 32},
        {"path": "run/step_1", "adapter": True},
        {"path": "run/step_1\x00"},
    ],
)
def test_nothing_else_can_be_named(named, saved, tmp_path):
    """What is outside the root, is not there, or is not what the checksum says is 422; no path is told."""

    async def ask(service):
        return await name(service, type="path", weight_version="v1", **named)

    response = on_service(ask, taking(weights_root=saved, weights_spool=tmp_path))
    problem_of(response, "weights_refused")
    assert str(tmp_path) not in response.text


def test_without_a_root_nothing_can_be_named(tmp_path):
    """A service without a directory for weights says which setting it lacks."""
    response = on_service(
        lambda service: name(service, type="path", path="x", weight_version="v"), taking(weights_spool=tmp_path)
    )
    assert "weights_root" in problem_of(response, "weights_refused")["detail"]


@pytest.mark.parametrize(
    ("document", "code", "pointer"),
    [
        ({}, "invalid_request", "/type"),
        ({"type": "path", "weight_version": "v"}, "invalid_request", ""),
        ({"type": "path", "weight_version": "v", "path": ""}, "invalid_request", "/path"),
        ({"type": "path", "weight_version": "", "path": "p"}, "invalid_request", "/weight_version"),
        ({"type": "path", "weight_version": "v", "path": "p", "merged": True}, "invalid_request", ""),
        ({"type": "announce", "weight_version": "v", "path": "p"}, "invalid_request", ""),
        ({"type": "announce", "weight_version": "v", "url": "http://x"}, "unknown_field", "/url"),
        ({"type": "path", "weight_version": "v", "path": "p", "checksum": "F" * 32}, "invalid_request", "/checksum"),
    ],
)
def test_a_document_that_is_none_is_refused(document, code, pointer, tmp_path):
    """Choices that contradict each other, and fields that there are not, are named."""
    response = on_service(lambda service: name(service, **document), taking(weights_spool=tmp_path))
    assert problem_of(response, code)["errors"][0]["pointer"] == pointer


def test_a_version_that_cannot_be_printed_is_refused(tmp_path):
    """A line break in a name would be one in everything that shows it."""
    response = on_service(
        lambda service: name(service, type="announce", weight_version="a\nb"), taking(weights_spool=tmp_path)
    )
    problem_of(response, "weights_refused")


# Versions and the requests that name them


def test_a_request_waits_for_weights_that_are_announced(tmp_path):
    """An announced version is worth waiting for; its answer comes with the push and names it."""
    policy = TakingPolicy()

    async def ask(service):
        announced = await name(service, type="announce", weight_version="v1")
        found = []

        async def one():
            found.append(await service.post(pinned("v1"), OAR))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            await reached(lambda: policy.status().queued_tokens > 0)
            others = await service.post(pinned(None), OAR)
            before = list(found)
            await push(service)
        return announced, others, before, found[0]

    announced, others, before, found = on_service(ask, taking(policy, weights_spool=tmp_path))
    assert (announced.json()["status"], announced.json()["weight_version"]) == ("announced", "v0")
    assert (before, others.json()["weight_version"]) == ([], "v0")
    assert found.json()["weight_version"] == "v1"
    assert found.json()["items"][0]["sensitivities"][0] == 10 * others.json()["items"][0]["sensitivities"][0]


def test_a_service_that_was_restarted_knows_neither_shards_nor_versions(tmp_path):
    """Shards and the pushed version are gone: a pinned request is 409, and a push that goes on is told what lacks."""

    async def before(service):
        await push(service, version="v1")
        return await send(service, shards_of()[0], 0, version="v2"), await service.post(pinned("v1"), OAR)

    async def after(service):
        refused = await service.post(pinned("v1"), OAR)
        going_on = await send(service, shards_of()[1], 1, version="v2")
        healed = await push(service, version="v1")
        return refused, going_on, healed, await service.post(pinned("v1"), OAR)

    staged, answered = on_service(before, taking(weights_spool=tmp_path))
    assert (staged.json()["missing_shards"], answered.status_code) == ([1, 2], 200)
    assert spooled(tmp_path) == []
    refused, going_on, healed, again = on_service(after, taking(weights_spool=tmp_path))
    problem_of(refused, "weight_version_unknown")
    assert going_on.json()["missing_shards"] == [0, 2]
    assert healed[-1]["status"] == "live"
    assert again.json()["items"] == answered.json()["items"]


def test_another_version_fails_at_once_where_that_is_asked_for(tmp_path):
    """A version that was replaced is known: 409 of another kind than one that never was."""

    async def ask(service):
        await push(service, version="v1")
        return [await service.post(pinned(version, if_not_ready="fail"), OAR) for version in ("v0", "v7")]

    replaced, never = on_service(ask, taking(weights_spool=tmp_path))
    problem_of(replaced, "weight_version_mismatch")
    problem_of(never, "weight_version_unknown")


# What else goes on meanwhile


def test_others_are_answered_while_weights_arrive_and_are_taken(tmp_path):
    """Neither a body that stops half-way nor a swap that takes long holds anybody up."""
    policy, going_on = TakingPolicy(), threading.Event()

    async def ask(service):
        shard = shards_of(size=3 << 20)[0]

        async def halting():
            yield shard[: 2 << 20]
            await reached(going_on.is_set)
            yield shard[2 << 20 :]

        statuses, answers = [], []

        async def one(content, number, body=None):
            answers.append((await send(service, content, number, body=body)).json())

        async def others():
            statuses.extend(
                [(await service.post(nested())).status_code, (await service.client.get("/livez")).status_code]
            )
            statuses.append((await service.post(pinned(None), OAR)).status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, shard, 0, halting())
            await reached(lambda: any(path.stat().st_size for path in spooled(tmp_path)))
            await others()
            going_on.set()
            await reached(lambda: len(answers) == 1)
            await send(service, shards_of()[1], 1)
            policy.gate.clear()
            tasks.start_soon(one, shards_of()[2], 2)
            await reached(lambda: service.resources.in_flight == 1)
            await others()
            assert len(answers) == 1
            policy.gate.set()
        return statuses, answers

    statuses, answers = on_service(ask, taking(policy, weights_spool=tmp_path))
    assert set(statuses) == {200}
    assert [answer["status"] for answer in answers] == ["staged", "live"]


def test_a_deadline_that_passes_ends_the_wait_and_not_the_swap(tmp_path):
    """The caller gets 504 and the weights are taken all the same: pushing them again says so."""
    policy = TakingPolicy()

    async def ask(service):
        policy.gate.clear()
        for number, shard in enumerate(shards_of()[:2]):
            await send(service, shard, number)
        late = await send(service, shards_of()[2], 2, headers={"X-Request-Timeout-Ms": "50"})
        policy.gate.set()
        await reached(lambda: policy.weight_version == "v1")
        return late, await send(service, shards_of()[2], 2)

    late, again = on_service(ask, taking(policy, weights_spool=tmp_path))
    problem_of(late, "deadline_exceeded")
    assert again.json()["status"] == "live"
    assert len(policy.taken) == 1


def test_an_engine_that_has_stopped_is_502(tmp_path):
    """Weights for an engine that cannot take them any more are a failure of the service, and nothing of them stays."""
    policy = TakingPolicy()
    policy.broken = True
    found = on_service(push, taking(policy, weights_spool=tmp_path))
    assert (found[-1]["code"], found[-1]["retryable"]) == ("engine_failed", True)
    assert spooled(tmp_path) == []


def test_a_draining_service_takes_no_new_shard_and_finishes_what_has_begun(tmp_path):
    """A push that began is in flight and ends as it should; the next shard is 503, retryable, as any other request."""
    policy = TakingPolicy()

    async def ask(service):
        for number, shard in enumerate(shards_of()[:2]):
            await send(service, shard, number)
        policy.gate.clear()
        last = []

        async def one():
            last.append(await send(service, shards_of()[2], 2))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            await service.in_flight(1)
            service.resources.draining = True
            refused = await send(service, shards_of()[0], 0, version="v2")
            idle = service.resources.idle.is_set()
            policy.gate.set()
        return refused, idle, last[0], service.resources.idle.is_set()

    refused, idle, last, in_the_end = on_service(ask, taking(policy, weights_spool=tmp_path))
    problem_of(refused, "draining")
    assert (idle, in_the_end) == (False, True)
    assert last.json()["status"] == "live"


def test_the_spool_of_a_service_goes_with_it(tmp_path):
    """Shards that nobody completed are gone once the service has ended; a spool that was not named is made and goes."""

    async def ask(service):
        await send(service, shards_of()[0])
        return len(spooled(tmp_path))

    assert on_service(ask, taking(weights_spool=tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_query_of_is_what_a_checksum_is():
    """BLAKE2b of 16 bytes, of nothing: a worked value."""
    assert query_of(b"", 0)["checksum"] == "cae66941d9efbd404e4d88758ea67670"
