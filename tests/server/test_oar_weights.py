"""`/v1/credit/oar` while the policy's weights change: which version answers, who waits for one, and who is refused."""

import threading
from collections import Counter

import anyio
import pytest

from server.model_gates import happens
from server.oar_calls import (
    FORMATS,
    VERSIONS,
    ask,
    document_of,
    item_of,
    measure,
    policy,
    request_of,
    say,
    with_policies,
)
from server.running import PATIENCE_S, on_service

BODY = request_of(item_of([7, 8, 10, 13]))
SENSITIVITIES = [0.0, 1.0, 3.0]
"""Of the completion, by the first version."""


def pinned(version, **options):
    """The same request for one version of the weights."""
    return {**BODY, "weight_version": version, **options}


def assert_of(version, document):
    """All numbers of an answer are those of one version, which it names."""
    assert document["weight_version"] == version
    (found,) = document["items"]
    assert found["sensitivities"] == [*(VERSIONS[version] * value for value in SENSITIVITIES), None]


@pytest.mark.parametrize("form", FORMATS)
def test_a_pin_to_the_current_version_is_answered(form):
    """With or without waiting, and without a pin whatever is there."""
    for body in (BODY, pinned("v0"), pinned("v0", if_not_ready="fail")):
        assert_of("v0", ask(body, form))
    engine = policy(version="v1")
    assert_of("v1", ask(pinned("v1"), form, with_policies(engine)))


@pytest.mark.parametrize("choice", ["wait", "fail"])
def test_a_version_that_the_policy_never_had_is_unknown(choice):
    """409, not retryable, at once: a service that was restarted has no version of before."""
    engine = policy()

    async def send(service):
        return await say(service, pinned("v7", if_not_ready=choice))

    response = on_service(send, with_policies(engine))
    refused = response.json()
    assert (response.status_code, refused["code"], refused["retryable"]) == (409, "weight_version_unknown", False)
    assert "v7" not in response.text
    assert engine.measured == []


def test_who_does_not_wait_is_refused_while_the_version_is_announced():
    """409 at once, not retryable."""
    engine = policy()
    engine.announce_weights("v1")

    async def send(service):
        return await say(service, pinned("v1", if_not_ready="fail"))

    response = on_service(send, with_policies(engine))
    refused = response.json()
    assert (response.status_code, refused["code"], refused["retryable"]) == (409, "weight_version_mismatch", False)
    assert engine.measured == []


def test_who_waits_gets_the_version_when_it_comes():
    """A request for weights that are announced waits, others are answered meanwhile, and it is answered by them."""
    engine = policy()
    engine.announce_weights("v1")
    found = {}

    async def both(service):
        async def waits():
            found["late"] = document_of(await say(service, pinned("v1")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waits)
            with anyio.fail_after(PATIENCE_S):
                while not engine.status().queued_tokens:  # noqa: ASYNC110 - the engine has no event for it
                    await anyio.sleep(0.001)
            found["now"] = document_of(await say(service, BODY))
            assert "late" not in found
            engine.replace("v1")

    on_service(both, with_policies(engine))
    assert_of("v0", found["now"])
    assert_of("v1", found["late"])


def test_who_waits_in_vain_is_told_which_weights_are_missing():
    """When the deadline passes first, it is 409 and no 504: the weights are not there."""
    engine = policy()
    engine.announce_weights("v1")

    async def send(service):
        return await say(service, pinned("v1"), **{"X-Request-Timeout-Ms": "100"})

    response = on_service(send, with_policies(engine))
    assert (response.status_code, response.json()["code"]) == (409, "weight_version_mismatch")
    assert engine.status().queued_tokens == 0


def test_a_version_of_the_past_is_waited_for_as_well():
    """Weights that were there once may come again."""
    engine = policy()
    engine.replace("v1")

    async def send(service):
        return await say(service, pinned("v0", if_not_ready="fail"))

    assert on_service(send, with_policies(engine)).json()["code"] == "weight_version_mismatch"


def test_every_answer_is_of_one_version():
    """Requests at a time, while weights change: each answer is exactly that of the version that it names."""
    engine = policy()
    answers = Counter()

    async def many(service):
        async def one():
            document = document_of(await say(service, BODY))
            assert_of(document["weight_version"], document)
            answers[document["weight_version"]] += 1

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(one)
                if number % 10 == 9:
                    await anyio.sleep(0.01)
                    engine.replace(f"v{number // 10 % 3}")

    on_service(many, with_policies(engine))
    assert sum(answers.values()) == 60


def test_the_swap_does_not_touch_what_is_being_measured():
    """Weights that come while a completion is measured are those of the next one."""
    begun, gate = threading.Event(), threading.Event()

    def gated(version, item, options):
        begun.set()
        assert gate.wait(PATIENCE_S)
        return measure(version, item, options)

    engine, found = policy(measured=gated), []

    async def both(service):
        async def one():
            found.append(document_of(await say(service, BODY)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            await happens(begun)
            engine.replace("v2")
            gate.set()

    on_service(both, with_policies(engine))
    assert_of("v0", found[0])


def test_metrics_count_what_the_policy_did_and_what_was_flagged():
    """Evaluations, tokens, items and flags of the route, as of the others."""

    async def both(service):
        await say(service, request_of(item_of([7, 8, 10, 13]), item_of([7, 8], answer=None), item_of([8, 8, 8])))
        return (await service.client.get("/metrics")).text

    lines = on_service(both, with_policies()).splitlines()
    assert 'creditd_items_total{route="/v1/credit/oar",status="ok"} 3.0' in lines
    assert 'creditd_flags_total{flag="answer_not_found"} 1.0' in lines
    assert 'creditd_flags_total{flag="flat_sensitivity"} 1.0' in lines
    assert 'creditd_evaluations_total{model="policy"} 4.0' in lines
    assert 'creditd_model_tokens_total{kind="computed",model="policy"} 22.0' in lines
