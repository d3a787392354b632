"""The first computation, done before the service calls itself ready."""

from __future__ import annotations

import time

from creditd.scoring.deadline import Deadline
from creditd.server.answers import answer_sets
from creditd.server.resources import Resources
from creditd.wire.v1 import COLUMNS_EXAMPLE, ShapleyRequest


def warm_up(resources: Resources) -> None:
    """Answer the schema's own example, so that no caller pays for first-time costs; a failure here fails the boot.

    Args:
        resources: Open resources; `warm` becomes True.
    """
    answer_sets(
        ShapleyRequest.model_validate(COLUMNS_EXAMPLE),
        request_id="warm-up",
        received_s=time.perf_counter(),
        limits=resources.limits,
        score=resources.score_sets,
        deadline=Deadline.after(60.0),
    )
    resources.warm = True
