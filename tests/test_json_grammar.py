"""The grammars for OpenVINO as xgrammar itself follows them: valid documents alone, and all compact ones."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest

from aipc import demo
from aipc.conversion.convert import convert_checkpoint
from aipc.errors import UsageError
from aipc.runtimes.ebnf import MAX_CHARACTER_STEPS, MAX_REPEATS
from aipc.runtimes.json_grammar import MAX_PARTS, schema_grammar
from aipc.runtimes.pattern_grammar import FORMATS, MAX_PATTERN_SIZE, pattern_grammar
from grammar_engine import GrammarEngine

WORDS = ["a", "ab", "b", 'quo"te', "ünï", "new\nline", "\\", "😀", "", "a/b", "\u007f"]
Pair = tuple[Any, Any]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrammarEngine]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    convert_checkpoint(demo.path(), folder, name="demo", to=("openvino",))
    yield GrammarEngine(folder)


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class Schemas:
    """Schemas at random, each with a document that it allows."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def pair(self, depth: int) -> Pair:
        kinds: list[Callable[[int], Pair]] = [
            self.text, self.whole, self.number, self.constant, self.found, self.plain, self.formatted,
        ]  # fmt: skip
        if depth:
            kinds += [self.object, self.object, self.array, self.tuple, self.either, self.both, self.mapping]
        return self.random.choice(kinds)(depth)

    def plain(self, depth: int) -> Pair:
        return self.random.choice(
            [
                (True, {"a": [1, None]}),
                ({}, [[], {}]),
                ({"type": "boolean"}, True),
                ({"type": ["null", "integer"]}, None),
                ({"type": "object"}, {"ü": 1.5e-7, "b": ""}),
                ({"type": "array"}, [False, -0.5]),
            ]
        )

    def text(self, depth: int) -> Pair:
        value = self.random.choice(WORDS)
        schema: dict[str, Any] = {"type": "string"}
        if self.random.random() < 0.7:
            schema["minLength"] = self.random.randint(0, len(value))
        if self.random.random() < 0.7:
            schema["maxLength"] = len(value) + self.random.randint(0, 3)
        return schema, value

    def whole(self, depth: int) -> Pair:
        value = self.random.choice([0, 1, -1, 7, 10, 99, 100, -250, 12345, 10**20])
        return {"type": "integer", **self.around(value, lambda: self.random.randint(0, 130))}, value

    def number(self, depth: int) -> Pair:
        value = self.random.choice([0, 0.5, -0.25, 1.75, 3, -12.625, 99.99, 1000.001])
        step = self.random.choice([lambda: 0, lambda: self.random.choice([0.5, 0.01, 1, 20])])
        return {"type": "number", **self.around(value, step)}, value

    def around(self, value: float, step: Callable[[], float]) -> dict[str, float]:
        """Bounds that a value is within, sometimes just so."""
        bounds: dict[str, float] = {}
        for words, sign in ((("minimum", "exclusiveMinimum"), -1), (("maximum", "exclusiveMaximum"), 1)):
            distance = step()
            if self.random.random() < 0.7:
                bounds[words[distance != 0 and self.random.random() < 0.5]] = value + sign * distance
        return bounds

    def constant(self, depth: int) -> Pair:
        values = self.random.sample([1, -2.5, None, True, "x", 'quo"te', [1, {"a": None}], {}], 3)
        return self.random.choice([({"enum": values}, values[1]), ({"const": values[0]}, values[0])])

    def found(self, depth: int) -> Pair:
        return self.random.choice(
            [
                ({"type": "string", "pattern": "^[a-c]{1,3}$"}, "abc"),
                ({"type": "string", "pattern": "b+"}, "xbby"),
                ({"type": "string", "pattern": r'^\w+"\s\\[^a-z]|no$'}, 'ab" \\Q!'),
                ({"type": "string", "pattern": r"^(é|\u00fc){2,}"}, "éü and more"),
            ]
        )

    def formatted(self, depth: int) -> Pair:
        examples = {
            "date": "2024-02-28", "time": "23:59:59Z", "date-time": "1999-12-31T00:00:00.5+01:00",
            "email": "a.b@example.com", "ipv4": "192.168.0.255", "uri": "https://example.com/a?b=c",
            "uuid": "123e4567-e89b-12d3-a456-426614174000",
        }  # fmt: skip
        word = self.random.choice(sorted(FORMATS))
        return {"type": "string", "format": word}, examples[word]

    def object(self, depth: int) -> Pair:
        names = self.random.sample(WORDS, self.random.randint(1, 4))
        parts = {name: self.pair(depth - 1) for name in names}
        required = [name for name in names if self.random.random() < 0.5]
        value = {
            name: part for name, (_, part) in parts.items() if name in required or self.random.random() < 0.5
        }
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: part for name, (part, _) in parts.items()},
            "required": required,
        }
        if self.random.random() < 0.5:
            schema["additionalProperties"], other = self.random.choice([(False, None), self.pair(depth - 1)])
            if schema["additionalProperties"] is not False:
                value["abc"] = other
        return schema, value

    def mapping(self, depth: int) -> Pair:
        part, value = self.pair(depth - 1)
        schema = {"type": "object", "additionalProperties": part, "minProperties": 1, "maxProperties": 3}
        return schema, dict.fromkeys(self.random.sample(WORDS, self.random.randint(1, 3)), value)

    def array(self, depth: int) -> Pair:
        part, value = self.pair(depth - 1)
        count = self.random.randint(0, 3)
        schema: dict[str, Any] = {"type": "array", "items": part, "minItems": self.random.randint(0, count)}
        if self.random.random() < 0.7:
            schema["maxItems"] = count + self.random.randint(0, 2)
        return schema, [value] * count

    def tuple(self, depth: int) -> Pair:
        parts = [self.pair(depth - 1) for _ in range(self.random.randint(1, 3))]
        count = self.random.randint(0, len(parts))
        schema: dict[str, Any] = {"type": "array", "prefixItems": [part for part, _ in parts]}
        schema |= self.random.choice([{"items": False}, {"minItems": count}, {"maxItems": count}, {}])
        return schema, [value for _, value in parts[:count]]

    def either(self, depth: int) -> Pair:
        parts = [self.pair(depth - 1) for _ in range(2)]
        return {"anyOf": [part for part, _ in parts]}, self.random.choice(parts)[1]

    def both(self, depth: int) -> Pair:
        part, value = self.pair(depth - 1)
        schema = {
            "type": "object",
            "allOf": [
                {"properties": {"one": part}, "required": ["one"]},
                {"properties": {"two": {"$ref": "#/$defs/leaf"}, "one": True}},
            ],
        }
        return schema, {"one": value, "two": [[], [[]]]}


LEAF = {"leaf": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2}}


def pairs(seed: int, count: int) -> list[Pair]:
    made = [Schemas(seed * 1_000 + place).pair(3) for place in range(count)]
    return [
        ({**schema, "$defs": LEAF} if isinstance(schema, dict) else schema, value) for schema, value in made
    ]


@pytest.mark.parametrize("seed", range(4))
def test_what_a_schema_allows_may_be_written_compactly(engine: GrammarEngine, seed: int) -> None:
    cases = pairs(seed, 60)
    for schema, value in cases:
        jsonschema.Draft202012Validator(schema).validate(value)
    verdicts = engine.accepted([(schema_grammar(schema), compact(value)) for schema, value in cases])
    refused = [case for case, accepted in zip(cases, verdicts, strict=True) if not accepted]
    assert refused == []


@pytest.mark.parametrize("seed", range(4))
def test_what_may_be_written_is_what_a_schema_allows(engine: GrammarEngine, seed: int) -> None:
    ended = 0
    for schema, _ in pairs(seed, 60):
        text = engine.sampled(schema_grammar(schema), seed)
        if text is not None:
            ended += 1
            value = json.loads(text)
            jsonschema.Draft202012Validator(schema).validate(value)
            # Blanks stand in strings alone.
            assert not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', "", text))
    assert ended > 30


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "object"}, '{"a": 1}'),
        ({"type": "object"}, ' {"a":1}'),
        ({"type": "object", "properties": {"a": True}}, '{"b":1,"\\u0061":2}'),
        ({"type": "object", "properties": {"a": {"type": "null"}}}, '{"a":1}'),
        ({"type": "object", "properties": {"a/": {"type": "null"}}}, '{"a\\/":1}'),
        ({"type": "integer", "minimum": 10, "maximum": 20}, "21"),
        ({"type": "integer", "exclusiveMinimum": -1, "maximum": 5}, "-1"),
        ({"type": "number", "exclusiveMinimum": 0.5, "maximum": 0.75}, "0.50"),
        ({"type": "number", "maximum": 0.75}, "0.7500001"),
        ({"type": "string", "maxLength": 2}, '"abc"'),
        ({"type": "string", "maxLength": 2}, '"\\ud83d\\ude00ab"'),
        ({"type": "string"}, '"\\ud83d"'),
        ({"type": "string", "format": "date"}, '"2024-02-30"'),
        ({"type": "array", "maxItems": 2}, "[1,2,3]"),
        ({"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 3}]}, '"a"'),
        ({"enum": ["a", 1], "type": "string"}, "1"),
        (True, "01"),
    ],
)
def test_what_is_not_allowed_cannot_be_written(engine: GrammarEngine, schema: object, text: str) -> None:
    assert engine.accepted([(schema_grammar(schema), text)]) == [False]


NULL_NAMED = {"$defs": {"n": {"const": {}}}}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "maxLength": 3}, '"\\ud83d\\ude00ab"'),
        ({"type": "number", "minimum": 0.25, "exclusiveMaximum": 1.75}, "0.5"),
        ({"type": "object", "properties": {"a/": {"type": "null"}}}, '{"a/":null,"a":1}'),
        ({"type": "object", "required": ["x"], "additionalProperties": {"type": "null"}}, '{"x":null}'),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}, {"$ref": "#/$defs/n"}], **NULL_NAMED}, "{}"),
        ({"type": "object", "properties": {"next": {"$ref": "#"}}}, '{"next":{"next":{}}}'),
        ({"type": "string", "maxLength": MAX_REPEATS}, json.dumps("long " * 60)),
    ],
)
def test_what_is_allowed_can_be_written(engine: GrammarEngine, schema: object, text: str) -> None:
    assert engine.accepted([(schema_grammar(schema), text)]) == [True]


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (r"[a-c]{3}-\d{2,3}", "abc-123", True),
        (r"[a-c]{3}-\d{2,3}", "abc-1", False),
        (r"^(ab|[^a\s]+?)*$", "ab€ab", True),
        ("gr(?:öß|öss)er", "grösser", True),
        (".", "\n", False),
        ("(a{2}){1,40}", "a" * 80, True),
        ("(a{2}){1,40}", "a" * 82, False),
    ],
)
def test_a_pattern_is_the_whole_answer(engine: GrammarEngine, pattern: str, text: str, matches: bool) -> None:
    assert (re.fullmatch(pattern, text) is not None) == matches
    assert engine.accepted([(pattern_grammar(pattern), text)]) == [matches]


def doubled(count: int) -> dict[str, Any]:
    """References of references, twice each."""
    parts = {f"p{n}": {"allOf": [{"$ref": f"#/$defs/p{n + 1}"}] * 2} for n in range(count)}
    return {"$defs": {**parts, f"p{count}": {"type": "string"}}, "$ref": "#/$defs/p0"}


def chained(count: int) -> dict[str, Any]:
    parts: dict[str, Any] = {f"p{n}": {"$ref": f"#/$defs/p{n + 1}"} for n in range(count)}
    return {"$defs": {**parts, f"p{count}": {"type": "string"}}, "$ref": "#/$defs/p0"}


TURNS = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#"}, "refers to itself"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "refers to itself"),
        ({"$ref": "#/$defs/a", "$defs": TURNS}, "refers to itself"),
        ({"allOf": [{"$ref": "#"}]}, "refers to itself"),
        (doubled(40), f"more than {MAX_PARTS} parts"),
        (chained(3_000), "too deeply"),
        ({"type": "string", "maxLength": 10**9}, "too large"),
        ({"type": "array", "minItems": 10**9}, "too large"),
        ({"type": "string", "pattern": "((a{100}){100}){100}"}, f"possible are {MAX_PATTERN_SIZE}"),
        ({"type": "string", "pattern": "(?=a)b"}, "assert"),
        ({"type": "string", "pattern": f"a{{0,{MAX_CHARACTER_STEPS + 1}}}"}, "too large"),
        ({"type": "string", "pattern": "(" * 5_000}, "pattern"),
        ({"type": "string", "pattern": r"(a)\1"}, "groupref"),
        ({"type": "string", "pattern": r"[^\s\S]"}, "nothing satisfies"),
        ({"type": "string", "format": "colour"}, "colour"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "'not'"),
        ({"type": "object", "patternProperties": {"a": True}}, "patternProperties"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"$ref": "https://example.com/schema.json"}, "same schema"),
        ({"$ref": "#/$defs/none"}, "there is no"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "nothing satisfies"),
        ({"type": "integer", "minimum": 1e300}, "1e30"),
        ({"allOf": [{"prefixItems": [{"type": "null"}]}, {"items": {"type": "string"}}]}, "prefixItems"),
        ({"allOf": [{"const": 1}, {"const": True}]}, "const stands in two parts"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "oneOf"),
        ({"const": float("nan")}, "JSON"),
        ({"const": "\ud800"}, "surrogate"),
        ({"type": "strin"}, "strin"),
        ({"properties": []}, "properties"),
        ({"minItems": -1}, "minItems"),
        ({"required": [1]}, "required"),
        ({"anyOf": []}, "anyOf"),
        ("x", "schema"),
    ],
)
def test_what_cannot_be_kept_is_refused(schema: object, words: str) -> None:
    with pytest.raises(UsageError, match="this response_format cannot be followed") as caught:
        schema_grammar(schema)
    assert words in caught.value.message


@pytest.mark.parametrize(
    "pattern", ["(?i)a", "a{5000}", ".{0,301}", "(a|b", r"\bword", "(" * 5_000 + ")" * 5_000]
)
def test_a_pattern_that_no_grammar_has_a_place_for(pattern: str) -> None:
    with pytest.raises(UsageError, match="this response_format cannot be followed"):
        pattern_grammar(pattern)


JUNK = [
    None,
    True,
    0,
    -1,
    1.5,
    1e400,
    "",
    "x",
    "#",
    "#/$defs/leaf",
    [],
    [[]],
    ["a", 1],
    {},
    {"type": 1},
    {"$ref": []},
]


def spoiled(value: Any, chance: random.Random) -> Any:
    """The same with senseless things in some places."""
    if chance.random() < 0.05:
        return chance.choice(JUNK)
    if isinstance(value, dict):
        words = ["allOf", "oneOf", "anyOf", "required", "properties", "additionalProperties", "minimum"]
        more = {chance.choice(words): chance.choice(JUNK)} if chance.random() < 0.1 else {}
        return {key: spoiled(part, chance) for key, part in (value | more).items()}
    return [spoiled(part, chance) for part in value] if isinstance(value, list) else value


def test_a_senseless_schema_is_refused_or_has_a_grammar() -> None:
    refused, chance = 0, random.Random(7)
    for schema, _ in [pair for seed in range(30) for pair in pairs(seed, 60)]:
        try:
            grammar = schema_grammar(spoiled(schema, chance))
        except UsageError as exc:
            refused += 1
            assert len(exc.message) < 1000
        else:
            assert grammar.startswith("root ::= ")
    assert 200 < refused < 1600
