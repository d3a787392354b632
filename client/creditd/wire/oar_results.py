"""What answers say of completions whose advantages are reshaped, for the route and for local mode."""

from __future__ import annotations

from typing import Any

from creditd.credit.flags import Flag
from creditd.credit.sensitivity_items import SensitivityCredit, SensitivityError
from creditd.wire.errors import ERROR_KINDS, ErrorCode
from creditd.wire.oar_items import pointer_to


def reshaped_item(credit: SensitivityCredit) -> dict[str, Any]:
    """What `OarResult` says of a completion with an answer, but for its name; arrays stay arrays."""
    return {
        "status": "ok",
        "token_advantages": credit.token_advantages,
        "weights": credit.weights,
        "sensitivities": credit.sensitivities,
        "advantage": credit.advantage,
        "n_reweighted": credit.n_reweighted,
        "weight_sum": credit.weight_sum,
        "effective_share": credit.effective_share,
        "top_share": credit.top_share,
        "spread": credit.spread,
        "reasoning": credit.reasoning,
        "answer": credit.answer,
        "flags": Flag(credit.flags).wire_names,
    }


def failed_item(error: SensitivityError) -> dict[str, Any]:
    """What `OarResult` says of a completion without an answer, but for its name."""
    failure = {
        "code": error.code,
        "pointer": pointer_to(error),
        "detail": error.detail,
        "retryable": ERROR_KINDS[ErrorCode(error.code)].retryable,
    }
    return {"status": "error", "error": failure}
