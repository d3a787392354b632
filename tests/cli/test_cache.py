"""`creditd cache`: what is printed, with which exit status, and where Redis is looked for."""

import json
import sys

import numpy as np
import pytest

from creditd.cache.games import known_game
from creditd.cache.keys import KeyMaker, UtilitySource
from creditd.cli.__main__ import main
from redis_servers import (
    ADMIN_PASSWORD,
    ADMIN_USER,
    SERVICE_PASSWORD,
    RedisServer,
    free_port,
    recipe_server,
)

GAME = known_game(np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=bool), np.array([0.0, -1.5, 2.0, 3.5]))
SOME_KEY = "creditd:1:model:rm:" + "0" * 32
LONG_ID = "organisation/some-reward-model-8b"
ACTIONS = [("stats",), ("inspect", SOME_KEY), ("purge", "--model", "rm"), ("purge", "--callers")]
WIDTH = 80


@pytest.fixture(scope="module")
def server():
    """A server; each test empties it."""
    with RedisServer() as started:
        yield started


@pytest.fixture
def raw(server):
    """A client of an empty server."""
    client = server.client()
    client.flushall()
    return client


def ran(capsys, *arguments):
    """Exit status, standard output, standard error."""
    status = main(["cache", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def remember(client, model, n):
    """Write games of a model, or of callers; the text of the last key."""
    source = UtilitySource(b"", "caller" if model is None else "model", model or "", "identity")
    maker, text = KeyMaker(source), ""
    for number in range(n):
        key = maker.game(b"prompt", [str(number), "other"])
        client.set(key.text, GAME.packed(key.check), px=90_000)
        text = key.text
    return text


@pytest.mark.parametrize("arguments", [(), ("stats",), ("inspect",), ("purge",)], ids=" ".join)
def test_help_is_printed(capsys, arguments):
    """Each command explains itself, and where Redis is named."""
    with pytest.raises(SystemExit) as ended:
        main(["cache", *arguments, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert ("--config FILE" in printed) == bool(arguments)
    assert ("--url" in printed) == bool(arguments)


@pytest.mark.parametrize(
    "arguments", [(), ("inspect",), ("purge",), ("purge", "--model", "rm", "--callers"), ("forget",)], ids=" ".join
)
def test_what_is_missing_ends_with_status_2(capsys, arguments):
    """A command, a key, and a model or callers, not both, are needed."""
    with pytest.raises(SystemExit) as ended:
        main(["cache", *arguments])
    assert ended.value.code == 2
    assert "usage: creditd cache" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ACTIONS, ids=lambda words: words[0])
def test_without_redis_it_is_said(capsys, arguments):
    """Settings that name no Redis: status 2 and where it is named."""
    status, printed, error = ran(capsys, *arguments)
    assert (status, printed) == (2, "")
    assert error.startswith(f"creditd cache {arguments[0]}: this service has no Redis: ")
    assert "redis_url" in error


@pytest.mark.parametrize("arguments", ACTIONS, ids=lambda words: words[0])
def test_a_closed_port_is_one_sentence(capsys, arguments):
    """Nobody listens: status 1, address and reason, and no password of the address."""
    port = free_port()
    status, printed, error = ran(capsys, *arguments, "--url", f"redis://me:a-secret-word@127.0.0.1:{port}/0")
    assert (status, printed) == (1, "")
    assert error == f"creditd cache {arguments[0]}: Redis at 127.0.0.1:{port} cannot be reached: Connection refused\n"


def test_what_is_no_address_of_redis_is_not_repeated(capsys, monkeypatch):
    """An address of another kind, with a password in it or beside it."""
    for password in (None, "a-secret-word"):
        if password is not None:
            monkeypatch.setenv("REDISCLI_AUTH", password)
        status, _, error = ran(capsys, "stats", "--url", "http://me:a-secret-word@127.0.0.1/0")
        assert status == 2
        assert "expected redis://" in error
        assert "a-secret-word" not in error


def test_settings_that_cannot_be_used_are_named(capsys, tmp_path):
    """A file that is missing, and a password file that is."""
    status, _, error = ran(capsys, "stats", "--config", tmp_path / "absent.toml")
    assert (status, "there is no configuration file" in error) == (2, True)
    config = tmp_path / "creditd.toml"
    config.write_text('redis_url = "redis://127.0.0.1/0"\nredis_password_file = "/nowhere"\n')
    status, _, error = ran(capsys, "stats", "--config", config)
    assert (status, "redis_password_file cannot be read" in error) == (2, True)


def test_without_the_extra_it_says_what_to_install(capsys, monkeypatch):
    """The client's install has no Redis client: the pip line, and status 2."""
    monkeypatch.setitem(sys.modules, "redis", None)
    for name in [name for name in sys.modules if name.startswith(("creditd.server", "creditd.cli.cache"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("creditd.cache.redis", "creditd.cache.administration"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(["cache", "stats"]) == 2
    assert capsys.readouterr().err == "creditd cache needs redis: pip install 'creditd[service]'\n"


@pytest.mark.redis
def test_the_settings_of_a_service_say_where_redis_is(capsys, raw, server, tmp_path, monkeypatch):
    """A file with models and keys that are not on this machine will do, and variables of the service do not matter."""
    remember(raw, "rm", 1)
    config = tmp_path / "creditd.toml"
    config.write_text(
        f'api_keys_file = "/nowhere/keys"\nmodels_root = "/nowhere/models"\nredis_url = "{server.url}"\n'
        '[[models]]\nid = "rm"\npath = "rm"\n'
    )
    monkeypatch.setenv("CREDITD_API_KEY", "of-the-client")
    status, printed, _ = ran(capsys, "stats", "--config", config)
    assert status == 0
    assert "model rm" in printed
    monkeypatch.setenv("CREDITD_REDIS_URL", server.url)
    status, printed, _ = ran(capsys, "stats")
    assert (status, "model rm" in printed) == (0, True)


@pytest.mark.redis
def test_stats_fit_a_terminal(capsys, raw, server):
    """One line per model and one for callers, none wider than a terminal; what is extrapolated is marked."""
    remember(raw, LONG_ID, 1_234)
    remember(raw, "rm", 2)
    remember(raw, None, 1)
    status, printed, error = ran(capsys, "stats", "--url", server.url)
    assert (status, error) == (0, "")
    lines = printed.splitlines()
    assert lines[0].startswith("Redis ")
    assert lines[0].endswith(f" at 127.0.0.1:{server.port}")
    assert max(map(len, lines)) <= WIDTH
    table = [line.split() for line in lines[lines.index("") + 2 :]]
    games, memory, unit, utilities, *name = table[0]
    assert (games, utilities, name) == ("1,234", "~4,936", ["model", LONG_ID])
    assert (memory[0], unit) == ("~", "KiB")
    assert [(row[0], row[3:]) for row in table[1:3]] == [("2", ["8", "model", "rm"]), ("1", ["4", "callers"])]
    assert "extrapolated" in lines[-1]


@pytest.mark.redis
def test_an_empty_redis_says_so(capsys, raw, server):
    """No table without utilities."""
    del raw
    status, printed, _ = ran(capsys, "stats", "--url", server.url)
    assert status == 0
    assert printed.splitlines()[-1] == "No utilities are remembered."


@pytest.mark.redis
def test_stats_as_json(capsys, raw, server):
    """One object: the server, and an object per model."""
    remember(raw, "rm", 2)
    remember(raw, None, 1)
    status, printed, _ = ran(capsys, "stats", "--json", "--url", server.url)
    document = json.loads(printed)
    assert status == 0
    assert set(document) == {"server", "sources"}
    assert set(document["server"]) == {
        "address", "version", "used_bytes", "max_bytes", "policy", "evicted_keys", "expired_keys", "hits", "misses",
        "hit_ratio",
    }  # fmt: skip
    model, caller = document["sources"]
    assert {key: model[key] for key in model if key != "bytes"} == {
        "source": "model", "model": "rm", "games": 2, "utilities": 8, "exact": True, "sampled": 2, "read": 2,
        "damaged": 0,
    }  # fmt: skip
    assert (caller["source"], caller["model"], caller["games"]) == ("caller", None, 1)


@pytest.mark.redis
def test_a_key_is_inspected(capsys, raw, server):
    """In lines and as JSON; a damaged one, and one that is not there, end with status 1."""
    key = remember(raw, "rm", 1)
    status, printed, _ = ran(capsys, "inspect", key, "--url", server.url)
    assert status == 0
    assert printed.splitlines()[0] == key
    assert "least -1.5, mean 1, greatest 3.5" in printed
    assert "table: all coalitions" in printed
    status, printed, _ = ran(capsys, "inspect", key, "--json", "--url", server.url)
    found = json.loads(printed)
    assert (status, found["model"], found["n_known"], found["corruption"]) == (0, "rm", 4, None)
    raw.set(key, raw.get(key)[:-1] + b"\x01")
    status, printed, _ = ran(capsys, "inspect", key, "--url", server.url)
    assert (status, "damaged (checksum)" in printed) == (1, True)
    raw.delete(key)
    status, printed, error = ran(capsys, "inspect", key, "--url", server.url)
    assert (status, printed) == (1, "")
    assert "has no value under this key" in error
    status, printed, error = ran(capsys, "inspect", "creditd:1:purged:rm", "--url", server.url)
    assert (status, printed) == (2, "")
    assert "the key of no game" in error


@pytest.mark.redis
def test_a_purge_says_what_it_did(capsys, raw, server):
    """How many games went and when services notice; again there are none; a pattern is no id."""
    remember(raw, "rm", 3)
    kept = remember(raw, "other", 1)
    status, printed, error = ran(capsys, "purge", "--model", "rm", "--url", server.url)
    assert (status, error) == (0, "")
    assert printed.startswith(f"Removed 3 games of model rm in Redis at 127.0.0.1:{server.port}.\n")
    assert "within 5 s" in printed
    assert raw.exists(kept)
    assert ran(capsys, "purge", "--model", "rm", "--url", server.url)[1].startswith("There were no games of model rm ")
    status, _, error = ran(capsys, "purge", "--model", "*", "--url", server.url)
    assert (status, "expected a model's id" in error) == (2, True)


@pytest.mark.redis
def test_a_purge_of_callers_says_what_it_did(capsys, raw, server):
    """Games of models stay."""
    remember(raw, None, 2)
    kept = remember(raw, "rm", 1)
    status, printed, error = ran(capsys, "purge", "--callers", "--url", server.url)
    assert (status, error) == (0, "")
    assert printed.startswith(f"Removed 2 games of callers in Redis at 127.0.0.1:{server.port}.\n")
    assert raw.exists(kept)
    assert ran(capsys, "purge", "--callers", "--url", server.url)[1].startswith("There were no games of callers in ")


@pytest.mark.redis
def test_another_user_is_taken_with_the_address(capsys, tmp_path, monkeypatch):
    """The service's user is told who may; that one's password comes from REDISCLI_AUTH, or as the service's does."""
    with recipe_server(secrets=tmp_path) as recipe:
        monkeypatch.setenv("CREDITD_REDIS_URL", recipe.url)
        monkeypatch.setenv("CREDITD_REDIS_PASSWORD", SERVICE_PASSWORD)
        status, _, error = ran(capsys, "purge", "--model", "rm")
        assert status == 1
        assert "user creditd of Redis" in error
        assert "creditd-admin" in error
        url = f"redis://{ADMIN_USER}@127.0.0.1:{recipe.port}/0"
        status, _, error = ran(capsys, "purge", "--model", "rm", "--url", url)
        assert (status, "does not let user creditd-admin in" in error) == (1, True)
        assert SERVICE_PASSWORD not in error
        monkeypatch.setenv("REDISCLI_AUTH", ADMIN_PASSWORD)
        assert ran(capsys, "purge", "--model", "rm", "--url", url)[0] == 0
        assert ran(capsys, "purge", "--model", "rm")[0] == 1, "the variable is the password of the user in --url"
        monkeypatch.delenv("REDISCLI_AUTH")
        monkeypatch.setenv("CREDITD_REDIS_PASSWORD", ADMIN_PASSWORD)
        assert ran(capsys, "stats", "--url", url)[0] == 0
