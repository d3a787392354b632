import asyncio
import hashlib
import re
import subprocess
import time
from contextlib import asynccontextmanager

import psutil
import pytest
import redis
import yaml
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from redis_servers import (
    ADMIN_PASSWORD,
    ADMIN_USER,
    RECIPE,
    SERVICE_PASSWORD,
    SERVICE_USER,
    free_port,
    recipe_server,
)

from .conftest import ROOT

pytestmark = pytest.mark.redis

PREFIX = "creditd:1:model:reward:"
MAXMEMORY_BYTES = 8 * 2**20
VALUE = bytes(range(256)) * 8
"""As long as the utilities of all 256 coalitions of 8 candidates."""
RESOLUTION_OF_AGES_S = 2.1
"""Redis knows to the second when a key was used."""
FORBIDDEN = [
    ("EVAL", "return 1", "0"),
    ("EVAL_RO", "return 1", "0"),
    ("EVALSHA", "0" * 40, "0"),
    ("FCALL", "f", "0"),
    ("FUNCTION", "LIST"),
    ("SCRIPT", "FLUSH"),
    ("KEYS", "*"),
    ("CONFIG", "GET", "maxmemory"),
    ("CONFIG", "SET", "maxmemory", "0"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("MODULE", "LIST"),
    ("ACL", "LIST"),
    ("MONITOR",),
    ("SAVE",),
    ("BGSAVE",),
    ("BGREWRITEAOF",),
    ("SHUTDOWN",),
    ("REPLICAOF", "NO", "ONE"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("SUBSCRIBE", "creditd:1"),
    ("PUBLISH", "creditd:1", "x"),
    ("MULTI",),
    ("LPUSH", f"{PREFIX}list", "x"),
    ("RENAME", f"{PREFIX}a", f"{PREFIX}b"),
]
"""What no user of the recipe may do."""
FOR_ADMINISTRATION = [
    ("SCAN", "0"),
    ("DBSIZE",),
    ("INFO",),
    ("DEL", f"{PREFIX}none"),
    ("UNLINK", f"{PREFIX}none"),
    ("TYPE", f"{PREFIX}none"),
    ("STRLEN", f"{PREFIX}none"),
    ("PTTL", f"{PREFIX}none"),
    ("MEMORY", "USAGE", f"{PREFIX}none"),
]
"""What administration may do beside what the service may."""
FOR_BOTH = [
    ("GET", f"{PREFIX}none"),
    ("MGET", f"{PREFIX}none", f"{PREFIX}other"),
    ("SET", f"{PREFIX}some", "x", "PX", "60000"),
    ("PING",),
    ("CLIENT", "SETNAME", "creditd"),
]


def words(command):
    return " ".join(command)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of the recipe, with little memory; the tests share it."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "data").mkdir()
    with recipe_server("--maxmemory", str(MAXMEMORY_BYTES), secrets=folder, directory=folder / "data") as started:
        yield started


@pytest.fixture
def service(server):
    """A client that is the service."""
    return server.client()


@pytest.fixture
def admin(server):
    """A client that is the administration."""
    return server.client(ADMIN_USER, ADMIN_PASSWORD)


@asynccontextmanager
async def service_client(server, **options):
    """The asyncio client as the service makes it: a blocking pool, no retries, a name."""
    pool = BlockingConnectionPool.from_url(
        server.url, password=SERVICE_PASSWORD, client_name="creditd", max_connections=4, timeout=5,
        socket_timeout=5, socket_connect_timeout=5, retry=AsyncRetry(NoBackoff(), 0), **options,
    )  # fmt: skip
    client = Redis(connection_pool=pool)
    try:
        yield client
    finally:
        await client.aclose()
        await pool.disconnect()


@pytest.mark.parametrize("options", [{}, {"protocol": 2}, {"protocol": 3}], ids=["default", "RESP2", "RESP3"])
def test_the_service_can_do_what_it_needs(server, options):
    """Through redis-py's asyncio client, in each protocol: PING, MGET, GET, and SET with a life in a pipeline."""

    async def use():
        async with service_client(server, **options) as client:
            assert await client.ping()
            async with client.pipeline(transaction=False) as pipeline:
                for name in ("one", "two"):
                    pipeline.set(PREFIX + name, VALUE, px=60_000)
                assert await pipeline.execute() == [True, True]
            assert await client.mget([PREFIX + "one", PREFIX + "none", PREFIX + "two"]) == [VALUE, None, VALUE]
            assert await client.get(PREFIX + "one") == VALUE

    asyncio.run(use())


@pytest.mark.parametrize("command", FOR_BOTH, ids=words)
def test_each_permission_of_the_service_is_one(service, command):
    """Each command of the list, by itself."""
    service.execute_command(*command)


def test_no_user_may_do_more_than_is_listed():
    """The users file names the commands that are tried here, and no category but the empty one."""
    text = (RECIPE / "users.acl").read_text()
    users = dict(re.findall(r"^user (\S+) (.*)$", text, re.MULTILINE))
    permitted = {name: set(re.findall(r"\+(\S+)", rules)) for name, rules in users.items()}
    both = {acl_name(command) for command in FOR_BOTH}
    assert permitted == {
        "default": set(),
        SERVICE_USER: both,
        ADMIN_USER: both | {acl_name(command) for command in FOR_ADMINISTRATION},
    }
    for rules in users.values():
        assert rules.index("-@all") < (rules.index("+") if "+" in rules else len(rules))
        assert set(re.findall(r"~(\S+)", rules)) <= {"creditd:*"}
        assert "nopass" not in rules


def acl_name(command):
    """The name of a command in a rule: a subcommand stands behind a bar."""
    containers = ("CLIENT", "MEMORY")
    return "|".join(command[:2] if command[0] in containers else command[:1]).lower()


@pytest.mark.parametrize("command", FORBIDDEN + FOR_ADMINISTRATION, ids=words)
def test_the_service_may_do_no_more(service, command):
    """Scripts, lists of keys, configuration, deletion and everything else are refused to the service."""
    with pytest.raises(redis.exceptions.NoPermissionError):
        service.execute_command(*command)


@pytest.mark.parametrize("command", FORBIDDEN, ids=words)
def test_the_administration_may_do_no_more(admin, command):
    """No script, no configuration and no FLUSHALL for the administration either."""
    with pytest.raises(redis.exceptions.NoPermissionError):
        admin.execute_command(*command)


@pytest.mark.parametrize("user", ["service", "admin"])
@pytest.mark.parametrize("command", [("GET", "x"), ("MGET", PREFIX, "x"), ("SET", "creditd", "x")], ids=words)
def test_keys_of_others_are_out_of_reach(request, user, command):
    """A key that does not begin with `creditd:` can be neither read nor written."""
    with pytest.raises(redis.exceptions.NoPermissionError):
        request.getfixturevalue(user).execute_command(*command)


def test_nobody_gets_in_without_a_password(server):
    """The default user is off, and each user has one password, its own."""
    wrong = ((None, None), (SERVICE_USER, ADMIN_PASSWORD), (ADMIN_USER, SERVICE_PASSWORD), ("default", "x"))
    for user, password in wrong:
        once = Retry(NoBackoff(), 0)
        with (
            redis.Redis(port=server.port, username=user, password=password, retry=once) as client,
            pytest.raises(redis.exceptions.AuthenticationError),
        ):
            client.ping()


def test_passwords_stand_in_no_command_line(server):
    """Neither the arguments of the server nor its variables hold a password or its digest, and no file of its own."""
    process = psutil.Process(server.pid)
    seen = " ".join([*process.cmdline(), *process.environ().values()])
    for password in (SERVICE_PASSWORD, ADMIN_PASSWORD):
        assert password not in seen
        assert hashlib.sha256(password.encode()).hexdigest() not in seen
    assert process.name().startswith("redis-server")  # the shell has made room for it, so that signals reach it


def health_checks():
    """The commands with which compose and Kubernetes ask whether Redis is well, and the password file of each."""
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["redis"]
    yield "compose", compose["healthcheck"]["test"][1].replace("$$", "$"), compose["command"][2]
    deployment = next(yaml.safe_load_all((ROOT / "deploy/k8s/redis.yaml").read_text()))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for name in ("readinessProbe", "livenessProbe"):
        yield name, container[name]["exec"]["command"][2], container["args"][2]


@pytest.mark.parametrize(
    ("command", "file"), [pytest.param(command, file, id=name) for name, command, file in health_checks()]
)
def test_health_checks_pass_while_redis_answers(server, tmp_path, command, file):
    """The command exits with 0 when the service's user is answered; not with a wrong password or without a server."""
    password = tmp_path / "password"
    command = command.replace(file, str(password))

    def exit_of(port, text):
        password.write_text(f"{text}\n")
        there = command.replace("redis-cli", f"redis-cli -p {port}")
        return subprocess.run(["sh", "-c", there], capture_output=True, timeout=30, check=False).returncode

    assert exit_of(server.port, SERVICE_PASSWORD) == 0
    assert exit_of(server.port, ADMIN_PASSWORD) != 0
    assert exit_of(free_port(), SERVICE_PASSWORD) != 0


@pytest.mark.parametrize("password", [None, "", "\n", "short\n"], ids=["no file", "empty", "no text", "short"])
def test_without_a_good_password_nothing_starts(tmp_path, password):
    """A password file that is missing, empty or short ends the start with status 2, and names the file."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(SERVICE_PASSWORD)
    if password is not None:
        bad.write_text(password)
    for files in ((good, bad), (bad, good)):
        done = subprocess.run(
            ["sh", RECIPE / "start.sh", *files, "--port", str(free_port())],
            capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        assert f"expected a password of at least 16 characters in {bad}" in done.stderr


def test_the_administration_finds_measures_and_removes(service, admin):
    """What `creditd cache` does: find the keys of a model, look at them, unlink them, and mark the purge."""
    names = {f"creditd:1:model:doomed:{number:032x}" for number in range(50)}
    for name in names:
        service.set(name, VALUE, px=60_000)
    found = {name.decode() for name in admin.scan_iter("creditd:1:model:doomed:*", count=20)}
    assert found == names
    one = min(names)
    assert admin.type(one) == b"string"
    assert admin.strlen(one) == len(VALUE)
    assert 0 < admin.pttl(one) <= 60_000
    assert admin.memory_usage(one) > len(VALUE)
    assert admin.dbsize() >= len(names)
    assert admin.unlink(*names) == len(names)
    admin.set("creditd:1:purged:doomed", "token")
    assert service.get("creditd:1:purged:doomed") == b"token"


def test_a_full_server_evicts_and_takes_what_is_new(service, admin):
    """At its limit the server drops what was unused for longest: writes succeed, what was just read is still there."""
    kept, n_fitting = PREFIX + "kept", MAXMEMORY_BYTES // (2 * len(VALUE))
    service.set(kept, VALUE, px=600_000)
    for number in range(n_fitting):
        assert service.set(f"{PREFIX}old:{number}", VALUE, px=600_000)
    time.sleep(RESOLUTION_OF_AGES_S)
    assert service.get(kept) == VALUE
    for number in range(n_fitting):
        assert service.set(f"{PREFIX}new:{number}", VALUE, px=600_000)
    assert service.get(kept) == VALUE
    assert service.get(f"{PREFIX}new:{n_fitting - 1}") == VALUE
    assert admin.info("stats")["evicted_keys"] > n_fitting // 8
    memory = admin.info("memory")
    assert memory["maxmemory_policy"] == "allkeys-lru"
    assert memory["used_memory"] < MAXMEMORY_BYTES * 1.1


def test_nothing_is_on_disk(server, service, admin):
    """No snapshot and no log of commands, not even after a stop in peace: a server that starts anew is empty."""
    persistence = admin.info("persistence")
    assert (persistence["aof_enabled"], persistence["rdb_bgsave_in_progress"], persistence["rdb_saves"]) == (0, 0, 0)
    service.set(PREFIX + "lost", VALUE, px=600_000)
    server.end()
    assert [path.name for path in server.directory.iterdir()] == [f"redis-{server.port}.log"]
    server.restart()
    assert service.get(PREFIX + "lost") is None
