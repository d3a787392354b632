import asyncio

import anyio
import pytest

from cache.stores import PATIENCE_S, Clock
from creditd.cache.budget import Budget


def test_all_calls_together_have_the_time():
    """What one call takes the next one lacks, and below 0 there is nothing."""

    async def run():
        clock = Clock()
        budget, left = Budget(1.0, clock), []

        async def call(seconds):
            clock.now_s += seconds
            return seconds

        for seconds in (0.25, 0.5, 0.125, 7.0, 1.0):
            left.append(budget.left_s)
            await budget.wait_for(asyncio.ensure_future(call(seconds)))
        return [*left, budget.left_s]

    assert anyio.run(run) == [1.0, 0.75, 0.25, 0.125, 0.0, 0.0]


def test_a_call_that_takes_too_long_goes_on():
    """Who waits has None once the time is over; the call is not cancelled, and ends by itself."""

    async def run():
        gate, ended = asyncio.Event(), []

        async def call():
            await gate.wait()
            ended.append(True)
            return "late"

        budget = Budget(0.01)
        waiting = asyncio.ensure_future(call())
        assert await budget.wait_for(waiting) is None
        assert budget.left_s == 0.0
        gate.set()
        with anyio.fail_after(PATIENCE_S):
            assert await waiting == "late"
        assert ended == [True]

    anyio.run(run)


def test_a_call_that_is_done_has_its_result_without_time():
    """What is there already is taken, even when nothing is left."""

    async def run():
        async def call():
            return "there"

        done = asyncio.ensure_future(call())
        await asyncio.sleep(0)
        return await Budget(0.0).wait_for(done)

    assert anyio.run(run) == "there"


def test_who_is_cancelled_while_waiting_has_spent_the_time():
    """A caller that leaves cancels neither the call nor the count."""

    async def run():
        gate, clock = asyncio.Event(), Clock()
        budget, call = Budget(PATIENCE_S, clock), asyncio.ensure_future(gate.wait())
        waiting = asyncio.ensure_future(budget.wait_for(call))
        await asyncio.sleep(0.01)
        clock.now_s = 1.0
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert budget.left_s == PATIENCE_S - 1.0
        assert not call.done()
        gate.set()
        assert await call

    anyio.run(run)
