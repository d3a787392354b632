"""Everything that a client does but the sending: requests, attempts, answers. In local mode nothing is sent at all."""

from __future__ import annotations

import math
import os
import re
import uuid
from itertools import pairwise
from typing import Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

import httpx

from creditd.client import answers, local
from creditd.client.arrays import Column, Rows, Sets, ragged
from creditd.client.bodies import Body, Choice, Options, choice, encoded, set_columns, type_of
from creditd.client.exceptions import NotReadyError, PartialResultError
from creditd.client.mappings import Name
from creditd.client.results import GroupResult, ShapleyResult
from creditd.client.retry import is_retried, retry_delay
from creditd.client.steps import Pause, Reply, Send, Steps, Timing
from creditd.wire import v1
from creditd.wire.versions import package_version

LOCAL_URL = "local:"
DEFAULT_URL = "http://127.0.0.1:8400"
DEFAULT_DEADLINE_S = 300.0
PROBE_TIMEOUT_S = 5.0
PROBE_INTERVAL_S = 0.5
_LONGEST_TIMEOUT_MS = 10**9
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

_R = TypeVar("_R", ShapleyResult, GroupResult)

OnItemError: TypeAlias = Literal["raise", "return"]


class Operations:
    """What a client can be asked, as steps.

    Attributes:
        base_url: Address of the service, or `local:`.
        is_local: Whether everything is computed in this process.
        is_loopback: Whether the service is on this machine, where no proxy stands between.
        timing: Clocks and chance.
    """

    def __init__(self, base_url: str | None, api_key: str | None, deadline_s: float, timing: Timing | None) -> None:
        self.base_url = (base_url or os.environ.get("CREDITD_URL") or DEFAULT_URL).rstrip("/")
        self.is_local = self.base_url == LOCAL_URL
        address = urlsplit(self.base_url)
        _ = address.port  # raises what a port that is no number deserves
        if not self.is_local and (address.scheme not in {"http", "https"} or not address.hostname):
            raise ValueError(f"got base_url {self.base_url!r}; expected http://HOST:PORT, https://… or {LOCAL_URL!r}")
        self.is_loopback = address.hostname in {"127.0.0.1", "::1", "localhost"}
        self._api_key = (api_key or os.environ.get("CREDITD_API_KEY") or "").strip()
        self._deadline_s = _checked_seconds("deadline_s", deadline_s)
        self.timing = timing or Timing()

    def shapley(
        self,
        sets: Sets | None = None,
        *,
        groups: Column | None = None,
        ids: Column | None = None,
        spans: Column | None = None,
        n_tokens: Column | None = None,
        set_rewards: Column | None = None,
        utilities: Rows | None = None,
        texts: Column | None = None,
        candidate_ids: Column | None = None,
        utility: Choice = "max",
        credit: Choice = "shapley",
        advantage: Choice = "pooled",
        tokens: Options | None = None,
        malformed: Options | None = None,
        expect: Options | None = None,
        estimator: Choice | None = None,
        incomplete_group: Literal["flag", "error"] = "flag",
        on_item_error: OnItemError = "raise",
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Steps[ShapleyResult]:
        """Credit of the candidates of each set, and their advantages within the group of sets that answer one prompt.

        Args:
            sets: B sets: lists of rewards (None: not scored), an array of shape (B, K), `Ragged`, or mappings in the
                shape of `creditd.wire.v1.CandidateSet`, which carry what the columns below would. None for tables
                without more data.
            groups: Names of the prompts, one per set. None: each set stands alone.
            ids: Names of the sets. They come back with the result and are not sent.
            spans: Token ranges: per set one [start, stop] or None per candidate; or an array of shape (candidates, 2).
            n_tokens: Completion tokens, one number per set.
            set_rewards: Rewards of whole responses (format, length, safety), one number or None per set.
            utilities: For the table utility, 2^K values per set; bit i of the index is candidate i, entry 0 is v(∅).
            texts: Per set one text or None per candidate, to recognise duplicates; or flat over all sets.
            candidate_ids: Per set one name per candidate; or flat over all sets. Tables are solved in their order.
            utility: What a set is worth, a name or a mapping such as `{"type": "top_m", "m": 2}`.
            credit: Which rule shares it out.
            advantage: How credits become advantages.
            tokens: What the tokens of a completion receive, as `creditd.wire.v1.TokensChoice`. None: none is asked for.
            malformed: What happens to sets that are not as the prompt asked, as `creditd.wire.v1.MalformedChoice`.
            expect: What the caller is sure of: `{"group_size": 8, "candidates": 4}`. Anything else is an error.
            estimator: How a value without a formula is found.
            incomplete_group: What happens to the other sets of a group that lost one to an error.
            on_item_error: Raise when some sets have no answer, or return the others with `errors` saying why.
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.
            request_id: Identity of the request in logs, at most 64 of `A–Z a–z 0–9 . _ : -`. None: a new one.

        Returns:
            Credits, advantages and more, row by row as the sets came.

        Raises:
            InvalidRequestError: If the request is wrong, or none of its sets could be answered.
            PartialResultError: If some sets have no answer; `result` holds the others.
            TransportError: If no answer came.
            DeadlineExceededError: If none came in time.
            StatusError: If the service refused or failed; its subclasses say how.
            ResponseError: If the answer is not in the schema of this client.
        """
        _check_choice("on_item_error", on_item_error, ("raise", "return"))
        extras = {
            "groups": groups,
            "ids": ids,
            "spans": spans,
            "n_tokens": n_tokens,
            "set_rewards": set_rewards,
            "utilities": utilities,
            "texts": texts,
            "candidate_ids": candidate_ids,
        }
        found = set_columns(sets, extras, table=type_of(utility) == "table", tokens=tokens is not None)
        content = encoded(
            {
                "columns": found.columns,
                "utility": choice(utility),
                "credit": choice(credit),
                "advantage": choice(advantage),
                "tokens": tokens,
                "malformed": malformed,
                "expect": expect,
                "estimator": None if estimator is None else choice(estimator),
                "incomplete_group": incomplete_group,
            }
        )
        body = Body(content=content, row_splits=found.row_splits, ids=found.ids)
        request_id = _checked_request_id(request_id)
        if self.is_local:
            result = local.shapley_result(body, request_id)
        else:
            reply = yield from self._exchange("/v1/credit/shapley", body, deadline_s, request_id)
            result = answers.shapley_result(reply, body)
        return _settled(result, result.ids, on_item_error)

    def group(
        self,
        rewards: Rows,
        *,
        convention: Literal["trl", "verl", "openrlhf"] = "trl",
        advantage: Choice = "grpo",
        expect: Options | None = None,
        on_item_error: OnItemError = "raise",
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Steps[GroupResult]:
        """Advantages of whole responses: the baselines that every credit is compared with.

        Args:
            rewards: One row per prompt, one number or None per response; lists, an array of shape (B, G), or `Ragged`.
            convention: Whose ε is added to the standard deviation.
            advantage: `grpo`, `dr_grpo` or `rloo`, or a mapping with `type`, `ddof`, `epsilon`.
            expect: What the caller is sure of: `{"group_size": 8}`.
            on_item_error: Raise when some rows have no answer, or return the others with `errors` saying why.
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.
            request_id: Identity of the request in logs, at most 64 of `A–Z a–z 0–9 . _ : -`. None: a new one.

        Returns:
            Advantages, row by row as the rewards came.

        Raises:
            InvalidRequestError: If the request is wrong, or none of its rows could be answered.
            PartialResultError: If some rows have no answer; `result` holds the others.
            TransportError: If no answer came.
            DeadlineExceededError: If none came in time.
            StatusError: If the service refused or failed; its subclasses say how.
            ResponseError: If the answer is not in the schema of this client.
        """
        _check_choice("on_item_error", on_item_error, ("raise", "return"))
        values, splits = ragged(rewards, "rewards")
        content = encoded(
            {
                "rewards": [values[start:stop] for start, stop in pairwise(splits.tolist())],
                "convention": convention,
                "advantage": choice(advantage),
                "expect": expect,
            }
        )
        body = Body(content=content, row_splits=splits)
        request_id = _checked_request_id(request_id)
        if self.is_local:
            result = local.group_result(body, request_id)
        else:
            reply = yield from self._exchange("/v1/credit/group", body, deadline_s, request_id)
            result = answers.group_result(reply, body)
        return _settled(result, None, on_item_error)

    def info(self, *, deadline_s: float | None = None) -> Steps[v1.Info]:
        """What the service is, does and allows.

        Args:
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.

        Returns:
            Versions, names of all choices, and limits.

        Raises:
            TransportError: If no answer came.
            StatusError: If the service refused or failed.
            ResponseError: If the answer is not in the schema of this client.
        """
        if self.is_local:
            return local.info()
        return answers.info((yield from self._exchange("/v1/info", None, deadline_s, uuid.uuid4().hex)))

    def ready(self) -> Steps[bool]:
        """Whether the service is ready, asked once.

        Returns:
            False while it starts or shuts down, and when nobody answers within 5 seconds.

        Raises:
            StatusError: If something answers that will never be ready, such as another service.
        """
        return self.is_local or (yield from self._probe(PROBE_TIMEOUT_S)) is None

    def wait_until_ready(self, timeout_s: float = 60.0) -> Steps[None]:
        """Wait for the service, which may not even listen yet.

        Args:
            timeout_s: Seconds to wait.

        Raises:
            NotReadyError: If it is not ready by then.
            StatusError: If something answers that will never be ready, such as another service.
        """
        if self.is_local:
            return
        timeout_s = _checked_seconds("timeout_s", timeout_s)
        clock = self.timing.clock
        started = clock()
        remaining_s = timeout_s
        while True:
            reason = yield from self._probe(min(PROBE_TIMEOUT_S, remaining_s))
            if reason is None:
                return
            remaining_s = timeout_s - (clock() - started)
            if remaining_s <= PROBE_INTERVAL_S:
                waited_s = clock() - started
                raise NotReadyError(
                    f"{self.base_url} was not ready within {timeout_s:g} s; last: {reason}", waited_s=waited_s
                )
            yield Pause(PROBE_INTERVAL_S)
            remaining_s -= PROBE_INTERVAL_S

    def _probe(self, timeout_s: float) -> Steps[str | None]:
        """Ask once; why the service is not ready, or None if it is."""
        request_id = uuid.uuid4().hex
        outcome = yield from self._send("/readyz", None, request_id, retries=0, timeout_s=timeout_s)
        if isinstance(outcome, Reply) and outcome.status == 200:
            return None
        if is_retried(outcome.status if isinstance(outcome, Reply) else outcome):
            return str(outcome) if isinstance(outcome, Reply) else f"{type(outcome).__name__}: {outcome}"
        raise answers.failure(
            outcome,
            None,
            url=self.base_url,
            request_id=request_id,
            attempts=1,
            elapsed_s=0.0,
            deadline_s=timeout_s,
        )

    def _exchange(self, path: str, body: Body | None, deadline_s: float | None, request_id: str) -> Steps[Reply]:
        """Send until there is a success, a failure for good, or no time left."""
        deadline_s = self._deadline_s if deadline_s is None else _checked_seconds("deadline_s", deadline_s)
        clock = self.timing.clock
        started, elapsed_s, attempts = clock(), 0.0, 0
        while True:
            left_s = deadline_s - elapsed_s
            outcome = yield from self._send(path, body, request_id, retries=attempts, timeout_s=left_s)
            if isinstance(outcome, Reply) and outcome.status == 200:
                return outcome
            attempts += 1
            elapsed_s = clock() - started
            error = answers.failure(
                outcome,
                body,
                url=self.base_url,
                request_id=request_id,
                attempts=attempts,
                elapsed_s=elapsed_s,
                deadline_s=deadline_s,
            )
            delay_s = retry_delay(
                attempts,
                outcome.status if isinstance(outcome, Reply) else outcome,
                outcome.headers if isinstance(outcome, Reply) else {},
                elapsed_s=elapsed_s,
                deadline_s=deadline_s,
                chance=self.timing.chance(),
                wall_s=self.timing.wall(),
            )
            if delay_s is not None:
                yield Pause(delay_s)
                elapsed_s = clock() - started
            if delay_s is None or elapsed_s >= deadline_s:
                raise error from (outcome if isinstance(outcome, Exception) else None)

    def _send(
        self, path: str, body: Body | None, request_id: str, *, retries: int, timeout_s: float
    ) -> Steps[Reply | httpx.RequestError]:
        """One attempt."""
        headers = {
            "Accept": "application/json",
            "User-Agent": f"creditd-python/{package_version()}",
            "X-Request-Id": request_id,
            "X-Request-Timeout-Ms": str(max(1, min(int(timeout_s * 1e3), _LONGEST_TIMEOUT_MS))),
            "X-Retry-Count": str(retries),
        }
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        outcome = yield Send(
            method="GET" if body is None else "POST",
            url=f"{self.base_url}{path}",
            headers=headers,
            content=None if body is None else body.content,
            timeout_s=timeout_s,
        )
        if outcome is None:
            raise RuntimeError("a request was answered by nothing")
        return outcome


def _settled(result: _R, ids: tuple[Name | None, ...] | None, on_item_error: OnItemError) -> _R:
    """The result, unless some rows have no answer and the caller wants to know."""
    if not result.errors or on_item_error == "return":
        return result
    first, many = result.errors[0], f"{len(result.errors)} of {len(result)} rows have no answer"
    name = f" (id {ids[first.row]!r})" if ids is not None and first.row is not None else ""
    raise PartialResultError(
        f"{many}; first: {first}{name} [request {result.request_id}]",
        result,
    )


def _checked_seconds(name: str, seconds: float) -> float:
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"got {name} {seconds!r}; expected a finite number of seconds above 0")
    return float(seconds)


def _checked_request_id(request_id: str | None) -> str:
    if request_id is None:
        return uuid.uuid4().hex
    if not _REQUEST_ID.fullmatch(request_id):
        raise ValueError(f"got request_id {request_id!r}; expected {_REQUEST_ID.pattern}")
    return request_id


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"got {name} {value!r}; expected one of {', '.join(choices)}")
