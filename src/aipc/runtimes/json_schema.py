"""JSON schemas for a grammar: which keywords can be kept, two schemas as one, and whether two are apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aipc.errors import UsageError

TYPES = ("object", "array", "string", "number", "boolean", "null")
_ANNOTATIONS = frozenset({
    "$anchor", "$comment", "$defs", "$schema", "contentEncoding", "contentMediaType", "contentSchema",
    "default", "definitions", "deprecated", "description", "discriminator", "example", "examples", "nullable",
    "readOnly", "strict", "title", "writeOnly",
})  # fmt: skip
KEYWORDS = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
_ANY_TYPE = ("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref")
_REFUSED = frozenset({
    "$dynamicRef", "$recursiveRef", "additionalItems", "contains", "dependencies", "dependentRequired",
    "dependentSchemas", "else", "if", "maxContains", "minContains", "multipleOf", "not", "patternProperties",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
})  # fmt: skip
_KEPT = frozenset(_ANY_TYPE).union(*KEYWORDS.values())


def is_a(value: object, kinds: Iterable[str]) -> bool:
    """Whether a value has one of JSON schema's types."""
    words = {
        bool: ("boolean",),
        str: ("string",),
        type(None): ("null",),
        int: ("integer", "number"),
        float: ("integer", "number") if isinstance(value, float) and value.is_integer() else ("number",),
        list: ("array",),
    }
    return any(kind in words.get(type(value), ("object",)) for kind in kinds)


def types_of(schema: Mapping[str, Any], at: str) -> list[str]:
    """The types that a schema names, or all."""
    if "type" not in schema:
        return list(TYPES)
    named = schema["type"]
    kinds = [named] if isinstance(named, str) else list(named)
    for kind in kinds:
        if kind not in {*TYPES, "integer"}:
            raise refusal(f"{at}/type", f"there is no type {str(kind)[:40]!r}")
    return [kind for kind in dict.fromkeys(kinds) if kind != "integer" or "number" not in kinds]


def own_keywords(schema: Mapping[str, Any], kind: str) -> list[str]:
    """Those that say something of one type."""
    return [word for word in KEYWORDS[kind] if word in schema]


def constraints(schema: Mapping[str, Any]) -> list[str]:
    """The keywords that allow less than everything; the others are for people."""
    return [word for word in schema if word in _KEPT or word in _REFUSED]


def checked(schema: object, at: str) -> Mapping[str, Any]:
    """A schema whose keywords are all known and hold what they should; what they hold is not looked into."""
    if not isinstance(schema, Mapping):
        raise refusal(at, "a schema is an object, true or false")
    for word, value in schema.items():
        if word in _REFUSED:
            raise refusal(at, f"{word!r} is not one of those that can be kept", hint=_KEPT_HINT)
        for words, fits, what in _HELD:
            if word in words and not fits(value):
                raise refusal(f"{at}/{word}", f"it is {what}")
    return schema


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _is_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _is_count(value: object) -> bool:
    return _is_bound(value) and isinstance(value, int | float) and value >= 0 and value == int(value)


def _is_bound(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e30


_HELD: tuple[tuple[tuple[str, ...], Callable[[object], bool], str], ...] = (
    (("enum", "anyOf", "oneOf", "allOf", "prefixItems"), _is_list, "a list"),
    (("required",), _is_names, "a list of names"),
    (("type",), lambda value: isinstance(value, str) or _is_names(value), "a type or a list of types"),
    (("properties",), lambda value: isinstance(value, Mapping), "an object"),
    (("pattern", "format", "$ref"), lambda value: isinstance(value, str), "text"),
    (KEYWORDS["number"], _is_bound, "a number of at most 1e30"),
    (
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        _is_count,
        "a whole number from 0",
    ),
)
_KEPT_HINT = "possible are " + ", ".join(sorted(_KEPT))


def bounds(schema: Mapping[str, Any], low: str, high: str) -> tuple[int, int | None]:
    """The fewest and the most of something, by the keywords for them."""
    return int(schema.get(low, 0)), int(schema[high]) if high in schema else None


_JOINED: Mapping[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
    "required": lambda one, other: [*one, *(name for name in other if name not in one)],
    "enum": lambda one, other: [value for value in one if compact(value) in map(compact, other)],
}


def merged(one: Mapping[str, Any], other: Mapping[str, Any], at: str) -> dict[str, Any]:
    """The schema of what both allow."""
    if constraints(one) and constraints(other):
        _check_closed(one, other, at)
        _check_closed(other, one, at)
    joined = dict(one)
    for word, part in other.items():
        if word not in _KEPT and word not in _REFUSED:
            joined.setdefault(word, part)
        elif word not in joined or compact(joined[word]) == compact(part):
            joined[word] = part
        elif word == "properties":
            both = dict(joined[word])
            for name, schema in part.items():
                both[name] = {"allOf": [both[name], schema]} if name in both else schema
            joined[word] = both
        elif word == "type":
            joined[word] = _both_types(types_of(one, at), types_of(other, at))
        elif word in _JOINED:
            joined[word] = _JOINED[word](joined[word], part)
        else:
            raise refusal(at, f"{word} stands in two parts of an allOf", hint="write them as one")
    return joined


def _both_types(one: Sequence[str], other: Sequence[str]) -> list[str]:
    wide = [kind for kind in one if kind in other]
    if "integer" in {*one, *other} and "number" in {*one, *other} and "integer" not in wide:
        wide.append("integer")
    return wide


def _check_closed(one: Mapping[str, Any], other: Mapping[str, Any], at: str) -> None:
    """Refuse to name properties or items of what says something of all others: it would no longer say it."""
    if "items" in one and "prefixItems" in other and "prefixItems" not in one:
        raise refusal(at, "items and prefixItems stand in different parts of an allOf")
    if one.get("additionalProperties", True) is True:
        return
    new = set(other.get("properties", ())) - set(one.get("properties", ()))
    if new:
        raise refusal(at, "allOf adds properties to an object with additionalProperties")


def disjoint(options: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no document satisfies two of the schemas: they differ in type, or in a constant."""
    return all(_apart(one, other) for place, one in enumerate(options) for other in options[place + 1 :])


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    first, second = _fixed(one), _fixed(other)
    if first is not None and second is not None:
        return not first & second
    for constants, schema in ((first, other), (second, one)):
        if constants is not None and "type" in schema:
            kinds = types_of(schema, "")
            return not any(is_a(json.loads(constant), kinds) for constant in constants)
    if "type" in one and "type" in other and not _both_types(types_of(one, ""), types_of(other, "")):
        return True
    shared = set(one.get("required", ())) & set(other.get("required", ()))
    for name in shared if one.get("type") == other.get("type") == "object" else ():
        parts = [schema.get("properties", {}).get(name) for schema in (one, other)]
        values = [_fixed(part) if isinstance(part, Mapping) else None for part in parts]
        if values[0] is not None and values[1] is not None and not values[0] & values[1]:
            return True
    return False


def _fixed(schema: Mapping[str, Any]) -> set[str] | None:
    """The constants that a schema lists, or None."""
    if "const" not in schema and not isinstance(schema.get("enum"), list):
        return None
    values = [schema["const"]] if "const" in schema else schema["enum"]
    # 1 and 1.0 are the same number.
    whole = (int(value) if isinstance(value, float) and value.is_integer() else value for value in values)
    return {compact(value) for value in whole}


def compact(value: object) -> str:
    """JSON without blanks.

    raises   ValueError for a number that JSON has no place for
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def refusal(at: str, what: str, hint: str = "use a simpler schema") -> UsageError:
    """Of the part of a schema that stands at a place."""
    place = at if len(at) <= 200 else f"{at[:200]}..."
    return UsageError(f"this response_format cannot be followed: JSON schema, {place}: {what}", hint=hint)
