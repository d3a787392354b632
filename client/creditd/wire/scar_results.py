"""What answers say of completions, with an answer or without, for both routes and for local mode."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from creditd.credit.flags import Flag
from creditd.credit.span_items import SpanCredit, SpanError
from creditd.wire.errors import ERROR_KINDS, ErrorCode
from creditd.wire.scar_items import pointer_to


def credited_item(credit: SpanCredit) -> dict[str, Any]:
    """What `ScarResult` says of a completion with an answer, but for its name; arrays stay arrays."""
    units = credit.units
    return {
        "status": "ok",
        "token_rewards": credit.token_rewards,
        "token_advantages": credit.token_advantages,
        "units": units.tokens,
        "unit_characters": units.characters,
        "unit_values": credit.values,
        "standard_errors": credit.standard_errors,
        "intervals": credit.intervals,
        "utility_empty": credit.empty,
        "utility_grand": credit.grand,
        "method": credit.method,
        "exact": credit.exact,
        "gap": credit.gap,
        "ledger": asdict(credit.ledger),
        "flags": Flag(credit.flags).wire_names,
    }


def failed_item(error: SpanError) -> dict[str, Any]:
    """What `ScarResult` says of a completion without an answer, but for its name."""
    failure = {
        "code": error.code,
        "pointer": pointer_to(error),
        "detail": error.detail,
        "retryable": ERROR_KINDS[ErrorCode(error.code)].retryable,
    }
    return {"status": "error", "error": failure}
