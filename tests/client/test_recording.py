import asyncio
import json
import logging
import re
import shutil
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from creditd.client import (
    AsyncClient,
    Client,
    InvalidRequestError,
    OverloadedError,
    PartialResultError,
    ResponseError,
    TransportError,
)
from creditd.client.exchanges import answer_of, answer_text, body_of, parsed, written
from creditd.client.recording import Recorder
from creditd.client.steps import Exchange
from creditd.server.app import create_app
from creditd.server.settings import Settings
from creditd.wire import groups, v1
from creditd.wire.errors import ErrorCode
from creditd.wire.versions import package_version
from recordings import NOW, PLAIN, changed

SETS = [[0.9, 0.5], [0.1, None]]
AWKWARD = [[0.1, -0.0, 5e-324], [float("nan"), 1.0], [0.1 + 0.2, 1e100, None]]
NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z-(shapley|group)-[A-Za-z0-9._:-]{1,64}\.json")
LATER = timedelta(seconds=1)
TOKENS = {"spans": [[[0, 1], [2, 3]], [[0, 2], None]], "n_tokens": [4, 5], "tokens": {"other": "next"}}
CALLS = {
    "columns": ("shapley", (SETS,), {"groups": ["p", "p"], "ids": ["a", 7]}),
    "awkward": ("shapley", (AWKWARD,), {"groups": [0, 0, 1], "set_rewards": [1.0, None, 2.0]}),
    "tokens": ("shapley", (SETS,), TOKENS),
    "table": ("shapley", (), {"utilities": [[0.0, 0.3, 0.5, 1.0]], "utility": "table"}),
    "empty": ("shapley", ([[], [1.0]],), {}),
    "mappings": ("shapley", ([{"id": "x", "candidates": [{"reward": 1.0, "text": "größer"}]}],), {}),
    "group": ("group", ([[1.0, 0.5, -0.0], [None, 2.0], []],), {"convention": "verl"}),
    "group by name": (
        "group",
        ({"7": [[1.0, 0.5], [0.25, -0.0]], "b": [[0.0, None], [2.0, 1.0]]},),
        {"weights": {"b": 0.5}, "n_tokens": [[1, 2], [3, 4]], "advantage": "gdpo", "convention": "verl"},
    ),
    "group with nan": ("group", ([[1.0, float("nan")], [0.3, 0.1]],), {}),
}


def files(directory: Path) -> list[Path]:
    """List the recordings, oldest first."""
    return sorted(path for path in directory.iterdir() if NAME.fullmatch(path.name))


def read(directory: Path) -> list[Exchange]:
    """Read all recordings, oldest first."""
    return [parsed(path.read_bytes()) for path in files(directory)]


def bits(array: np.ndarray) -> tuple:
    """Give the bytes, with one byte pattern for all slots without a number."""
    return array.shape, np.where(np.isnan(array), np.nan, array).tobytes()


def assert_same(one, two) -> None:
    """Compare two results by their bits."""
    assert type(one) is type(two)
    assert bits(one.advantages.values) == bits(two.advantages.values)
    assert one.advantages.row_splits.tolist() == two.advantages.row_splits.tolist()
    assert (one.flags, one.errors, one.ok.tolist()) == (two.flags, two.errors, two.ok.tolist())
    for name in ("set_advantages", "utility_empty", "utility_grand", "credit_sum", "gap"):
        if hasattr(one, name):
            assert bits(getattr(one, name)) == bits(getattr(two, name)), name
    for name in ("credits", "token_advantages"):
        ours, theirs = getattr(one, name, None), getattr(two, name, None)
        assert (ours is None) == (theirs is None)
        assert ours is None or bits(ours.values) == bits(theirs.values)


def test_every_exchange_becomes_one_file_that_only_its_owner_reads(runner, script, clock, tmp_path) -> None:
    """One call of shapley or group, one file of mode 0600; info and ready leave none, and no credential is in it."""
    folder, service = tmp_path / "made" / "here", script()
    client = runner.client(service, "http://ann:pw@credit.test", api_key="KEY", record=folder, wire_format="json")
    runner.call(client, "ready")
    result = runner.call(client, "shapley", SETS, ids=["a", "b"], request_id="mine")
    runner.call(client, "group", SETS)
    first, second = files(folder)
    assert stat.S_IMODE(first.stat().st_mode) == stat.S_IMODE(second.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert first.name.endswith("Z-shapley-mine.json")
    document = json.loads(first.read_text())
    assert document.pop("response") == solved_text(service, "mine")
    assert document == {
        "format": 1,
        "time": datetime.fromtimestamp(1.7e9 + clock.now, timezone.utc).isoformat().replace("+00:00", "Z"),
        "url": "http://credit.test",
        "operation": "/v1/credit/shapley",
        "request_id": "mine",
        "status": 200,
        "attempts": 1,
        "elapsed_s": 0.0,
        "client_version": package_version(),
        "service_version": result.service.version,
        "ids": ["a", "b"],
        "request": service.seen[1].content.decode(),
        "error": None,
    }
    for path in (first, second):
        assert not re.search("KEY|ann|pw", path.read_text())
    assert client.record_failures == 0


def pair(runner, service, directory: Path, **options) -> tuple:
    """Make a client of a service and one of local mode, with a directory for each."""
    return (
        runner.client(service, record=directory / "remote", **options),
        runner.client(url="local:", record=directory / "local", **options),
    )


def solved_text(service, request_id: str) -> str:
    """Give the text that a scripted service answered with; it is a function of the request."""
    request = next(one for one in service.seen if one.headers["x-request-id"] == request_id)
    return service(request).text


def test_without_a_directory_nothing_is_kept(runner, script, tmp_path, monkeypatch) -> None:
    """Recording is off until it is asked for."""
    monkeypatch.chdir(tmp_path)
    client = runner.client(script())
    runner.call(client, "shapley", SETS)
    assert not list(tmp_path.iterdir())
    assert client.record_failures == 0


@pytest.mark.parametrize("name", CALLS)
def test_what_was_sent_is_in_the_file_to_the_last_bit(name, runner, script, tmp_path) -> None:
    """The recorded request is the body that travelled, NaN and negative zero included; local mode records the same."""
    method, arguments, options = CALLS[name]
    service = script()
    for client in pair(runner, service, tmp_path, wire_format="json"):
        runner.call(client, method, *arguments, on_item_error="return", **options)
    (remote,), (local,) = read(tmp_path / "remote"), read(tmp_path / "local")
    assert remote.request.encode() == body_of(remote).content == service.seen[0].content
    assert local.request == remote.request
    assert (local.url, local.attempts, local.status) == ("local:", 0, 200)


@pytest.mark.parametrize("name", CALLS)
def test_a_binary_exchange_is_recorded_as_the_text_that_it_would_have_been(name, runner, script, tmp_path) -> None:
    """Whatever travelled, the file holds the JSON of the same request, to the last character."""
    method, arguments, options = CALLS[name]
    for wire_format in ("json", "binary"):
        for client in pair(runner, script(), tmp_path / wire_format, wire_format=wire_format):
            runner.call(client, method, *arguments, on_item_error="return", **options)
    texts = {read(tmp_path / form / side)[0].request for form in ("json", "binary") for side in ("remote", "local")}
    assert len(texts) == 1


@pytest.mark.parametrize("name", CALLS)
def test_a_recorded_answer_reads_as_the_result_that_it_was(name, runner, script, tmp_path) -> None:
    """From the service and from local mode, every number comes back with its bits, and repeating gives them again."""
    method, arguments, options = CALLS[name]
    for client, folder in zip(pair(runner, script(), tmp_path), ("remote", "local"), strict=True):
        result = runner.call(client, method, *arguments, on_item_error="return", **options)
        (exchange,) = read(tmp_path / folder)
        assert_same(answer_of(exchange), result)
        assert answer_of(exchange).request_id == result.request_id
        assert_same(runner.call(client, "repeat", exchange), result)
        again = read(tmp_path / folder)[1]
        assert again.request == exchange.request
        assert again.request_id != exchange.request_id


@pytest.mark.parametrize("name", CALLS)
def test_local_mode_records_an_answer_in_the_schema_of_the_service(name) -> None:
    """What local mode writes down is a document that the service could have sent."""
    method, arguments, options = CALLS[name]
    with Client("local:") as client:
        text = answer_text(getattr(client, method)(*arguments, on_item_error="return", **options))
    (v1.ShapleyResponse if method == "shapley" else groups.GroupResponse).model_validate_json(text)


def test_the_real_service_and_local_mode_record_answers_with_equal_bits(tmp_path) -> None:
    """An exchange with the application is repeated in this process to the last bit, refusals with their code."""

    async def call() -> None:
        app = create_app(Settings())
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            AsyncClient("http://credit.test", transport=transport, record=tmp_path) as client,
        ):
            await client.wait_until_ready(timeout_s=10)
            for method, arguments, options in CALLS.values():
                await getattr(client, method)(*arguments, on_item_error="return", **options)
            with pytest.raises(InvalidRequestError):
                await client.shapley([[float("nan")]])
            assert {json.loads(one.response)["request_id"] for one in read(tmp_path)} == {
                one.request_id for one in read(tmp_path)
            }

    asyncio.run(call())
    *answered, refused = read(tmp_path)
    assert len(answered) == len(CALLS)
    with Client("local:") as client:
        for exchange in answered:
            assert_same(answer_of(exchange), client.repeat(exchange))
        with pytest.raises(InvalidRequestError) as caught:
            client.repeat(refused)
    assert (refused.status, refused.error.code) == (caught.value.status, caught.value.code) == (422, "non_finite_value")
    assert json.loads(refused.response)["code"] == "non_finite_value"


def test_a_refusal_is_kept_with_its_code(runner, script, failing, tmp_path) -> None:
    """Refusals by the service carry its document; refusals by local mode have none, and both raise as ever."""
    service = script([failing(ErrorCode.GROUP_SIZE_MISMATCH)])
    for client in pair(runner, service, tmp_path):
        with pytest.raises(InvalidRequestError):
            runner.call(client, "shapley", SETS, groups=[0, 0], expect={"group_size": 3})
    (remote,), (local,) = read(tmp_path / "remote"), read(tmp_path / "local")
    assert remote.error.code == local.error.code == "group_size_mismatch"
    assert (remote.status, remote.attempts, local.status, local.attempts) == (422, 1, 422, 0)
    assert json.loads(remote.response)["code"] == "group_size_mismatch"
    assert local.response is None
    assert answer_of(remote) is answer_of(local) is None


def test_retries_are_one_exchange(runner, script, failing, clock, tmp_path) -> None:
    """A call that needed three attempts is one file that says so, and how long they took together."""
    service = script([failing(ErrorCode.OVERLOADED), httpx.ReadError("lost")])
    runner.call(runner.client(service, record=tmp_path), "shapley", SETS)
    (exchange,) = read(tmp_path)
    assert (exchange.attempts, exchange.status, exchange.error) == (3, 200, None)
    assert exchange.elapsed_s == sum(clock.pauses) > 0


def test_a_call_without_an_answer_is_kept_too(runner, script, failing, tmp_path) -> None:
    """No answer, an answer of something else and a last refusal leave the request, and no credentials in messages."""
    url = "http://ann:pw@credit.test"
    lost = script([httpx.ConnectError("gone")] * 9)
    busy = script([failing(ErrorCode.OVERLOADED)] * 9)
    alien = script([httpx.Response(200, text="<html>")])
    found = []
    for service, kind in ((lost, TransportError), (busy, OverloadedError), (alien, ResponseError)):
        client = runner.client(service, url, record=tmp_path / kind.__name__, deadline_s=1e-3)
        with pytest.raises(kind):
            runner.call(client, "shapley", SETS)
        found += read(tmp_path / kind.__name__)
    first, second, third = found
    assert (first.error.kind, first.status, first.response) == ("TransportError", None, None)
    assert "http://credit.test: ConnectError" in first.error.detail
    assert (second.error.kind, second.status, second.error.code) == ("OverloadedError", 503, "overloaded")
    assert (third.error.kind, third.status, third.response) == ("ResponseError", 200, "<html>")
    assert {exchange.request for exchange in found} == {first.request}
    assert not any(b"pw" in written(exchange) for exchange in found)


def test_a_partial_result_is_an_answer(runner, script, tmp_path) -> None:
    """PartialResultError is raised after the exchange, which is kept with status 200."""
    client = runner.client(script(), record=tmp_path)
    with pytest.raises(PartialResultError):
        runner.call(client, "shapley", AWKWARD)
    (exchange,) = read(tmp_path)
    assert (exchange.status, exchange.error) == (200, None)


def test_what_was_never_a_request_is_not_an_exchange(runner, script, tmp_path) -> None:
    """Arguments that the client refuses by itself leave no file."""
    client = runner.client(script(), record=tmp_path)
    with pytest.raises(InvalidRequestError):
        runner.call(client, "shapley", "text")
    with pytest.raises(ValueError, match="deadline_s"):
        runner.call(client, "shapley", SETS, deadline_s=-1)
    assert not list(tmp_path.iterdir())


def test_the_newest_are_kept_and_nothing_else_is_touched(runner, script, tmp_path) -> None:
    """Above `keep` the oldest recordings go; every other file stays, whatever its name resembles."""
    others = ["notes.txt", "20200101T000000.000000Z-shapley-.json", "20200101T000000.000000Z-info-r.json", ".hidden"]
    for name in others:
        (tmp_path / name).write_text("not yours")
    (tmp_path / "20200101T000000.000000Z-shapley-folder.json").mkdir()
    old = tmp_path / "20200101T000000.000000Z-group-old.json"
    old.write_text("an older recording")
    client = runner.client(script(), record=str(tmp_path), keep=3)
    for number in range(5):
        assert old.exists() == (number < 3)
        runner.call(client, "shapley", SETS, request_id=f"r{number}")
    found = [path.name.rpartition("-")[2] for path in files(tmp_path) if path.is_file()]
    assert found == ["r2.json", "r3.json", "r4.json"]
    assert all((tmp_path / name).read_text() == "not yours" for name in others)
    assert (tmp_path / "20200101T000000.000000Z-shapley-folder.json").is_dir()
    assert client.record_failures == 0


@pytest.mark.parametrize("step", [timedelta(0), -LATER, LATER])
def test_names_sort_as_exchanges_ended_whatever_the_clock_does(step, tmp_path) -> None:
    """A clock that stands still or runs backwards neither overwrites a recording nor makes a newer one older."""
    recorder = Recorder(tmp_path, 10)
    for number in range(12):
        recorder.write(partial(changed, time=NOW + number * step, request_id="same", elapsed_s=float(number)))
    assert [exchange.elapsed_s for exchange in read(tmp_path)] == list(map(float, range(2, 12)))
    assert [exchange.time for exchange in read(tmp_path)] == [NOW + number * step for number in range(2, 12)]


@pytest.mark.parametrize("crash", [OSError("no space"), KeyboardInterrupt()])
def test_a_crash_before_the_last_step_leaves_no_half_file(crash, tmp_path) -> None:
    """Until the complete file is renamed there is nothing under its name, and after a crash nothing at all."""
    seen = []

    def crashing(source: Path, target: Path) -> None:
        seen.append((parsed(source.read_bytes()), target.exists()))
        raise crash

    recorder = Recorder(tmp_path, replace=crashing)
    if isinstance(crash, Exception):
        recorder.write(lambda: PLAIN)
    else:
        with pytest.raises(KeyboardInterrupt):
            recorder.write(lambda: PLAIN)
    assert seen == [(PLAIN, False)]
    assert not list(tmp_path.iterdir())
    assert recorder.failures == isinstance(crash, Exception)


def test_a_full_disk_leaves_no_half_file_and_stops_nobody(tmp_path) -> None:
    """When the system refuses bytes in the middle of a file, the result arrives, nothing stays, and it is said once."""
    program = """
import resource, sys
from creditd.client import Client
client = Client("local:", record=sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for _ in range(3):
    assert client.shapley([[1.0, 0.0]]).ok.all()
print(client.record_failures)
"""
    found = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert found.stdout == "3\n"
    assert found.stderr.count("could not be recorded") == 1
    assert "File too large" in found.stderr
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_with_its_time(tmp_path) -> None:
    """An unfinished file goes when it is older than all that are kept; one that may still be written to stays."""
    dead, alive = (f".{stamp}-group-r.json" for stamp in ("20200101T000000.000000Z", "20990101T000000.000000Z"))
    for name in (dead, alive):
        (tmp_path / name).write_text("half")
    recorder = Recorder(tmp_path, 2)
    recorder.write(lambda: PLAIN)
    assert (tmp_path / dead).exists()
    recorder.write(lambda: PLAIN)
    assert not (tmp_path / dead).exists()
    assert (tmp_path / alive).exists()


def test_a_directory_that_disappears_stops_nobody_and_is_said_once(runner, script, tmp_path, caplog) -> None:
    """Results and refusals are as without recording; one warning in the log, and a count of what is missing."""
    caplog.set_level(logging.WARNING, "creditd.client")
    folder = tmp_path / "records"
    client = runner.client(script(), record=folder)
    shutil.rmtree(folder)
    assert runner.call(client, "shapley", SETS).ok.all()
    with pytest.raises(InvalidRequestError):
        runner.call(client, "group", [[float("nan")]])
    assert client.record_failures == 2
    assert [record.name for record in caplog.records] == ["creditd.client"]
    assert "FileNotFoundError" in caplog.text
    assert "record_failures" in caplog.text
    folder.mkdir()
    runner.call(client, "shapley", SETS)
    assert len(files(folder)) == 1
    assert client.record_failures == 2


def test_a_directory_that_cannot_be_made_is_said_at_once(runner, tmp_path) -> None:
    """The mistake is named at construction, not in the middle of training."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="file"):
            runner.client(url="local:", record=place)
    with pytest.raises(ValueError, match="empty"):
        runner.client(url="local:", record="")
    with pytest.raises(TypeError):
        runner.client(url="local:", record=tmp_path / "new", keep=2.5)
    for keep in (0, -1):
        with pytest.raises(ValueError, match="keep"):
            runner.client(url="local:", record=tmp_path / "new", keep=keep)
    assert not (tmp_path / "new").exists()


def test_a_directory_that_cannot_be_written_to_is_said_at_once() -> None:
    """An existing directory of somebody else is as bad as none; nothing is closed to root, who becomes nobody."""
    program = """
import os, tempfile
from creditd.client import Client
with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o555)
    if os.getuid() == 0:
        os.setreuid(65534, 0)
    try:
        Client("local:", record=folder)
    except PermissionError as error:
        print(error)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "recordings cannot be written there" in found.stdout


def test_an_exchange_that_cannot_be_made_is_a_failure_to_record(tmp_path) -> None:
    """Whatever goes wrong on the way to the file is counted and not raised."""
    recorder = Recorder(tmp_path)
    recorder.write(lambda: changed(request=1 / 0))
    recorder.write(lambda: changed(response=object()))
    assert recorder.failures == 2
    assert not list(tmp_path.iterdir())


def test_a_relative_directory_is_found_once(runner, script, tmp_path, monkeypatch) -> None:
    """Changing the working directory later does not scatter recordings."""
    monkeypatch.chdir(tmp_path)
    client = runner.client(script(), record="records")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    runner.call(client, "shapley", SETS)
    assert len(files(tmp_path / "records")) == 1


def test_threads_and_tasks_may_share_a_directory(script, tmp_path) -> None:
    """Calls at once leave one complete file each, also under one request id."""
    transport = httpx.MockTransport(script())
    with Client("http://credit.test", transport=transport, record=tmp_path) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: client.shapley([[float(number)]], request_id="same"), range(64)))
        assert client.record_failures == 0
    assert sorted(answer_of(exchange).utility_grand[0] for exchange in read(tmp_path)) == list(map(float, range(64)))

    async def calls() -> None:
        async with AsyncClient("local:", record=tmp_path, keep=16) as client:
            await asyncio.gather(*[client.group([[float(number)]]) for number in range(32)])
            assert client.record_failures == 0

    asyncio.run(calls())
    assert [exchange.operation for exchange in read(tmp_path)] == ["/v1/credit/group"] * 16


def test_an_event_loop_does_not_wait_for_the_disk(tmp_path) -> None:
    """AsyncClient writes in another thread, Client in the caller's."""
    writers = []

    def seen(source: Path, target: Path) -> None:
        writers.append(threading.get_ident())
        source.rename(target)

    async def call() -> None:
        async with AsyncClient("local:", record=tmp_path) as client:
            client._recorder = Recorder(tmp_path, replace=seen)
            await client.shapley(SETS)

    with Client("local:", record=tmp_path) as client:
        client._recorder = Recorder(tmp_path, replace=seen)
        client.shapley(SETS)
    asyncio.run(call())
    assert [writer == threading.get_ident() for writer in writers] == [True, False]


def test_names_of_any_type_are_recorded(tmp_path) -> None:
    """Names of sets are not sent, so they may be anything; in a recording they are numbers and text."""
    with Client("local:", record=tmp_path) as client:
        client.shapley([[1.0]] * 5, ids=[7, "a", None, ("step", 3), "\ud800"])
        assert client.record_failures == 0
    (exchange,) = read(tmp_path)
    assert exchange.ids == (7, "a", None, "('step', 3)", "\\ud800")
