"""What is no address of Redis ends the boot with a sentence, and none of what the address holds is in it."""

import time

import pytest

from creditd.server.metrics import Metrics
from creditd.server.resources import cache_of
from creditd.server.settings import Settings, SettingsError, load_settings

WORD = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        "",
        WORD,
        f"http://user:{WORD}@host",
        f"redis://:{WORD}@",
        f"redis://:{WORD}@host:port/0",
        f"redis://:{WORD}@host:99999/0",
        f"redis://:{WORD}@[::1/0",
        f"redis://:{WORD}@host/{WORD}",
        f"redis://:{WORD}@host/-1",
        f"redis://:{WORD}@host/0?db={WORD}",
        f"redis://:{WORD}@host/0?{WORD}=1",
        f"redis://:{WORD}@host/0?socket_timeout=60",
        f"redis://:{WORD}@host/0?timeout=60",
        f"redis://:{WORD}@host/0?max_connections=1",
        f"redis://:{WORD}@host/0?protocol=3",
        f"redis://:{WORD}@host/0?decode_responses=1",
        f"redis://:{WORD}@host/0?ssl_cert_reqs=none",
        f"rediss://:{WORD}@host/0?ssl_cert_reqs={WORD}",
        f"unix://{WORD}",
    ],
)
def test_what_is_no_address_of_redis_is_refused_without_a_word_of_it(url):
    """Among it are options that would have a request wait longer, or make of values what they are not."""
    with pytest.raises(SettingsError, match="redis_url: expected redis://") as error:
        load_settings(None, redis_url=url)
    assert WORD not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://host/",
        "redis://user%40x:a%2Fb@host:1/3",
        "redis://[::1]:6379/0",
        "rediss://user@host/0?ssl_ca_certs=/etc/ca.pem&ssl_cert_reqs=required&ssl_check_hostname=true",
        "unix:///run/redis.sock",
        "unix://user@/run/redis.sock?db=2",
    ],
)
def test_an_address_of_redis_is_taken(url):
    """With a user, a database, a socket, or certificates."""
    found = load_settings(None, redis_url=url)
    assert found.redis.url == url
    assert url not in repr(found)


@pytest.mark.parametrize(("budget_s", "call_s"), [(0.01, 0.25), (0.25, 0.25), (2.0, 2.0)])
def test_a_call_may_last_as_long_as_a_request_waits(budget_s, call_s):
    """A short patience of requests does not make writes fail behind them, and a long one is not cut off by calls."""
    settings = Settings(redis_url="redis://127.0.0.1:1/0", cache_budget_s=budget_s)
    cache = cache_of(settings, Metrics(), time.monotonic)
    assert (cache.budget_s, cache._store._choice.timeout_s) == (budget_s, call_s)
