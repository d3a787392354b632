"""Real models behind `creditd serve` share through Redis: nothing is evaluated twice, and no bit depends on Redis."""

import os
import shutil
import signal
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = [
    pytest.mark.models,
    pytest.mark.redis,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="NOT RUN: redis-server is not installed"),
]

from cache.processes import BODIES, BUDGET, ask, counters, environment, in_redis  # noqa: E402
from engines.saved import saved  # noqa: E402
from redis_servers import RedisServer  # noqa: E402
from services import running_service  # noqa: E402

AGREEMENT = 1e-5
"""Of credits whose scores were computed in float32, once in other batches."""


@contextmanager
def served(models, folder, redis_url, pid_file=None):
    """The address of `creditd serve` with the model of a directory."""
    folder.mkdir(exist_ok=True)
    config = folder / "creditd.toml"
    lines = [f'models_root = "{models}"', f'redis_url = "{redis_url}"', "cache_min_evaluation_s = 0.0"]
    model = ["[[models]]", 'id = "rm"', 'path = "rm"', 'revision = "r1"']
    config.write_text("\n".join([*lines, *model]), encoding="utf-8")
    with running_service("--config", str(config), directory=folder, env=environment(), pid_file=pid_file) as url:
        yield url


def test_processes_with_a_model_share_their_work(tmp_path):
    """The second process evaluates nothing, nor does the first after a crash; `deterministic` keeps every bit."""
    saved(tmp_path / "rm")
    first, second, pid = tmp_path / "first", tmp_path / "second", tmp_path / "pid"
    with RedisServer() as server:
        with served(tmp_path, second, server.url) as other:
            with served(tmp_path, first, server.url, pid) as one:
                cold = ask(one)
                in_redis(server, len(BODIES))
                remembered = [*ask(one), *ask(other)]
                os.kill(int(pid.read_text(encoding="utf-8")), signal.SIGKILL)
            assert counters(other)["evaluations_saved redis rm"] == len(BODIES) * BUDGET
            assert "games missed" not in counters(other)
            with served(tmp_path, first, server.url) as one:
                remembered += ask(one)
                assert "games missed" not in counters(one)
            server.kill()
            remembered += ask(other)
        with served(tmp_path, first, server.url) as one:
            dead = ask(one)
            assert counters(one)["errors read connection"] > 0
    for answer in (*cold, *dead):
        assert (answer.usage["evaluations"], answer.usage["from_cache"]) == (BUDGET, 0)
    for number, answer in enumerate(remembered):
        assert (answer.usage["evaluations"], answer.usage["from_cache"]) == (0, BUDGET)
        assert answer.document == cold[number % len(BODIES)].document
    assert BODIES[1]["deterministic"]
    assert dead[1].document == cold[1].document
    again, credits_ = (np.array(answers[0].document["sets"][0]["credits"]) for answers in (dead, cold))
    assert again == pytest.approx(credits_, abs=AGREEMENT)
    assert np.ptp(credits_) > 100 * AGREEMENT
