"""The first computation, done before the service calls itself ready."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from creditd.scoring.deadline import Deadline
from creditd.server.answers import answer_sets
from creditd.server.convert import json_body
from creditd.server.resources import Resources
from creditd.wire import codec
from creditd.wire.v1 import COLUMNS_EXAMPLE, ShapleyRequest


def warm_up(resources: Resources) -> None:
    """Answer the schema's own example in both formats, so that no caller pays for first-time costs.

    A failure here fails the boot.

    Args:
        resources: Open resources; `warm` becomes True.
    """
    answer_sets(
        ShapleyRequest.model_validate(codec.decode(codec.encode(COLUMNS_EXAMPLE))),
        request_id="warm-up",
        received_s=time.perf_counter(),
        limits=resources.limits,
        score=resources.score_sets,
        deadline=Deadline.after(60.0),
        encode=_in_both_formats,
    )
    resources.warm = True


def _in_both_formats(document: Mapping[str, Any]) -> bytes:
    """An answer as JSON and as MessagePack; nobody reads it."""
    return json_body(document) + codec.encode(document)
