"""What the published schema says of fields that depend on each other: an object has one of several forms.

Forms are for readers of the schema, people and generators of requests. What checks an object are the validators of its
model and the arithmetic behind them; tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

NULL: Schema = {"type": "null"}
ALL_IN_GROUPS_OR_NONE: Schema = {
    "anyOf": [
        {"items": {"properties": {"group": {"type": ["string", "integer"]}}, "required": ["group"]}},
        {"items": {"properties": {"group": NULL}}},
    ]
}
"""Of a list whose entries have a group: keywords beside its own."""


@dataclass(frozen=True)
class Form:
    """One form of an object.

    Attributes:
        title: What it is called.
        present: Fields that have to be there, and not null.
        absent: Fields that have no place beside them: absent, or null.
        kinds: Fields that have to be there as an array, or as an object, where they may be either.
        choices: Fields of which some types may be chosen; they have to be there unless the model's default is one.
        of: What else is true of some fields, as keywords of JSON Schema.
    """

    title: str
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, Collection[str]] = field(default_factory=dict)
    of: Mapping[str, Schema] = field(default_factory=dict)

    def published(self, whole: Schema) -> Schema:
        """The schema of the objects of this form.

        Args:
            whole: The schema of objects of any form.
        """
        fields: dict[str, Schema] = dict(whole["properties"])
        required = [*whole.get("required", ()), *self.present, *self.kinds]
        for name in self.present:
            fields[name] = _among(fields[name], {"null"})
        for name, kind in self.kinds.items():
            fields[name] = _among(fields[name], {"array", "object", "null"} - {kind})
        for name in self.absent:
            fields[name] = {**_kept(fields[name], {"title", "description"}), **NULL}
        for name, types in self.choices.items():
            fields[name] = _chosen(fields[name], types)
            required += [name] * ("default" not in fields[name])
        for name, keywords in self.of.items():
            fields[name] = _refined(_without_default(fields[name]), keywords)
        found: Schema = {"type": "object", "properties": fields, **_kept(whole, {"additionalProperties"})}
        return {"title": self.title, **found, "required": list(dict.fromkeys(required))}


def published_in(forms: Sequence[Form], whole: Schema) -> None:
    """Replace the schema of an object by those of its forms.

    Args:
        forms: All of them.
        whole: The schema of objects of any form, changed in place.
    """
    found = [form.published(whole) for form in forms]
    for keyword in ("properties", "required", "additionalProperties"):
        whole.pop(keyword, None)
    whole["anyOf"] = found


def _kept(schema: Schema, keywords: Collection[str]) -> Schema:
    return {keyword: value for keyword, value in schema.items() if keyword in keywords}


def _without_default(schema: Schema) -> Schema:
    return _kept(schema, schema.keys() - {"default"})


def _among(schema: Schema, unwanted: Collection[str]) -> Schema:
    """The schema of a field of which some kinds of values are taken away."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind.get("type") not in unwanted]
    rest = _kept(schema, schema.keys() - {"anyOf", "default"})
    return {**rest, **kinds[0]} if len(kinds) == 1 else {**rest, "anyOf": kinds} if kinds else rest


def _chosen(schema: Schema, types: Collection[str]) -> Schema:
    """The schema of a choice of which some types are left."""
    mapping = {name: model for name, model in schema["discriminator"]["mapping"].items() if name in types}
    choice = {**schema, "discriminator": {**schema["discriminator"], "mapping": mapping}}
    choice["oneOf"] = [model for model in schema["oneOf"] if model["$ref"] in mapping.values()]
    return choice if schema.get("default", {}).get("type") in types else _without_default(choice)


def _refined(schema: Schema, keywords: Schema) -> Schema:
    """The schema with further keywords, at any depth."""
    refined = dict(schema)
    for keyword, value in keywords.items():
        both = isinstance(value, dict) and isinstance(schema.get(keyword), dict)
        refined[keyword] = _refined(schema[keyword], value) if both else value
    return refined
