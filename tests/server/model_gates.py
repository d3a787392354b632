"""Requests that wait for a model at the same time."""

import threading
from collections import Counter

import anyio

from cache.replicas import counters_of
from creditd.cache.memory import MemoryCache
from server.model_services import fake, with_models, worth
from server.running import PATIENCE_S, on_service

N = 6
"""How many requests wait."""


class Gated:
    """The worth of a text once a gate is open, and a count of the texts that it was asked about."""

    def __init__(self):
        self.opened, self.begun, self.texts = threading.Event(), threading.Event(), Counter()
        self.fails = 0

    def __call__(self, _, text):
        """The worth, or an error for as many texts as there shall be."""
        self.texts[text] += 1
        self.begun.set()
        if not self.opened.wait(PATIENCE_S):
            raise RuntimeError("the gate was never opened")
        if self.fails:
            self.fails -= 1
            raise ValueError("broken")
        return worth("", text)


def remembering(gate, **settings):
    """Resources of a service whose model waits for a gate."""
    return with_models(fake(score=gate), **{"cache_min_evaluation_s": 0, **settings})


class Paused(MemoryCache):
    """A memory whose next look tells what it saw only once it may."""

    def __init__(self):
        super().__init__(1 << 20, 60.0)
        self.next, self.looked, self.goes_on = threading.Lock(), threading.Event(), threading.Event()

    def get(self, keys):
        """What is known at first, which may be old by the time that it is told."""
        found = super().get(keys)
        if self.next.acquire(blocking=False):
            self.looked.set()
            assert self.goes_on.wait(PATIENCE_S)
        return found


async def happens(event):
    """Wait for what happens on another thread."""
    with anyio.fail_after(PATIENCE_S):
        while not event.is_set():  # noqa: ASYNC110 - the loop hears nothing of threads
            await anyio.sleep(0.001)


async def waiting(service, n):
    """Wait until so many requests are being answered, and none of them moves any more."""
    await service.in_flight(n)
    with anyio.fail_after(PATIENCE_S):
        while service.resources.answering != n:  # noqa: ASYNC110 - the service has no event for a number
            await anyio.sleep(0.001)
    # A hundred times what a request needs to come to where it waits; what comes later changes no expectation.
    await anyio.sleep(0.1)


async def following(service, n):
    """Wait until so many requests wait for what another one finds out."""
    flights = service.resources.cache._flights
    with anyio.fail_after(PATIENCE_S):
        while sum(len(flight._news._waiters) for flight in set(flights.values())) != n:  # noqa: ASYNC110 - as above
            await anyio.sleep(0.001)


def together(bodies, gate, resources=None, headers=None):
    """The responses to requests that wait at the same time: the first one for the model."""
    found = {}

    async def ask(service):
        async def one(place):
            sent = headers[place] if headers else {}
            found[place] = await service.post(bodies[place], **sent)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, 0)
            await happens(gate.begun)
            for place in range(1, len(bodies)):
                tasks.start_soon(one, place)
            await waiting(service, len(bodies))
            gate.opened.set()
        return counters_of((await service.client.get("/metrics")).text), service.resources.cache

    counters, cache = on_service(ask, resources or remembering(gate))
    assert cache is None or cache._flights == {}
    return [found[place] for place in range(len(bodies))], counters


def found_in(counters, family):
    """What a counter says of everything that was not missed: who comes late finds in memory what others shared."""
    return sum(counters.get(f"{family} {place}", 0) for place in ("memory", "shared", "memory rm", "shared rm"))


def numbers_of(response):
    """All of an answer but its name, times and costs."""
    return {name: value for name, value in response.json().items() if name not in {"request_id", "queue_s", "usage"}}


def costs(responses):
    """Evaluations, and utilities that were remembered."""
    usages = [response.json()["usage"] for response in responses]
    return [(usage["evaluations"], usage["from_cache"]) for usage in usages]
