"""Answers of the arithmetic as response bodies. The columnar form is written from arrays, without an object per set.

One document for both formats: JSON writes its arrays as lists, with null for NaN, and the binary format as buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, TypeAlias, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from creditd.credit.candidate_sets import SetError
from creditd.credit.flags import Flag
from creditd.credit.group_advantages import GroupRule
from creditd.credit.set_advantages import NormalizationType
from creditd.credit.set_credit import SetCredits
from creditd.engines.policy_protocol import SensitivityMeasurer
from creditd.engines.protocol import EngineUsage
from creditd.engines.registry import Registry
from creditd.scoring.model_questions import Estimates
from creditd.server.settings import Settings
from creditd.wire.choices import CREDIT_NAMES, UTILITY_NAMES
from creditd.wire.errors import ERROR_KINDS, ErrorCode
from creditd.wire.group_rows import GroupRows
from creditd.wire.info import Info, ModelInfo, Models, PolicyWeights, ServedModel
from creditd.wire.limits import RequestLimits, published
from creditd.wire.oar_choices import PARSER_NAMES, PROBE_NAMES, SENSITIVITY_NAMES
from creditd.wire.scar_choices import SEGMENTATION_NAMES, SPAN_CREDIT_NAMES
from creditd.wire.set_batches import SetBatch
from creditd.wire.solve import SolveRequest
from creditd.wire.solve_items import SolvedItems, solve_item
from creditd.wire.solve_items import pointer_to as solve_pointer
from creditd.wire.v1 import FlagName, Service
from creditd.wire.versions import METHODS_VERSION, package_version

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Encode: TypeAlias = Callable[[Mapping[str, Any]], bytes]
"""Writes a document with arrays in it: `json_body`, or `creditd.wire.codec.encode`."""
FLAG_NAMES: tuple[FlagName, ...] = Flag(sum(Flag)).wire_names  # type: ignore[assignment]


def service() -> Service:
    """Who answers."""
    return Service(version=package_version(), methods=METHODS_VERSION)


_SERVICE = service().model_dump()
NO_MODEL = EngineUsage()


def usage(queue_s: float, engine: EngineUsage = NO_MODEL) -> dict[str, float]:
    """Cost of an answer: what a model did for it, and how long it waited."""
    return {
        "evaluations": engine.evaluations,
        "from_cache": engine.from_cache,
        "tokens_computed": engine.tokens_computed,
        "tokens_naive": engine.tokens_naive,
        "tokens_spliced": engine.tokens_spliced,
        "engine_s": round(engine.engine_s, 6),
        "queue_s": round(queue_s + engine.queue_s, 6),
    }


def envelope(request_id: str, queue_s: float, engine: EngineUsage = NO_MODEL) -> dict[str, Any]:
    """What every answer begins with."""
    return {"request_id": request_id, "service": _SERVICE, "usage": usage(queue_s, engine)}


def json_body(document: Mapping[str, Any]) -> bytes:
    """A document as JSON: arrays as lists, NaN as null."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def shapley_document(
    answer: SetCredits, batch: SetBatch, head: Mapping[str, Any], estimates: Estimates | None = None
) -> dict[str, Any]:
    """The answer to `/v1/credit/shapley`, in the form of the request.

    Args:
        answer: What the arithmetic returned.
        batch: The sets that were asked about.
        head: The envelope.
        estimates: How credits under a utility that a model evaluated were found; None for a formula.

    Returns:
        A document that fits `ShapleyResponse` once it is written; arrays stay arrays.

    Cost:
        Columnar: one pass over arrays. Nested: one object per set.
    """
    document = dict(head)
    if batch.nested:
        document["sets"] = _nested(answer, batch, estimates)
    else:
        document["columns"] = _columns(answer, batch, estimates)
        document["errors"] = [
            {"row": error.row, **_item_error(error.code, batch.pointer(error), error.detail)} for error in answer.errors
        ]
    return document


def solve_document(answer: SolvedItems, request: SolveRequest, head: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to `/v1/credit/shapley/solve`, which fits `SolveResponse` once it is written."""
    errors = {error.row: error for error in answer.errors}
    items: list[dict[str, Any]] = []
    for row, (asked, item) in enumerate(zip(request.items, answer.items, strict=True)):
        if row in errors or item is None:
            error = errors[row]
            failure = _item_error(error.code, solve_pointer(error), error.detail)
            items.append({"id": asked.id, "status": "error", "error": failure})
            continue
        items.append({"id": asked.id, **solve_item(item, answer, row)})
    return {**head, "done": answer.done, "items": items}


def group_document(answer: GroupRows, head: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to `/v1/credit/group`, which fits `GroupResponse` once it is written."""
    names = {mask: Flag(mask).wire_names for mask in set(answer.flags.tolist())}
    return {
        **head,
        "advantages": _rows(answer.advantages, answer.row_splits),
        "status": (~answer.ok).astype(np.int64),
        "flags": [names[mask] for mask in answer.flags.tolist()],
        "errors": [
            {"row": error.row, **_item_error(error.code, error.pointer, error.detail)} for error in answer.errors
        ],
    }


def info_body(settings: Settings, limits: RequestLimits, engines: Registry) -> bytes:
    """The answer to `/v1/info` as JSON that fits `Info`; models evaluate a utility where there are any."""
    document = Info(
        service=service(),
        utilities=[*UTILITY_NAMES, *["model"] * engines.has_scorers],
        credits=list(CREDIT_NAMES),
        advantages=list(get_args(NormalizationType)),
        group_advantages=list(get_args(GroupRule)),
        span_credits=list(SPAN_CREDIT_NAMES),
        segmentations=list(SEGMENTATION_NAMES),
        sensitivities=list(SENSITIVITY_NAMES),
        probes=list(PROBE_NAMES),
        parsers=list(PARSER_NAMES),
        limits=published(
            limits,
            body_bytes=settings.max_body_bytes,
            binary_body_bytes=settings.max_binary_body_bytes,
            held_bytes=settings.max_held_bytes,
            body_timeout_s=settings.body_timeout_s,
            requests_in_flight=settings.max_requests_in_flight,
            weight_bytes=settings.max_weight_bytes,
            shard_bytes=settings.max_shard_bytes,
        ),
        models=list(engines.ids),
        weights=[_weights_of(name, policy) for name, policy in sorted(engines.policies.items())],
    )
    return document.model_dump_json().encode()


def _weights_of(name: str, policy: SensitivityMeasurer) -> PolicyWeights:
    """Which weights a policy has."""
    state = policy.weight_state()
    return PolicyWeights(
        id=name,
        weight_version=state.current,
        announced_versions=list(state.announced),
        swaps=state.n_swaps,
        last_swap_s=None if state.last_swap_s is None else round(state.last_swap_s, 6),
    )


def models_document(engines: Registry) -> Models:
    """The answer to `/v1/models`."""
    weights = {name: _weights_of(name, policy) for name, policy in engines.policies.items()}
    found = list(engines.statuses())
    return Models(
        data=[ServedModel(id=one.spec.id, max_model_len=one.max_tokens) for one in found if one.spec.kind == "reward"],
        models=[
            ModelInfo(
                id=one.spec.id,
                kind=one.spec.kind,
                backend=one.backend,
                revision=one.spec.revision,
                weight_version=weights[one.spec.id].weight_version if one.spec.id in weights else None,
                weights=weights.get(one.spec.id),
                dtype=None if one.backend == "remote" else one.spec.dtype,
                device=None if one.backend == "remote" else one.spec.device,
                attention=one.attention,
                reads_tries=one.reads_tries,
                max_tokens=one.max_tokens,
                weight_bytes=one.n_bytes,
                working_bytes=one.working_bytes,
                queued_tokens=one.queued_tokens,
                max_queued_tokens=one.spec.max_queued_tokens,
                batches=one.n_batches,
                silent_s=round(one.silent_s, 3),
                alive=one.alive,
                fingerprint=one.fingerprint,
                cached=one.is_remembered,
            )
            for one in found
        ],
    )


def flag_counts(flags: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, int]:
    """How many items carry each flag, without the flags that none carries."""
    if not flags.any():
        return {}
    counts = {name: int(np.count_nonzero(flags & (1 << bit))) for bit, name in enumerate(FLAG_NAMES)}
    return {name: count for name, count in counts.items() if count}


def _item_error(code: str, pointer: str, detail: str) -> dict[str, Any]:
    return {"code": code, "pointer": pointer, "detail": detail, "retryable": ERROR_KINDS[ErrorCode(code)].retryable}


def _rows(values: Floats, splits: Integers) -> Floats | list[Floats]:
    """Rows of a ragged array: one array of two axes where they are equally long."""
    lengths = np.diff(splits)
    if len(lengths) and (lengths == lengths[0]).all():
        return values.reshape(len(lengths), int(lengths[0]))
    return [values[start:stop] for start, stop in pairwise(splits.tolist())]


def _columns(answer: SetCredits, batch: SetBatch, estimates: Estimates | None) -> dict[str, Any]:
    splits = answer.row_splits
    columns: dict[str, Any] = {
        "ids": batch.ids,
        "status": (~answer.ok).astype(np.int64),
        "credits": {"values": answer.credits, "row_splits": splits},
        "advantages": {"values": answer.advantages, "row_splits": splits},
        "set_advantages": answer.set_advantages,
        "set_reward_advantages": answer.set_reward_advantages,
        "token_advantages": None,
        "utility_empty": answer.utility_empty,
        "utility_grand": answer.utility_grand,
        "credit_sum": answer.credit_sums,
        "gap": answer.gaps,
        "flags": answer.flags,
        "flag_names": FLAG_NAMES,
        "exact": True,
        "method": answer.method,
    }
    if estimates is not None:
        methods = {method for method, ok in zip(estimates.methods, answer.ok.tolist(), strict=True) if ok}
        columns["exact"] = bool(estimates.exact[answer.ok].all())
        columns["method"] = methods.pop() if len(methods) == 1 else "several"
        if not np.isnan(estimates.standard_errors).all():
            columns["standard_errors"] = {"values": estimates.standard_errors, "row_splits": splits}
    if answer.token_splits is not None:
        columns["token_advantages"] = {"values": answer.token_advantages, "row_splits": answer.token_splits}
    return columns


def _nested(answer: SetCredits, batch: SetBatch, estimates: Estimates | None) -> list[dict[str, Any]]:
    errors: dict[int, SetError] = {error.row: error for error in answer.errors}
    ids = [None] * len(answer.flags) if batch.ids is None else batch.ids
    tokens, splits, whole = answer.token_advantages, answer.token_splits, answer.set_reward_advantages
    results: list[dict[str, Any]] = []
    for row in range(len(answer.flags)):
        error = errors.get(row)
        if error is not None:
            failure = _item_error(error.code, batch.pointer(error), error.detail)
            results.append({"id": ids[row], "status": "error", "error": failure})
            continue
        part = slice(answer.row_splits[row], answer.row_splits[row + 1])
        results.append(
            {
                "id": ids[row],
                "status": "ok",
                "credits": answer.credits[part],
                "advantages": answer.advantages[part],
                "set_advantage": answer.set_advantages[row],
                "set_reward_advantage": None if whole is None else whole[row],
                "token_advantages": None if tokens is None or splits is None else tokens[splits[row] : splits[row + 1]],
                "utility_empty": answer.utility_empty[row],
                "utility_grand": answer.utility_grand[row],
                "credit_sum": answer.credit_sums[row],
                "gap": answer.gaps[row],
                "exact": True,
                "method": answer.method,
                "standard_errors": None,
                "flags": Flag(int(answer.flags[row])).wire_names,
            }
        )
        if estimates is not None:
            results[-1] |= _estimate(estimates, row, part)
    return results


def _estimate(estimates: Estimates, row: int, part: slice) -> dict[str, Any]:
    """How the credits of one set were found."""
    exact = bool(estimates.exact[row])
    found: dict[str, Any] = {"exact": exact, "method": estimates.methods[row]}
    if not exact:
        intervals = estimates.intervals[part]
        found["standard_errors"] = estimates.standard_errors[part]
        found["intervals"] = (
            None if np.isnan(intervals).all() else [None if np.isnan(pair).any() else pair for pair in intervals]
        )
    return found
