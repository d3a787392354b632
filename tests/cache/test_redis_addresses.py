"""What is no address of Redis ends the boot with a sentence, and none of what the address holds is in it."""

import pytest

from creditd.server.settings import SettingsError, load_settings

SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        "",
        SECRET,
        f"http://user:{SECRET}@host",
        f"redis://:{SECRET}@",
        f"redis://:{SECRET}@host:port/0",
        f"redis://:{SECRET}@host:99999/0",
        f"redis://:{SECRET}@[::1/0",
        f"redis://:{SECRET}@host/{SECRET}",
        f"redis://:{SECRET}@host/-1",
        f"redis://:{SECRET}@host/0?db={SECRET}",
        f"redis://:{SECRET}@host/0?{SECRET}=1",
        f"redis://:{SECRET}@host/0?socket_timeout=60",
        f"redis://:{SECRET}@host/0?timeout=60",
        f"redis://:{SECRET}@host/0?max_connections=1",
        f"redis://:{SECRET}@host/0?protocol=3",
        f"redis://:{SECRET}@host/0?decode_responses=1",
        f"redis://:{SECRET}@host/0?ssl_cert_reqs=none",
        f"rediss://:{SECRET}@host/0?ssl_cert_reqs={SECRET}",
        f"unix://{SECRET}",
    ],
)
def test_what_is_no_address_of_redis_is_refused_without_a_word_of_it(url):
    """Among it are options that would have a request wait longer, or make of values what they are not."""
    with pytest.raises(SettingsError, match="redis_url: expected redis://") as error:
        load_settings(None, redis_url=url)
    assert SECRET not in str(error.value)


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
