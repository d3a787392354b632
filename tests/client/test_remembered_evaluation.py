"""Functions with a `utility_id`: the service remembers what they gave, by the content of prompts and candidates."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import pytest
from anyio.from_thread import start_blocking_portal

from creditd.client import AsyncClient, Client, Evaluator, InvalidRequestError
from creditd.client.content_names import candidate_names, prompt_names
from server.running import running

SETS = [["red sofa", "blue sofa", "red"], ["a", "b", "a", "c"], ["sun"]]
PROMPTS = ["a sofa?", [{"role": "user", "content": "letters?"}], "weather?"]
N_SUBSETS = 8 + 16 + 2
NAMED = {"prompts": PROMPTS, "utility_id": "words-v1"}


class Words:
    """How many words some candidates use together, and how often that was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, candidates):
        """The number."""
        self.calls += 1
        return len(set(" ".join(map(str, candidates)).split())) + 0.125 * len(candidates)


class Bridge(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """The application, in a thread of its own, for clients of both kinds; keeps what they send."""

    def __init__(self, portal, app):
        self._portal, self._sends = portal, httpx.ASGITransport(app)
        self.sent = []

    def handle_request(self, request):
        """The application's answer."""
        self.sent.append(request.content)
        response = self._portal.call(self._sends.handle_async_request, request)
        return httpx.Response(response.status_code, headers=response.headers, content=self._portal.call(response.aread))

    async def handle_async_request(self, request):
        """The same, awaited."""
        return await asyncio.to_thread(self.handle_request, request)


@pytest.fixture
def service():
    """A service that has heard nothing yet."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running()) as opened:
        yield Bridge(portal, opened.app)


def asked(service, sets=SETS, *, kind="sync", wire_format="binary", utility=None, **options):
    """The result of a fresh client, and how often its function was called."""
    words = Words()
    options = {**NAMED, **options, "utility": words if utility is None else utility(words)}
    base_url = "local:" if service is None else "http://credit.test"
    client = {"sync": Client, "async": AsyncClient}[kind](base_url, transport=service, wire_format=wire_format)
    result = client.shapley(sets, **options)
    return (asyncio.run(result) if kind == "async" else result), words.calls


def assert_same(one, other):
    """Equal bits."""
    for name in ("credits", "advantages"):
        assert getattr(one, name).values.tobytes() == getattr(other, name).values.tobytes()
    for name in ("utility_empty", "utility_grand", "evaluations"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    assert (one.exact, one.method) == (other.exact, other.method)


@pytest.mark.parametrize("wire_format", ["binary", "json"])
@pytest.mark.parametrize("kinds", [("sync", "async"), ("async", "sync")])
def test_a_function_is_called_once_for_what_it_was_named_by(service, kinds, wire_format):
    """The second client calls nothing, and its numbers are those of the first and of local mode."""
    first, n_first = asked(service, kind=kinds[0], wire_format=wire_format)
    second, n_second = asked(service, kind=kinds[1])
    here, _ = asked(None)
    assert (n_first, n_second) == (N_SUBSETS, 0)
    assert (first.usage.from_cache, second.usage.from_cache) == (0, N_SUBSETS)
    assert_same(first, second)
    assert_same(first, here)


def test_the_order_of_candidates_is_nothing_to_the_memory(service):
    """Copies included: credits move with their candidates."""
    first, _ = asked(service)
    sets = [[row[place] for place in (2, 0, 1, 3)[: len(row)] if place < len(row)] for row in SETS[:2]]
    second, n_calls = asked(service, [*sets, SETS[2]])
    assert n_calls == 0
    assert second.credits[0].tolist() == first.credits[0][[2, 0, 1]].tolist()
    assert sorted(second.credits[1].tolist()) == sorted(first.credits[1].tolist())


@pytest.mark.parametrize(
    ("other", "n_calls"),
    [
        ({"utility_id": "words-v2"}, N_SUBSETS),
        ({"prompts": ["a sofa!", *PROMPTS[1:]]}, 8),
        ({"prompts": [*PROMPTS[:2], [{"role": "user", "content": "weather?"}]]}, 2),
        ({"prompts": None, "prompt_ids": [1, 2, 3]}, N_SUBSETS),
        ({"sets": [[*SETS[0][:2], "Red"], *SETS[1:]]}, 8),
        ({"sets": [SETS[0], ["a", "b", "b", "c"], SETS[2]]}, 16),
        ({"estimator": {"seed": 7}, "credit": "leave_one_out"}, 0),
        ({"prompts": [PROMPTS[0], [{"content": "letters?", "role": "user"}], PROMPTS[2]]}, 0),
    ],
)
def test_another_content_is_another_game(service, other, n_calls):
    """Function, prompt and candidates; not seed and rule, nor the order of a message's fields."""
    asked(service)
    assert asked(service, **other)[1] == n_calls


def test_candidates_of_any_type_have_names_of_the_callers(service):
    """With `candidate_ids` and `prompt_ids` nothing has to be a text."""
    options = {"prompts": None, "prompt_ids": ["p"], "candidate_ids": [["x", 7, "7"]]}
    first, n_first = asked(service, [[1.5, (2,), None]], **options)
    second, n_second = asked(service, [[1.5, (2,), None]], **options)
    assert (n_first, n_second) == (8, 0)
    assert_same(first, second)


def test_texts_stay_where_they_are(service):
    """Digests of prompts and candidates are sent, and no word of them."""
    asked(service, wire_format="json")
    assert service.sent
    assert not any(word in body for body in service.sent for word in (b"sofa", b"letters", b"weather"))


def test_progress_counts_what_is_left_to_evaluate(service):
    """What the service remembers is no work."""
    seen = []

    def evaluator(words):
        return Evaluator(words, progress=lambda done, planned: seen.append((done, planned)))

    asked(service, SETS[:1], prompts=PROMPTS[:1])
    asked(service, utility=evaluator)
    assert seen[0] == (1, N_SUBSETS - 8)
    assert seen[-1] == (N_SUBSETS - 8, N_SUBSETS - 8)


def test_local_mode_remembers_nothing():
    """It checks the names, and calls the function each time."""
    (first, n_first), (second, n_second) = asked(None), asked(None)
    assert (n_first, n_second) == (N_SUBSETS, N_SUBSETS)
    assert (first.usage.from_cache, second.usage.from_cache) == (0, 0)
    with Client("local:") as client:
        assert_same(first, client.shapley(SETS, utility=Words(), candidate_ids=candidate_names(SETS)))


@pytest.mark.parametrize(
    ("options", "pointer", "words"),
    [
        ({"sets": [["a"], ["b", 3], ["c"]]}, "/sets/1/1", "got int; expected a text, or candidate_ids"),
        ({"prompts": None}, "/prompt_ids", "got neither prompts nor prompt_ids"),
        ({"prompt_ids": [1, 2, 3]}, "/prompt_ids", "got prompts and prompt_ids"),
        ({"prompts": ["a", 2, "c"]}, "/prompts/1", "got int; expected a text or a list of messages"),
        ({"prompts": ["a", ["b"], "c"]}, "/prompts/1", "got list; expected a text or a list of messages"),
        ({"prompts": ["a", [{"role": {1}}], "c"]}, "/prompts/1", "got list; expected a text or a list of messages"),
        ({"prompts": ["a"]}, "/prompts", "got 1 entries; expected 3"),
        ({"prompts": None, "prompt_ids": ["a"]}, "/prompt_ids", "got 1 entries; expected 3"),
        ({"utility_id": None}, "/prompts", "beside a utility_id alone"),
        ({"utility_id": None, "prompts": None, "prompt_ids": [1, 2, 3]}, "/prompt_ids", "beside a utility_id alone"),
        ({"utility": lambda _: "max"}, "/utility_id", "no function of yours"),
        ({"utility": lambda _: "max", "utility_id": None, "prompt_ids": [1]}, "/prompt_ids", "no function of yours"),
        (
            {"sets": SETS[:1], "prompts": ["p"], "candidate_ids": [["a", "a", "b"]]},
            "/items/0/player_ids",
            "different names",
        ),
        ({"utility_id": "x" * 257}, "/utility_id", "at most"),
    ],
)
def test_what_has_no_name_is_refused_in_words(options, pointer, words):
    """Before the function is called."""
    with pytest.raises(InvalidRequestError) as raised:
        asked(None, **options)
    assert raised.value.items[0].pointer == pointer
    assert words in str(raised.value)


def test_names_are_digests_of_the_content():
    """The same in every process and version: what was remembered under them is found again."""
    [[one, other, copy]] = candidate_names([["a", "ü\ud800", "a"]])
    assert one == "27c35e6e9373877f29e562464e46497e"
    assert (copy, len({one, other, copy})) == (f"{one}-1", 3)
    texts = ["a", "[]", [], [{"role": "user", "content": "a"}], ({"role": "user", "content": "a"},)]
    names = prompt_names(texts, None, len(texts))
    assert names[0] == "dbea35bc7f21752194bf49390c6f6a35"
    assert len(set(names)) == 4
    assert prompt_names(None, np.array([3, 4]), 2) == [3, 4]


def test_texts_that_look_alike_have_names_of_their_own():
    """A character and the two halves of its surrogate pair, its escape, and other normal forms of a letter."""
    texts = ["\U0001f600", "\ud83d\ude00", "\\ud83d\\ude00", "\ud83d", "\u00e9", "e\u0301"]
    messages = [[{"role": "user", "content": text}] for text in texts]
    assert len(set(candidate_names([texts])[0])) == len(texts)
    assert len(set(prompt_names([*texts, *messages], None, 2 * len(texts)))) == 2 * len(texts)
