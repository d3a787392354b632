import sys
import threading
from collections import Counter

import numpy as np
import pytest

from creditd.credit.set_credit import set_credit
from creditd.scoring.candidate_credit import score_candidate_sets
from creditd.scoring.deadline import Deadline
from creditd.server.convert import envelope, json_body, shapley_document
from creditd.server.resources import Resources
from creditd.server.settings import Settings
from creditd.wire import codec
from creditd.wire.buffers import NumbersAndNulls
from creditd.wire.choices import options_of
from creditd.wire.columns import batch_of
from creditd.wire.limits import RequestLimits
from creditd.wire.oar import OarRequest
from creditd.wire.oar_items import solve_given
from creditd.wire.oar_results import reshaped_item
from creditd.wire.v1 import ShapleyRequest
from server.running import columnar, nested, on_service, ragged

FEW, MANY = 256, 8192
pytestmark = pytest.mark.slow

SLACK_BLOCKS = 512
"""Blocks that one run may hold more than another for reasons of its own: far below one per set."""
REPEATS = 3
"""The least of some runs: caches that fill on the way count once."""
LIMITS = RequestLimits()


def parsed(n_sets, **options):
    """A columnar request of so many sets of four candidates, eight of each prompt."""
    rewards = np.random.default_rng(7).normal(size=(n_sets, 4)).round(3).tolist()
    columns = {"rewards": ragged(rewards)}
    if "tokens" in options:
        columns["n_tokens"] = [12] * n_sets
        columns["spans"] = {"starts": [0, 3, 6, 9] * n_sets, "stops": [2, 5, 8, 11] * n_sets}
    columns |= features_of(options, n_sets)
    columns["groups"] = [row // 8 for row in range(n_sets)]
    return ShapleyRequest.model_validate({"columns": columns, **options})


def features_of(options, n_sets):
    """What utilities and rules need beside rewards, for sets of four candidates."""
    kind, columns = options.get("utility", {}).get("type"), {}
    if kind == "table":
        columns["utilities"] = ragged([[0.0] * 16] * n_sets)
    if kind == "plurality":
        columns["labels"] = [1, 2, 3, 4] * n_sets
    if kind == "coverage":
        columns["topics"] = ragged([[place, place + 1] for place in range(4)] * n_sets)
    if kind in {"facility_location", "noisy_or"}:
        columns["scores"] = ragged([[0.5, 0.25 * place] for place in range(4)] * n_sets)
    if kind in {"redundancy", "log_det"}:
        columns["similarities"] = ragged([[float(place % 5 == 0) for place in range(16)]] * n_sets)
    if options.get("credit") == {"type": "owen"}:
        columns["unions"] = [0, 0, 1, 1] * n_sets
    return columns


def watched(work):
    """How often Python enters or leaves a function while `work` runs, and the most blocks alive above the start."""
    events, peak, start = 0, 0, 0

    def watch(*_):
        nonlocal events, peak
        events += 1
        peak = max(peak, sys.getallocatedblocks())

    before = sys.getprofile()
    start = sys.getallocatedblocks()
    sys.setprofile(watch)
    try:
        result = work()
    finally:
        sys.setprofile(before)
    return result, events, peak - start


def answering(n_sets, **options):
    """The work between the arrays of a request and the bytes of its answer."""
    request = parsed(n_sets, **options)
    choices, batch = options_of(request, LIMITS), batch_of(request, LIMITS)
    head = envelope("r", 0.0)

    def work():
        answer = score_candidate_sets(batch.sets, choices, batch.rejected, Deadline.after(60.0))
        return json_body(shapley_document(answer, batch, head))

    work()  # what is computed once per process is there after the first time
    runs = [watched(work) for _ in range(REPEATS)]
    return runs[0][0], min(calls for _, calls, _ in runs), min(blocks for *_, blocks in runs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tokens": {"other": "next", "length_norm": True}},
        {"credit": {"type": "prefix_gain"}, "advantage": {"type": "per_slot"}},
        {"utility": {"type": "mean", "empty": 0.0}, "advantage": {"type": "batch_scaled", "baseline": "others"}},
    ],
    ids=["plain", "tokens", "per slot", "batch scaled"],
)
def test_the_columnar_path_makes_no_object_per_set(options):
    """From arrays to bytes, 32 times the sets take the same Python calls and the same Python objects."""
    body, calls, blocks = answering(FEW, **options)
    larger, more_calls, more_blocks = answering(MANY, **options)
    assert len(larger) > 16 * len(body)
    assert more_calls == calls
    assert more_blocks - blocks < SLACK_BLOCKS


WITH_FEATURES = {
    "plurality": {"utility": {"type": "plurality"}},
    "coverage": {"utility": {"type": "coverage"}},
    "facility_location": {"utility": {"type": "facility_location", "weights": [1.0, 0.5]}},
    "redundancy": {"utility": {"type": "redundancy", "penalty": 0.5}},
    "owen": {"utility": {"type": "coverage"}, "credit": {"type": "owen"}},
}


@pytest.mark.parametrize("options", WITH_FEATURES.values(), ids=WITH_FEATURES)
def test_features_make_no_object_per_set(options):
    """From arrays to bytes, features make no object per set; calls grow with the blocks of a kernel alone."""
    body, calls, blocks = answering(FEW, **options)
    larger, more_calls, more_blocks = answering(MANY, **options)
    assert len(larger) > 16 * len(body)
    assert more_calls - calls < MANY // 8
    assert more_blocks - blocks < SLACK_BLOCKS


def test_arrays_of_features_are_made_without_a_call_per_set():
    """Scores and similarities become arrays without a call per set; names cost a look into a dictionary each."""
    counts = []
    terms = [{"utility": {"type": name}} for name in ("noisy_or", "log_det")]
    named = [{"utility": {"type": name}} for name in ("coverage", "plurality")]
    for chosen in (terms, named):
        for n_sets in (FEW, MANY):
            columns = {
                "rewards": ragged([[0.5, 0.25]] * n_sets),
                "labels": [None, 1] * n_sets,
                "topics": ragged([["a"], ["b", "a"]] * n_sets),
                "scores": ragged([[0.5]] * (2 * n_sets)),
                "similarities": ragged([[1.0, 0.5, 0.5, 1.0]] * n_sets),
            }
            request = ShapleyRequest.model_validate({"columns": columns, "utility": {"type": "sum", "terms": chosen}})
            batch_of(request, LIMITS)
            counts.append(watched(lambda request=request: batch_of(request, LIMITS))[1])
    assert counts[0] == counts[1]
    assert counts[3] - counts[2] > MANY - FEW


def from_body_to_answer(n_sets, limit, **options):
    """The work between the bytes of a binary request and those of its answer."""
    rewards = np.random.default_rng(7).normal(size=4 * n_sets).round(3)
    fours = np.arange(n_sets + 1) * 4
    columns = {
        "rewards": {"values": NumbersAndNulls(rewards, np.arange(4 * n_sets) % 7 == 0), "row_splits": fours},
        "groups": np.arange(n_sets) // 8,
        "ids": np.arange(n_sets),
        "set_rewards": rewards[:n_sets],
        "n_tokens": np.full(n_sets, 12),
        "spans": {"starts": np.tile([0, 3, 6, 9], n_sets), "stops": np.tile([2, 5, 8, 11], n_sets)},
        "labels": np.arange(4 * n_sets) % 3,
        "candidate_ids": np.arange(4 * n_sets),
        "similarities": {"values": np.full(16 * n_sets, 0.5), "row_splits": fours * 4},
    }
    body = codec.encode({"columns": columns, **options})

    def work():
        request = ShapleyRequest.model_validate(codec.decode(body, limit))
        choices, batch = options_of(request, LIMITS), batch_of(request, LIMITS)
        answer = score_candidate_sets(batch.sets, choices, batch.rejected, Deadline.after(60.0))
        return codec.encode(shapley_document(answer, batch, envelope("r", 0.0)))

    work()  # what is computed once per process is there after the first time
    runs = [watched(work) for _ in range(REPEATS)]
    return runs[0][0], min(calls for _, calls, _ in runs), min(blocks for *_, blocks in runs)


@pytest.mark.parametrize("limit", [1 << 30, 1 << 12], ids=["small", "larger than text may be"])
@pytest.mark.parametrize(
    "options", [{}, {"tokens": {"other": "next"}}, {"utility": {"type": "redundancy", "penalty": 0.1}}]
)
def test_the_binary_path_makes_no_object_per_set(options, limit):
    """From the bytes of a request to the bytes of its answer, 32 times the sets take the same calls and objects."""
    body, calls, blocks = from_body_to_answer(FEW, limit, **options)
    larger, more_calls, more_blocks = from_body_to_answer(MANY, limit, **options)
    assert len(larger) > 16 * len(body)
    assert more_calls == calls
    assert more_blocks - blocks < SLACK_BLOCKS


def from_tokens_to_answer(n_tokens):
    """The work between the bytes of a binary request of reshaped advantages and those of its answer."""
    item = {
        "sensitivities": np.random.default_rng(7).random(n_tokens),
        "completion_mask": (np.arange(n_tokens) % 5 > 0).astype(np.int64),
        "completion_ids": np.arange(n_tokens),
        "prompt_ids": np.arange(n_tokens),
        "advantage": 1.0,
    }
    body = codec.encode({"items": [item] * 4, "sensitivity": {"type": "given"}})

    def work():
        request = OarRequest.model_validate(codec.decode(body))
        items = [reshaped_item(one) for one in solve_given(request, LIMITS).items]
        return codec.encode({**envelope("r", 0.0), "items": items})

    work()  # what is computed once per process is there after the first time
    runs = [watched(work) for _ in range(REPEATS)]
    return runs[0][0], min(calls for _, calls, _ in runs), min(blocks for *_, blocks in runs)


def test_reshaped_advantages_make_no_object_per_token():
    """From the bytes of a request to the bytes of its answer, 32 times the tokens take the same calls and objects."""
    body, calls, blocks = from_tokens_to_answer(FEW)
    larger, more_calls, more_blocks = from_tokens_to_answer(MANY)
    assert len(larger) > 16 * len(body)
    assert more_calls == calls
    assert more_blocks - blocks < SLACK_BLOCKS


def test_arrays_are_made_without_a_call_per_set():
    """From a parsed columnar request without names to arrays, the calls do not grow with the sets, either."""
    counts = []
    for n_sets in (FEW, MANY):
        columns = {"rewards": ragged([[0.5, 0.25]] * n_sets), "n_tokens": [1] * n_sets, "set_rewards": [0.5] * n_sets}
        request = ShapleyRequest.model_validate({"columns": columns})
        batch_of(request, LIMITS)
        counts.append(watched(lambda request=request: batch_of(request, LIMITS))[1])
    assert counts[0] == counts[1]


def test_the_watch_sees_an_object_per_set():
    """The nested form makes objects per set, and the two counters above do see it."""
    counts, sizes = [], (16, 272)
    for n_sets in sizes:
        sets = [{"candidates": [{"reward": 0.5}, {"reward": 0.25}]}] * n_sets
        request = ShapleyRequest.model_validate({"sets": sets})
        choices, batch = options_of(request, LIMITS), batch_of(request, LIMITS)
        answer = set_credit(batch.sets, choices, batch.rejected)
        _, calls, blocks = watched(lambda: json_body(shapley_document(answer, batch, envelope("r", 0.0))))  # noqa: B023  # used at once
        counts.append((calls, blocks))
    assert counts[1][0] > counts[0][0] + 256
    assert counts[1][1] > counts[0][1] + 256


@pytest.mark.parametrize("form", [nested, columnar])
def test_a_request_is_one_call_of_the_arithmetic(form):
    """However many sets, groups and sizes a request has, it is one call into `creditd.credit`."""
    scored = []

    def score(*arguments):
        scored.append(threading.get_ident())
        return score_candidate_sets(*arguments)

    entered = Counter()

    def watch(frame, event, _):
        if event == "call":
            entered[frame.f_code] += 1

    body = form([[0.5] * (1 + row % 5) for row in range(300)])

    async def ask(service):
        scored.clear()
        return await service.post(body)

    before = threading.getprofile()
    threading.setprofile(watch)
    try:
        response = on_service(ask, Resources(Settings(compute_threads=1, max_inline_candidates=0), score_sets=score))
    finally:
        threading.setprofile(before)
    assert response.status_code == 200
    assert len(scored) == 1
    assert scored[0] != threading.get_ident()
    assert entered[set_credit.__code__] == 2, "one call for the warm-up, one for the request"
