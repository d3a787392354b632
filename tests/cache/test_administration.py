import re

import numpy as np
import pytest

from creditd.cache.administration import (
    SAMPLED_GAMES,
    AdministrationError,
    administered,
    inspect,
    place_of,
    purge,
    stats,
)
from creditd.cache.games import known_game
from creditd.cache.keys import CALLERS, KeyMaker, UtilitySource, model_prefix, purge_key
from creditd.cache.redis import RedisChoice
from redis_servers import ADMIN_PASSWORD, ADMIN_USER, SERVICE_PASSWORD, RedisServer, free_port, recipe_server

pytestmark = pytest.mark.redis

TABLE = known_game(np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=bool), np.array([0.0, -1.5, 2.0, 3.5]))
"""All utilities of two players; their mean is 1."""
PAIRS = known_game(np.array([[0] * 20, [1] * 20], dtype=bool), np.array([0.25, 0.75]))
"""Two utilities of twenty players."""
ALL_UTILITIES, SOME_UTILITIES = 4, 2
TTL_MS = 90_000


@pytest.fixture(scope="module")
def server():
    """A server; the tests share it, and each begins with an empty one."""
    with RedisServer() as started:
        yield started


@pytest.fixture
def raw(server):
    """A client of an empty server."""
    client = server.client()
    client.flushall()
    return client


@pytest.fixture
def redis(server, raw):
    """What the functions take; the server is empty."""
    del raw
    with administered(RedisChoice(server.url)) as opened:
        yield opened


def keys_of(model, n, *, tenant=b"somebody"):
    """Keys of as many games of a model, or of a caller."""
    source = UtilitySource(tenant, "caller" if model is None else "model", model or "", "identity")
    maker = KeyMaker(source)
    return [maker.game(b"prompt", [str(number), "other"]) for number in range(n)]


def remember(client, keys, game=TABLE, **options):
    """Write a game under keys."""
    for key in keys:
        client.set(key.text, game.packed(key.check), **(options or {"px": TTL_MS}))


def test_games_are_counted_by_whose_they_are(redis, raw):
    """Models by their ids, callers last; a model whose name begins like another's is another; other keys count not."""
    remember(raw, keys_of("rm", 3))
    remember(raw, keys_of("rm-2", 2), PAIRS)
    remember(raw, keys_of(None, 1))
    remember(raw, keys_of("a/b", 1))
    raw.mset({"somebody": "x", "creditd:0:model:rm:" + "0" * 32: "x", purge_key("f" * 32): "x", "creditd:1:what": "x"})
    found = {source.model: source for source in stats(redis).sources}
    assert list(found) == ["a/b", "rm", "rm-2", None]
    assert [source.games for source in found.values()] == [1, 3, 2, 1]
    assert found["rm"].utilities == 3 * ALL_UTILITIES
    assert found["rm-2"].utilities == 2 * SOME_UTILITIES
    assert all(source.exact and not source.damaged for source in found.values())
    memory = sum(raw.memory_usage(key.text) for key in keys_of("rm", 3))
    assert found["rm"].bytes == memory > 3 * len(TABLE.packed(bytes(8)))


def test_sizes_of_many_games_are_extrapolated_and_said_to_be(redis, raw):
    """All games are counted; memory and utilities are those of a sample, of games alike exactly what they are."""
    n_games = 5 * SAMPLED_GAMES
    with raw.pipeline(transaction=False) as pipeline:
        remember(pipeline, keys_of("rm", n_games))
        pipeline.execute()
    (found,) = stats(redis).sources
    assert (found.games, found.sampled, found.read) == (n_games, SAMPLED_GAMES, SAMPLED_GAMES)
    assert not found.exact
    assert found.utilities == n_games * ALL_UTILITIES
    assert found.bytes == n_games * raw.memory_usage(keys_of("rm", 1)[0].text)


def test_damaged_values_are_counted_and_know_nothing(redis, raw):
    """A value of another key, a torn one and rubbish: three damaged games, and the utilities of the sound one."""
    sound, foreign, torn, rubbish = keys_of("rm", 4)
    remember(raw, [sound])
    raw.set(foreign.text, TABLE.packed(sound.check))
    raw.set(torn.text, TABLE.packed(torn.check)[:-1])
    raw.set(rubbish.text, b"rubbish")
    (found,) = stats(redis).sources
    assert (found.games, found.damaged, found.utilities) == (4, 3, ALL_UTILITIES)


def test_the_server_tells_of_itself(redis, raw):
    """Version, memory and policy, and how often keys that were asked for were there; nothing before any was."""
    raw.config_resetstat()
    before = stats(redis).server
    assert before.hit_ratio is None
    raw.set("creditd:1:a", "x")
    raw.mget(["creditd:1:a", "creditd:1:b", "creditd:1:c", "creditd:1:d"])
    after = stats(redis)
    assert after.server.hit_ratio == 0.25
    assert re.match(r"\d+\.\d+", after.server.version)
    assert after.server.used_bytes > 0
    assert after.server.max_bytes == 0
    assert after.server.policy == "noeviction"
    assert after.sources == ()


@pytest.mark.parametrize(
    ("game", "layout", "n_players", "values"),
    [(TABLE, "table", 2, (-1.5, 1.0, 3.5)), (PAIRS, "pairs", 20, (0.25, 0.5, 0.75))],
    ids=["table", "pairs"],
)
def test_a_key_is_inspected(redis, raw, game, layout, n_players, values):
    """Whose it is, its layout, players and utilities, what it takes, and how long it is kept."""
    (key,) = keys_of("org/rm", 1)
    remember(raw, [key], game)
    found = inspect(redis, key.text)
    assert (found.key, found.model, found.corruption) == (key.text, "org/rm", None)
    assert (found.layout, found.n_players, found.n_known) == (layout, n_players, game.n_known)
    assert (found.least, found.mean, found.greatest) == values
    assert found.value_bytes == len(game.packed(key.check)) < found.memory_bytes
    assert 0 < found.ttl_s <= TTL_MS / 1e3


def test_a_callers_game_has_no_model_and_may_be_kept_for_good(redis, raw):
    """A key below `caller`; one without a time to live."""
    (key,) = keys_of(None, 1)
    raw.set(key.text, TABLE.packed(key.check))
    found = inspect(redis, key.text)
    assert (found.model, found.ttl_s, found.corruption) == (None, None, None)


@pytest.mark.parametrize(
    ("damage", "corruption", "layout"),
    [
        (lambda value: value[:10], "truncated", None),
        (lambda value: b"what" + value[4:], "unknown_format", None),
        (lambda value: value[:-1] + bytes([value[-1] ^ 1]), "checksum", "table"),
        (lambda _: TABLE.packed(b"another!"), "foreign", "table"),
    ],
    ids=["truncated", "unknown_format", "checksum", "foreign"],
)
def test_damage_is_named_and_no_number_of_it_is_shown(redis, raw, damage, corruption, layout):
    """A value that the service would take for missing: why, and what its header claims, where it has one."""
    (key,) = keys_of("rm", 1)
    raw.set(key.text, damage(TABLE.packed(key.check)))
    found = inspect(redis, key.text)
    assert (found.corruption, found.layout) == (corruption, layout)
    assert (found.least, found.mean, found.greatest) == (None, None, None)


def test_nothing_under_a_key_is_none(redis):
    """A key that could be one of a game and is not there."""
    assert inspect(redis, keys_of("rm", 1)[0].text) is None


@pytest.mark.parametrize(
    "key",
    [
        "", "x", "creditd:1:model:rm", purge_key("rm"), purge_key("f" * 32), model_prefix("rm") + "0" * 31,
        model_prefix("rm") + "g" * 32, model_prefix("r m") + "0" * 32, model_prefix("") + "0" * 32,
        "creditd:2:caller:" + "0" * 32,
    ],
)  # fmt: skip
def test_the_key_of_no_game_is_refused(redis, key):
    """Tokens of purges, other formats and rubbish are no keys of games."""
    with pytest.raises(ValueError, match="the key of no game"):
        inspect(redis, key)


def test_a_purge_takes_the_games_of_one_model(redis, raw):
    """All games of the model are gone, of all tenants; those of others, of callers, and foreign keys stay."""
    with raw.pipeline(transaction=False) as pipeline:
        remember(pipeline, keys_of("rm", 2_500))
        remember(pipeline, keys_of("rm", 10, tenant=b"another"))
        pipeline.execute()
    kept = [*keys_of("rm-2", 2), *keys_of("r", 1), *keys_of("x/rm", 1), *keys_of(None, 2)]
    remember(raw, kept)
    raw.set("of:somebody", "x")
    done = purge(redis, "rm")
    assert (done.model, done.removed) == ("rm", 2_510)
    left = {key.decode() for key in raw.keys("*")}
    assert left == {*(key.text for key in kept), "of:somebody", purge_key("rm")}
    assert raw.get(purge_key("rm")).decode() == done.token
    assert raw.ttl(purge_key("rm")) == -1


def test_a_purge_takes_the_games_of_callers(redis, raw):
    """Of all tenants; those of models stay, whatever they are called. The token is where no model has its own."""
    remember(raw, keys_of(None, 3))
    remember(raw, keys_of(None, 2, tenant=b"another"))
    kept = [*keys_of("caller", 2), *keys_of("rm", 1)]
    remember(raw, kept)
    done = purge(redis, None)
    assert (done.model, done.removed) == (None, 5)
    assert {key.decode() for key in raw.keys("*")} == {*(key.text for key in kept), purge_key(CALLERS)}
    assert raw.get(purge_key(CALLERS)).decode() == done.token


def test_each_purge_has_another_token(redis):
    """Also a purge of nothing puts what services have in memory out of reach; the later token is the larger one."""
    first, second = purge(redis, "rm"), purge(redis, "rm")
    assert (first.removed, second.removed) == (0, 0)
    assert first.token < second.token
    assert len(first.token) == 32


@pytest.mark.parametrize("model", ["", "*", "r?", "[a-z]", "r\\m", "a:b", "a b", "x" * 129, "é", "rm\n", CALLERS])
def test_what_is_no_id_of_a_model_is_refused(redis, raw, model):
    """Nothing that SCAN would take for a pattern, and nothing is done."""
    remember(raw, keys_of("rm", 1))
    with pytest.raises(ValueError, match="expected a model's id"):
        purge(redis, model)
    assert raw.dbsize() == 1


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A server as `deploy/redis` describes it."""
    with recipe_server(secrets=tmp_path_factory.mktemp("secrets")) as started:
        yield started


def test_the_users_of_the_recipe_may_what_they_are_for(recipe):
    """Administration does all of it; the service does none of it, is told who does, and leaves no token behind."""
    key, *_ = keys = keys_of("rm", 3)
    remember(recipe.client(), keys)
    service = RedisChoice(recipe.url, password=SERVICE_PASSWORD)
    for ask in (stats, lambda redis: inspect(redis, key.text), lambda redis: purge(redis, "rm")):
        with (
            pytest.raises(AdministrationError, match=r"user creditd of Redis .* creditd-admin") as refused,
            administered(service) as redis,
        ):
            ask(redis)
        assert SERVICE_PASSWORD not in str(refused.value)
    assert recipe.client().get(purge_key("rm")) is None
    assert recipe.client().get(key.text) is not None
    url = f"redis://{ADMIN_USER}@127.0.0.1:{recipe.port}/0"
    with administered(RedisChoice(url, password=ADMIN_PASSWORD)) as redis:
        (found,) = stats(redis).sources
        assert (found.model, found.games, found.utilities) == ("rm", 3, 3 * ALL_UTILITIES)
        assert inspect(redis, key.text).n_known == ALL_UTILITIES
        assert purge(redis, "rm").removed == 3
        assert stats(redis).sources == ()
        assert purge(redis, None).removed == 0


@pytest.mark.parametrize(
    ("user", "password"), [("creditd", "another-password"), ("nobody", "pass-of-nobody"), ("creditd", None)]
)
def test_a_wrong_password_is_said_and_not_repeated(recipe, user, password):
    """The sentence has the user and the address."""
    choice = RedisChoice(f"redis://{user}@127.0.0.1:{recipe.port}/0", password=password)
    with (
        pytest.raises(AdministrationError, match=f"does not let user {user} in") as refused,
        administered(choice) as redis,
    ):
        stats(redis)
    assert str(password) not in str(refused.value)
    assert f"127.0.0.1:{recipe.port}" in str(refused.value)


def test_a_password_in_the_address_is_not_repeated():
    """Nobody listens: the sentence has the reason, host and port, and nothing else of the address."""
    port = free_port()
    choice = RedisChoice(f"redis://somebody:a-secret-word@127.0.0.1:{port}/0")
    assert place_of(choice) == f"127.0.0.1:{port}"
    with pytest.raises(AdministrationError) as failed, administered(choice) as redis:
        stats(redis)
    assert str(failed.value) == f"Redis at 127.0.0.1:{port} cannot be reached: Connection refused"


def test_a_server_that_is_full_and_forgets_nothing_is_said(server, raw):
    """Without room for a token nothing is purged, and the sentence says why."""
    remember(raw, keys_of("rm", 1))
    raw.config_set("maxmemory", 1)
    try:
        with (
            pytest.raises(AdministrationError, match="is full and its maxmemory-policy"),
            administered(RedisChoice(server.url)) as redis,
        ):
            purge(redis, "rm")
    finally:
        raw.config_set("maxmemory", 0)
    assert raw.exists(keys_of("rm", 1)[0].text)
