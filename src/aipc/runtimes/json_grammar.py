"""A JSON schema as an EBNF grammar for the compact documents that it allows, in xgrammar's dialect.

xgrammar's own grammar of a schema allows white space without an end, and OpenVINO GenAI has no switch for it.
A weak model likes blanks best for ever; here none may be written outside strings. Properties come in the
schema's order and then the others. What cannot be kept is refused: no keyword is passed over in silence.
"""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence
from typing import Any

from aipc.runtimes import number_grammar
from aipc.runtimes.ebnf import EMPTY, NOTHING, Rules, TooLarge, choice, literal, ranges, sequence
from aipc.runtimes.json_schema import (
    bounds,
    checked,
    compact,
    constraints,
    disjoint,
    is_a,
    merged,
    own_keywords,
    refusal,
    types_of,
)
from aipc.runtimes.pattern_grammar import FORMATS, json_string_pattern

# A schema may name the same part any number of times: what it comes to is bounded here.
MAX_PARTS = 5_000

# One rule a line. A character of a string counts once however it is escaped; half a surrogate pair is none.
_COMMON = r"""
any ::= any_object | any_array | string | number | boolean | "null"
any_object ::= "{" (key ":" any ("," key ":" any)*)? "}"
any_array ::= "[" (any ("," any)*)? "]"
string ::= "\"" char* "\""
char ::= [\u0020-\u0021\u0023-\u005b\u005d-\ud7ff\ue000-\U0010ffff] | "\\" escape
escape ::= ["\\/bfnrt] | "u" unit
unit ::= [0-9a-cA-CefEF] hex hex hex | [dD] ([0-7] hex hex | [89abAB] hex hex "\\u" [dD] [c-fC-F] hex hex)
hex ::= [0-9a-fA-F]
key ::= "\"" key_char* "\""
key_char ::= [\u0020-\u0021\u0023-\u005b\u005d-\ud7ff\ue000-\U0010ffff] | "\\" ["\\bfnrt]
integer ::= "-"? ("0" | [1-9] [0-9]*)
number ::= integer ("." [0-9]+)? ([eE] ("+" | "-")? [0-9]+)?
boolean ::= "true" | "false"
"""


def schema_grammar(schema: object) -> str:
    """The grammar, whose first symbol is `root`.

    raises   UsageError for a schema that is none, that nothing satisfies, that cannot be kept, or that is
             too large
    """
    try:
        compact(schema).encode("utf-8")
        return _Grammar(schema).text()
    except TooLarge as exc:
        raise refusal("#", "it is too large", hint="use a smaller schema, and lower limits") from exc
    except UnicodeEncodeError as exc:
        raise refusal("#", "it holds half of a surrogate pair") from exc
    except ValueError as exc:
        raise refusal("#", f"it holds a number that JSON has no place for: {exc}") from exc
    except RecursionError as exc:
        raise refusal("#", "it is nested too deeply") from exc


class _Grammar:
    """One schema on its way; each part that others may name becomes a rule."""

    def __init__(self, schema: object) -> None:
        self._root = schema
        self._rules = Rules()
        self._named: dict[str, str] = {}
        self._aliases: dict[str, set[str]] = {}
        self._parts = 0

    def text(self) -> str:
        root = self.value(self._root, "#", ("#",))
        try:
            graphlib.TopologicalSorter(self._aliases).prepare()
        except graphlib.CycleError as exc:
            raise refusal("#", f"{exc.args[1][0]} refers to itself") from exc
        if root == NOTHING:
            raise refusal("#", "nothing satisfies it")
        return f"root ::= {root}\n{self._rules.text}{_COMMON}"

    def value(self, schema: object, at: str, path: tuple[str, ...] = ()) -> str:
        """What a schema allows, or NOTHING.

        at     where the schema stands, for people
        path   references that led here with nothing written between them
        """
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise refusal("#", f"it comes to more than {MAX_PARTS} parts", hint="use a smaller schema")
        if isinstance(schema, bool):
            return "any" if schema else NOTHING
        schema = checked(schema, at)
        if "$ref" in schema or "allOf" in schema:
            return self._combined(schema, at, path)
        if "const" in schema or "enum" in schema:
            return _constants(schema, at)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._alternatives(schema, word, at, path)
        if not constraints(schema):
            return "any"
        return choice(self._typed(schema, kind, at) for kind in types_of(schema, at))

    def _combined(self, schema: Mapping[str, Any], at: str, path: tuple[str, ...]) -> str:
        """A schema with references or allOf: what all of its parts allow together."""
        own = {key: part for key, part in schema.items() if key not in {"$ref", "allOf"}}
        reference = schema.get("$ref")
        if reference is not None and not constraints(own) and "allOf" not in schema:
            return self._referred(reference, at, path)
        parts = list(schema.get("allOf", ()))
        if reference is not None:
            parts.insert(0, {"$ref": reference})
        both: dict[str, Any] = own
        for part in parts:
            both = merged(both, self._flat(part, at, path), at)
        return self.value(both, at, path)

    def _flat(self, part: object, at: str, path: tuple[str, ...]) -> Mapping[str, Any]:
        """A part of an allOf without references and allOf of its own."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise refusal("#", f"it comes to more than {MAX_PARTS} parts", hint="use a smaller schema")
        if part is True:
            return {}
        if part is False:
            return {"enum": []}
        part = checked(part, at)
        both: Mapping[str, Any] = {k: v for k, v in part.items() if k not in {"$ref", "allOf"}}
        if "$ref" in part:
            reference = part["$ref"]
            target = self._target(reference, at)
            if reference in path:
                raise refusal(at, f"{reference} refers to itself")
            both = merged(both, self._flat(target, reference, (*path, reference)), at)
        for inner in part.get("allOf", ()):
            both = merged(both, self._flat(inner, at, path), at)
        return both

    def _referred(self, reference: str, at: str, path: tuple[str, ...]) -> str:
        target = self._target(reference, at)
        self._aliases.setdefault(path[-1] if path else "", set()).add(reference)
        if reference not in self._named:
            self._named[reference] = name = f"ref{len(self._named)}"
            body = self.value(target, reference, (*path, reference))
            if body == NOTHING:
                raise refusal(reference, "nothing satisfies it")
            self._rules.add(body, name)
        return self._named[reference]

    def _target(self, reference: str, at: str) -> object:
        """What a local JSON pointer points at."""
        if not reference.startswith("#"):
            raise refusal(f"{at}/$ref", "references lead to places in the same schema, such as #/$defs/name")
        found: Any = self._root
        for step in reference[1:].split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and key in found:
                found = found[key]
            elif isinstance(found, Sequence) and not isinstance(found, str) and key.isdecimal():
                found = found[int(key)] if int(key) < len(found) else None
            else:
                found = None
        if found is None or (reference != "#" and not reference.startswith("#/")):
            raise refusal(f"{at}/$ref", f"there is no {reference[:80]!r} in the schema")
        return found

    def _alternatives(self, schema: Mapping[str, Any], word: str, at: str, path: tuple[str, ...]) -> str:
        options = list(schema[word])
        rest = {key: part for key, part in schema.items() if key != word}
        if not options:
            raise refusal(f"{at}/{word}", "it is empty")
        if word == "oneOf" and not disjoint([self._flat(option, at, path) for option in options]):
            found = "its alternatives are not told apart by type or by a constant"
            raise refusal(f"{at}/oneOf", found, hint="use anyOf")
        if constraints(rest):
            options = [{"allOf": [rest, option]} for option in options]
        return choice(
            self.value(option, f"{at}/{word}/{place}", path) for place, option in enumerate(options)
        )

    def _typed(self, schema: Mapping[str, Any], kind: str, at: str) -> str:
        if kind == "object":
            return self._object(schema, at)
        if kind == "array":
            return self._array(schema, at)
        if kind == "string":
            return self._string(schema, at) if own_keywords(schema, kind) else "string"
        if kind in {"number", "integer"}:
            return _number(schema, whole=kind == "integer")
        return "boolean" if kind == "boolean" else '"null"'

    def _object(self, schema: Mapping[str, Any], at: str) -> str:
        properties = schema.get("properties", {})
        required = list(schema.get("required", ()))
        other = schema.get("additionalProperties", True)
        # A name that is required and not described is one of the others, with a place of its own.
        named = {**properties, **{name: other for name in required if name not in properties}}
        fewest, most = bounds(schema, "minProperties", "maxProperties")
        members: list[tuple[str, bool]] = []
        for name, part in named.items():
            value = self.value(part, f"{at}/properties/{name}")
            if value != NOTHING:
                members.append((sequence([literal(f"{compact(name)}:"), value]), name in required))
            elif name in required:
                return NOTHING
        others = self._others(other, list(named), at)
        if not members and others:
            # Equal names are one property: they could be fewer than they look.
            if fewest > 1:
                raise refusal(f"{at}/minProperties", "more than 1 is possible only of properties with names")
            listed = self._separated(self._rules.add(others), fewest, most)
            return self._rules.add(sequence(['"{"', listed, '"}"'])) if listed != NOTHING else NOTHING
        certain = sum(needed for _, needed in members)
        possible = None if others else len(members)
        if fewest > certain or (most is not None and (possible is None or most < possible)):
            raise refusal(at, "minProperties and maxProperties are kept only where no property has a name")
        return self._rules.add(sequence(['"{"', self._members(members, others), '"}"']))

    def _others(self, schema: object, names: Sequence[str], at: str) -> str:
        """Any other property, or "" where there may be none."""
        value = self.value(schema, f"{at}/additionalProperties")
        if value == NOTHING:
            return ""
        key = self._other_key(names) if names else "key"
        return sequence([key, '":"', value])

    def _other_key(self, names: Sequence[str]) -> str:
        """A string that is none of the names: by their common beginnings, a rule for each."""
        words = [tuple(compact(character)[1:-1] for character in name) for name in names]
        # A longer escape is none that a key may have.
        possible = [word for word in words if all(len(unit) <= 2 for unit in word)]
        return sequence(['"\\""', self._none_of(possible), '"\\""'])

    def _none_of(self, words: Sequence[tuple[str, ...]]) -> str:
        """Any rest of a key but these; each is a sequence of `key_char`s."""
        following: dict[str, list[tuple[str, ...]]] = {}
        for word in words:
            if word:
                following.setdefault(word[0], []).append(word[1:])
        plain = [unit for unit in following if len(unit) == 1]
        escaped = [unit[1] for unit in following if len(unit) == 2]
        ways = [] if () in words else [EMPTY]
        ways += [sequence([_key_char_but(plain, escaped), "key_char*"])]
        ways += [sequence([literal(unit), self._none_of(rests)]) for unit, rests in following.items()]
        return self._rules.add(choice(ways))

    def _members(self, members: Sequence[tuple[str, bool]], others: str) -> str:
        """Named properties in their order, then others; a comma between any two."""
        more = self._rules.add(others) if others else ""
        first = f'({more} ("," {more})*)?' if others else EMPTY
        later = f'("," {more})*' if others else EMPTY
        for member, needed in reversed(members):
            name = self._rules.add(member)
            begun = sequence([name, later])
            started = sequence(['","', name, later])
            first = self._rules.add(choice([begun] if needed else [begun, first]))
            later = self._rules.add(choice([started] if needed else [started, later]))
        return first

    def _array(self, schema: Mapping[str, Any], at: str) -> str:
        prefix = list(schema.get("prefixItems", ()))
        fewest, most = bounds(schema, "minItems", "maxItems")
        item = self.value(schema.get("items", True), f"{at}/items")
        if not prefix:
            listed = self._separated(self._rules.add(item) if item != NOTHING else NOTHING, fewest, most)
            return self._rules.add(sequence(['"["', listed, '"]"'])) if listed != NOTHING else NOTHING
        first = [self.value(part, f"{at}/prefixItems/{place}") for place, part in enumerate(prefix)]
        if NOTHING in first:
            first = first[: first.index(NOTHING)]
            most = min(len(first), len(first) if most is None else most)
        if most is not None:
            first = first[:most]
        beyond = None if most is None else most - len(first)
        rest = EMPTY
        if item != NOTHING and len(first) >= len(prefix[:most]):
            rest = self._rules.repeated(
                sequence(['","', self._rules.add(item)]), max(0, fewest - len(first)), beyond
            )
        elif fewest > len(first):
            return NOTHING
        for place in reversed(range(len(first))):
            written = sequence([first[place], rest] if place == 0 else ['","', first[place], rest])
            rest = self._rules.add(choice([written, EMPTY] if place >= fewest else [written]))
        return self._rules.add(sequence(['"["', rest, '"]"']))

    def _string(self, schema: Mapping[str, Any], at: str) -> str:
        fewest, most = bounds(schema, "minLength", "maxLength")
        patterns = [word for word in ("pattern", "format") if word in schema]
        if not patterns:
            body = self._rules.repeated("char", fewest, most)
            return sequence(['"\\""', body, '"\\""']) if body != NOTHING else NOTHING
        if len(patterns) > 1 or fewest or most is not None:
            raise refusal(at, "a pattern, a format and a length are not possible together")
        word = patterns[0]
        if word == "pattern":
            return json_string_pattern(self._rules, schema["pattern"], f"{at}/pattern", anchored=False)
        if schema["format"] not in FORMATS:
            raise refusal(f"{at}/format", f"there is no {schema['format']!r}; possible: {', '.join(FORMATS)}")
        return json_string_pattern(self._rules, FORMATS[schema["format"]], at, anchored=True)

    def _separated(self, item: str, fewest: int, most: int | None) -> str:
        """Items with commas between them, or NOTHING."""
        if item == NOTHING:
            return EMPTY if fewest == 0 else NOTHING
        if most == 0:
            return EMPTY if fewest == 0 else NOTHING
        rest = self._rules.repeated(
            sequence(['","', item]), max(0, fewest - 1), None if most is None else most - 1
        )
        if rest == NOTHING:
            return NOTHING
        some = sequence([item, rest])
        return choice([some, EMPTY]) if fewest == 0 else some


def _number(schema: Mapping[str, Any], *, whole: bool) -> str:
    found = {word: schema[word] for word in own_keywords(schema, "number")}
    if not found:
        return "integer" if whole else "number"
    return number_grammar.bounded(found, whole=whole)


def _key_char_but(plain: Sequence[str], escaped: Sequence[str]) -> str:
    """A `key_char` that is none of these."""
    taken = sorted({0x22, 0x5C, *map(ord, plain)})
    starts, ends = [0x20, *(code + 1 for code in taken)], [*(code - 1 for code in taken), 0x10FFFF]
    gaps = [
        gap
        for start, end in zip(starts, ends, strict=True)
        for gap in ((start, min(end, 0xD7FF)), (max(start, 0xE000), end))
        if gap[0] <= gap[1]
    ]
    letters = [letter for letter in '"\\bfnrt' if letter not in escaped]
    return choice([ranges(gaps), sequence([literal("\\"), choice(map(literal, letters))])])


def _constants(schema: Mapping[str, Any], at: str) -> str:
    """What `enum` and `const` allow of each other and of a type, which may stand beside them."""
    others = [key for key in constraints(schema) if key not in {"type", "enum", "const"}]
    if others:
        raise refusal(at, f"enum or const beside {others[0]}", hint="leave one of them out")
    values = list(schema["enum"]) if "enum" in schema else [schema["const"]]
    if "const" in schema:
        values = [value for value in values if compact(value) == compact(schema["const"])]
    if "type" in schema:
        kinds = types_of(schema, at)
        values = [value for value in values if is_a(value, kinds)]
    return choice(dict.fromkeys(literal(compact(value)) for value in values))
