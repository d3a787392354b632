"""Requests that schemathesis makes of the published schema, in both formats, and what its checks say of the answers."""

from __future__ import annotations

import msgpack
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from creditd.engines.fake_policy import FakePolicy
from creditd.engines.model_spec import ModelSpec
from creditd.engines.registry import Registry
from creditd.server.app import create_app
from creditd.server.resources import Resources
from creditd.server.settings import Settings
from creditd.wire import codec
from server.model_services import FakeEmbedder, fake
from server.test_binary import plain

EXAMPLES = 200
"""Requests drawn for each route and each kind, valid or not."""
MOST_DERIVED = 1000
"""Requests taken of those that are derived from the schema keyword by keyword, of which a route has up to 19,000."""
POLICY = ModelSpec("policy", "nowhere", kind="policy")
EXACT = 2**53
"""Up to here a float says which integer it is."""


@schemathesis.serializer(codec.MEDIA_TYPE)
def _to_messagepack(_, value):
    """A body in the binary format; an integer of more than 64 bits goes as a float, which is no more right there."""
    return msgpack.packb(value, default=float)


@schemathesis.deserializer(codec.MEDIA_TYPE)
def _from_messagepack(_, response):
    """An answer as it would stand in JSON, which is what the schema is about."""
    return plain(codec.decode(response.content))


def whole(value):
    """The value with integers for whole floats.

    To JSON Schema 1.0 is an integer; the service refuses it where it expects one, and there is no keyword to say so.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return int(value)
    if isinstance(value, dict):
        return {key: whole(entry) for key, entry in value.items()}
    return [whole(entry) for entry in value] if isinstance(value, list) else value


class AnyWeights(FakePolicy):
    """A policy whose weights have every version."""

    def sensitivities(self, prepared, expires_s=float("inf"), *, pin=None):
        """As for its weights, whatever the pin."""
        del pin
        return super().sensitivities(prepared, expires_s)


class AnyModel(Registry):
    """Models that answer to every name: which names there are is nothing that the schema could say."""

    def __init__(self):
        self._scorer, self._embedder = (
            fake(score=lambda _, text: float(len(text)), attention=lambda _, units: list(map(len, units))),
            FakeEmbedder(longest=10**9, known=False),
        )
        self._policy = AnyWeights(lambda _, item, __: [float(place) for place in item.positions], POLICY)
        super().__init__({"rm": self._scorer}, {"emb": self._embedder}, {"policy": self._policy})

    def scorer(self, _):
        """The one reward model."""
        return self._scorer

    def embedder(self, _):
        """The one embedding model."""
        return self._embedder

    def policy(self, _):
        """The one policy."""
        return self._policy


def open_schema():
    """The document as schemathesis reads it from the application, which it starts when the first request comes."""
    load_all_checks()
    app = create_app(Settings(), Resources(Settings(), engines=AnyModel()))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)

    @schema.hook
    def map_body(_, body):
        return whole(body)

    return schema


def operation_of(schema, path):
    """The one operation of a path."""
    (method,) = schema[path]
    return schema[path][method]


def drawn(operation, mode, take):
    """Hand over requests that are drawn from the schema; a GET, which takes nothing, has one."""

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(operation.as_strategy(generation_mode=mode))
    def requests(case):
        take(case)

    requests()


def derived(schema, operation, mode):
    """Requests that try every keyword of the schema, methods that are not there, and bodies without a type."""
    found = schema.iter_coverage_cases(
        operation, generation_modes=[mode], generation_config=schema.config.generation_for(operation=operation)
    )
    cases = list(found)
    step = max(1, -(-len(cases) // MOST_DERIVED))
    for place, case in enumerate(cases):
        if place % step and case.method.lower() == operation.method.lower():
            continue
        if case.body is not schemathesis.core.NOT_SET:
            case.body = whole(case.body)
        yield case


def check(case, response, *without):
    """Every check of schemathesis but some; raise what they found."""
    excluded = [CHECKS.get_by_names([name])[0] for name in without]
    case.validate_response(response, excluded_checks=excluded)


def failed_items(response):
    """How many sets, items or groups of an answer have an error instead of numbers."""
    (media_type,) = response.headers["content-type"]
    document = codec.decode(response.content) if media_type == codec.MEDIA_TYPE else response.json()
    entries = [*(document.get("sets") or ()), *(document.get("items") or ())]
    return len(document.get("errors") or ()) + sum(entry["status"] == "error" for entry in entries)


POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
