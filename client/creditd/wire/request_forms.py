"""The forms of requests whose fields depend on each other: what each utility needs, and what excludes what."""

from __future__ import annotations

from collections.abc import Collection

from creditd.wire.forms import ALL_IN_GROUPS_OR_NONE, NULL, Form, Schema
from creditd.wire.utilities import ALL_BUT_TABLES, OF_EMBEDDINGS, OF_FEATURES, OF_REWARDS, OF_SIMILARITIES

_TEXT: Schema = {"text": {"type": "string"}}


def _set_by_set(
    title: str,
    utilities: Collection[str],
    of_candidates: Schema,
    *needed: str,
    of_set: str | None = None,
    models: Collection[str] = (),
) -> Form:
    """The form of requests set by set under some utilities, which need fields of each candidate or a field of each set.

    Rewards have one kind throughout a request, tables a use under one utility alone, and prompts where a reward model
    is asked. `models` are the fields of the request that name one.
    """
    candidate = {"properties": of_candidates, "required": list(needed)}
    fields: Schema = {"candidates": {"items": candidate}}
    if of_set != "utilities":
        fields["utilities"] = NULL
    if of_set != "prompt":
        fields["prompt"] = NULL
    of_sets: Schema = {"properties": fields}
    if of_set is not None:
        fields[of_set] = {"not": NULL} if of_set == "prompt" else {"type": "array"}
        of_sets["required"] = [of_set]
    return Form(
        f"set by set: {title}",
        present=("sets", *models),
        absent=("columns", *({"rewards", "features"} - set(models))),
        choices={"utility": utilities},
        of={"sets": {"items": of_sets, **ALL_IN_GROUPS_OR_NONE}},
    )


COLUMN_FORMS = (
    Form("with rewards", present=("rewards",), absent=("named_rewards", "row_splits")),
    Form("with named rewards", present=("named_rewards",), absent=("rewards", "row_splits")),
    Form("without rewards", present=("row_splits",), absent=("rewards", "named_rewards")),
    Form("of tables alone", present=("utilities",), absent=("rewards", "named_rewards", "row_splits")),
)


REQUEST_FORMS = (
    _set_by_set("a reward per candidate", OF_REWARDS, {"named_rewards": NULL}, "reward"),
    _set_by_set("named rewards", ALL_BUT_TABLES, {"reward": NULL}, "named_rewards"),
    *(
        _set_by_set(f"{need} per candidate", types, {"named_rewards": NULL}, need)
        for need, types in OF_FEATURES.items()
    ),
    _set_by_set("similarities", OF_SIMILARITIES, {"named_rewards": NULL}, of_set="similarities"),
    _set_by_set("terms", ("sum",), {"named_rewards": NULL}),
    _set_by_set("tables", ("table",), {}, of_set="utilities"),
    _set_by_set(
        "rewards from a model",
        OF_REWARDS,
        {**_TEXT, "reward": NULL, "named_rewards": NULL},
        "text",
        of_set="prompt",
        models=("rewards",),
    ),
    _set_by_set(
        "a utility that a model evaluates",
        ("model",),
        {**_TEXT, "reward": NULL, "named_rewards": NULL},
        "text",
        of_set="prompt",
    ),
    _set_by_set(
        "features from a model",
        OF_EMBEDDINGS,
        {**_TEXT, "named_rewards": NULL, "scores": NULL, "topics": NULL},
        "text",
        "reward",
        models=("features",),
    ),
    Form("column by column", present=("columns",), absent=("sets",)),
)


GROUP_ADVANTAGE_FORMS = (
    Form(
        "of one group",
        absent=("k", "threshold", "whitening"),
        of={"type": {"enum": ["grpo", "dr_grpo", "rloo", "leave_one_out"], "default": "grpo"}},
    ),
    Form(
        "whitened over the request",
        present=("type",),
        absent=("k", "threshold"),
        of={"type": {"enum": ["reinforce++_baseline", "gdpo"]}},
    ),
    Form("pass@k", present=("type", "k"), absent=("whitening",), of={"type": {"enum": ["pass_at_k"]}}),
    Form("max@k", present=("type", "k"), absent=("threshold", "whitening"), of={"type": {"enum": ["max_at_k"]}}),
)


GROUP_REQUEST_FORMS = (
    Form("one reward", absent=("weights",), kinds={"rewards": "array"}),
    Form("named rewards", kinds={"rewards": "object"}),
)


_NAMED_ITEM: Schema = {
    "properties": {"prompt_id": {"type": ["string", "integer"]}},
    "required": ["player_ids", "prompt_id"],
    "anyOf": [
        {"properties": {"n_players": {"const": 1}, "player_ids": {"type": "array", "minItems": 1, "maxItems": 1}}},
        {"properties": {"n_players": {"minimum": 2}, "player_ids": {"type": "array", "minItems": 2}}},
    ],
}
"""A name for each player: of their number no more can be said here."""

SOLVE_FORMS = (
    Form(
        "by itself",
        absent=("utility_id",),
        of={"items": {"items": {"properties": {"prompt_id": NULL}}, **ALL_IN_GROUPS_OR_NONE}},
    ),
    Form(
        "with a utility that is remembered",
        present=("utility_id",),
        of={"items": {"items": _NAMED_ITEM, **ALL_IN_GROUPS_OR_NONE}},
    ),
)
