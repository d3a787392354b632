"""One test for both clients, a clock that only moves when told, and a service that fits in a function."""

import asyncio
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import httpx
import pytest
from pydantic_core import from_json, to_json

from creditd.client import AsyncClient, Client
from creditd.client.steps import Timing
from creditd.credit.flags import Flag
from creditd.credit.set_credit import set_credit
from creditd.wire import codec, groups, v1
from creditd.wire.choices import options_of
from creditd.wire.columns import batch_of
from creditd.wire.errors import ERROR_KINDS, ErrorCode, ErrorItem, problem
from creditd.wire.group_rows import solve_group
from creditd.wire.limits import RequestLimits

Handler = Callable[[httpx.Request], httpx.Response]
USAGE = {
    "evaluations": 0,
    "from_cache": 0,
    "tokens_computed": 0,
    "tokens_naive": 0,
    "engine_s": 0.0,
    "queue_s": 0.0,
}
SERVICE = {"version": "9.9", "methods": 1}


@dataclass
class FakeClock:
    """Time that passes only in pauses, and in answers that say how long they take."""

    now: float = 1000.0
    chance: float = 0.5
    pauses: list[float] = field(default_factory=list)

    @property
    def timing(self) -> Timing:
        """The clocks and the chance that a client takes."""
        return Timing(clock=lambda: self.now, wall=lambda: 1.7e9 + self.now, chance=lambda: self.chance)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.pauses.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        """Let time pass, too."""
        self.sleep(seconds)


@dataclass
class Runner:
    """The sync or the async client, used alike."""

    is_async: bool
    clock: FakeClock

    def client(self, handler: Handler | None = None, url: str = "http://credit.test", **options):
        """Make a client whose requests go to a function."""
        if self.is_async:
            transport = None if handler is None else httpx.MockTransport(handler)
            return AsyncClient(
                url, transport=transport, _timing=self.clock.timing, _sleep=self.clock.sleep_async, **options
            )
        transport = None if handler is None else httpx.MockTransport(handler)
        return Client(url, transport=transport, _timing=self.clock.timing, _sleep=self.clock.sleep, **options)

    def call(self, client, method: str, *args, **options):
        """Call a method to its end."""
        result = getattr(client, method)(*args, **options)
        return asyncio.run(result) if self.is_async else result

    def close(self, client) -> None:
        """Close a client of either kind."""
        if self.is_async:
            asyncio.run(client.aclose())
        else:
            client.close()


@dataclass
class Script:
    """A service that gives prepared answers in turn, then real ones, and remembers what it was asked."""

    answers: Iterable[httpx.Response | Exception] = ()
    seen: list[httpx.Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._answers = iter(self.answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Give the next prepared answer, or a real one."""
        self.seen.append(request)
        answer = next(self._answers, None)
        if isinstance(answer, Exception):
            raise answer
        return answer or solved(request)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["sync", "async"])
def runner(request: pytest.FixtureRequest, clock: FakeClock) -> Runner:
    return Runner(is_async=request.param == "async", clock=clock)


@pytest.fixture
def script() -> type[Script]:
    return Script


@pytest.fixture
def failing() -> Callable[..., httpx.Response]:
    def make(code: ErrorCode, headers: dict[str, str] | None = None, **details) -> httpx.Response:
        document = problem(code, "of the test's own making", request_id="r", **details)
        return httpx.Response(document.status, headers=headers, content=document.model_dump_json())

    return make


@pytest.fixture(scope="session")
def service() -> Handler:
    return solved


def solved(request: httpx.Request) -> httpx.Response:
    """Answer as the service does."""
    head = {"request_id": request.headers["x-request-id"], "service": SERVICE, "usage": USAGE}
    if request.url.path == "/readyz":
        return httpx.Response(200, text="ready\n")
    binary = request.headers.get("content-type") == codec.MEDIA_TYPE
    asked = codec.decode(request.content) if binary else from_json(request.content)
    if request.url.path == "/v1/credit/group":
        return _json(head | _group(groups.GroupRequest.model_validate(asked)))
    return _json(head | _shapley(v1.ShapleyRequest.model_validate(asked)))


def _json(document: dict) -> httpx.Response:
    """Write the answer, or the refusal when every row failed."""
    errors = document["errors"]
    if len(errors) == len(document.get("columns", document)["status"]):
        items = tuple(
            ErrorItem.model_validate({name: error[name] for name in ErrorItem.model_fields}) for error in errors
        )
        found = problem(items[0].code, "nothing was answered", request_id=document["request_id"], errors=items)
        return httpx.Response(found.status, content=found.model_dump_json())
    return httpx.Response(200, content=to_json(document, inf_nan_mode="null"))


def _shapley(request: v1.ShapleyRequest) -> dict:
    batch = batch_of(request, RequestLimits())
    solved = set_credit(batch.sets, options_of(request, RequestLimits()), batch.rejected)
    splits = solved.row_splits.tolist()
    tokens = None
    if solved.token_advantages is not None:
        tokens = {"values": _nulls(solved.token_advantages), "row_splits": solved.token_splits.tolist()}
    whole = solved.set_reward_advantages
    return {
        "columns": {
            "status": [int(not ok) for ok in solved.ok.tolist()],
            "credits": {"values": _nulls(solved.credits), "row_splits": splits},
            "advantages": {"values": _nulls(solved.advantages), "row_splits": splits},
            "set_advantages": _nulls(solved.set_advantages),
            "set_reward_advantages": None if whole is None else _nulls(whole),
            "token_advantages": tokens,
            "utility_empty": _nulls(solved.utility_empty),
            "utility_grand": _nulls(solved.utility_grand),
            "credit_sum": _nulls(solved.credit_sums),
            "gap": _nulls(solved.gaps),
            "flags": solved.flags.tolist(),
            "flag_names": [str(flag.name).lower() for flag in Flag],
            "exact": True,
            "method": "table" if request.utility.type == "table" else "order_statistic",
        },
        "errors": [
            _row_error(error.row, ErrorCode(error.code), batch.pointer(error), error.detail) for error in solved.errors
        ],
    }


def _group(request: groups.GroupRequest) -> dict:
    rows = solve_group(request, RequestLimits())
    splits = rows.row_splits.tolist()
    return {
        "advantages": [_nulls(rows.advantages[a:b]) for a, b in pairwise(splits)],
        "status": [int(not ok) for ok in rows.ok.tolist()],
        "flags": [list(Flag(mask).wire_names) for mask in rows.flags.tolist()],
        "errors": [_row_error(*error) for error in rows.errors],
    }


def _row_error(row: int, code: ErrorCode, pointer: str, detail: str) -> dict:
    retryable = ERROR_KINDS[code].retryable
    return {"row": row, "code": code.value, "pointer": pointer, "detail": detail, "retryable": retryable}


def _nulls(array) -> list[float | None]:
    return [None if math.isnan(value) else value for value in array.tolist()]
