"""Ways to spoil bytes, JSON and chat templates: each takes a source of chance and something sound."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

# Stand for JSON that Python's own writer would not write; put in place of the quoted words.
_RAW_JSON = {
    '"@deep100@"': "[" * 100 + "]" * 100,
    '"@deep900@"': "[" * 900 + "]" * 900,
    '"@deep100000@"': '{"a":' * 100_000 + "1" + "}" * 100_000,
    '"@digits@"': "9" * 5000,
    '"@exponent@"': "1e999999999",
    '"@text@"': '"' + "\\u00e9" * 200_000 + '"',
    '"@list@"': "[" + "0," * 200_000 + "0]",
}

_VALUES: list[Any] = [
    *(0, 1, -1, 2, 7, 255, 2**16, 2**31, 2**32 - 1, 2**53 + 1, 2**63, 2**64, 10**400),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *(True, False, None, "", " ", "0", "null", "\0", "\ud800", "\U0010ffff", "é\u0301\u202e", "%s{0}$(x)`"),
    *("../../etc/passwd", "C:\\x", "a" * 5000, "<0xFF>", "model.safetensors", "{{ 1 }}", "(a+)+$"),
    *([], {}, [[]], [None], [0, 0], [-1, 2**63], {"": ""}, {"content": None}, ["a"] * 1000),
    *(word.strip('"') for word in _RAW_JSON),
]

_IMPOSTORS = [
    b"",
    b"\0" * 64,
    b"\xff" * 64,
    b"\xef\xbb\xbf{}",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    b"PK\x03\x04" + b"\0" * 60,
    b"\x80\x04\x95cposix\nsystem\n(S'false'\ntR.",
    b"GGUF\x03\0\0\0",
    b"<!DOCTYPE html>",
    b"[" * 100_000,
]

_FRAGMENTS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception('no') }}",
    "{{ '%s' % messages }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ messages|map('upper')|join(',' * 10**9) }}",
    "{{ 'x'|center(10**10) }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set ns = namespace(a=[]) %}{% set ns.a = [ns.a, ns.a] %}",
    "{% set x = 'a' * 1000 %}{% for i in range(40) %}{% set x = x ~ x %}{% endfor %}",
    "{% include 'config.json' %}",
    "{% import 'os' as os %}{{ os.system('false') }}",
    "{% extends messages %}",
    "{{ messages[10**20] }}",
    "{{ messages[-1]['content'][::-1] }}",
    "{{ messages|tojson(indent=10**9) }}",
    "{{ 1 / 0 }}",
    "{{ none.x.y }}",
    "{{ strftime_now('%' * 1000) }}",
    "{% generation %}",
    "{% if %}",
    "{#",
    "{{",
    "{% endfor %}",
    "(" * 3000,
    "{{ " + "-" * 3000 + "1 }}",
    "{% if 1 %}" * 500,
    "{% set messages = 3 %}",
    "{% break %}",
    "\0",
    "\ud800",
    "\ufdd0",
]

Spoiler = Callable[[random.Random, bytes], bytes]


def spoil_bytes(chance: random.Random, data: bytes) -> bytes:
    """Flip bits, cut, repeat, insert, or put something else altogether."""
    spoiled = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        here, there = sorted(chance.randrange(len(spoiled) + 1) for _ in range(2))
        # Most of what is checked stands at the start.
        if chance.random() < 0.5:
            here, there = min(here, here % 4096), min(there, here % 4096 + chance.randrange(64))
        match chance.randrange(6):
            case 0 if spoiled:
                for _ in range(chance.choice((1, 2, 16))):
                    spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
            case 1:
                del spoiled[here:]
            case 2:
                del spoiled[here:there]
            case 3:
                spoiled[here:here] = spoiled[here:there]
            case 4:
                spoiled[here:here] = chance.randbytes(chance.randrange(1, 64))
            case 5 if chance.random() < 0.2:
                spoiled = bytearray(chance.choice(_IMPOSTORS))
    return bytes(spoiled)


def spoil_json(chance: random.Random, data: bytes) -> bytes:
    """Change the values, keys or shape of a JSON document, in a way that is mostly still JSON."""
    root = [json.loads(data)]
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        _spoil_node(chance, root)
    text = json.dumps(root[0], ensure_ascii=chance.random() < 0.8)
    if chance.random() < 0.1:
        text = _with_duplicate(chance, text)
    for word, raw in _RAW_JSON.items():
        text = text.replace(word, raw)
    return text.encode("utf-8", "surrogatepass")


def spoil_json_file(chance: random.Random, data: bytes) -> bytes:
    """Spoil a JSON file, mostly as JSON, else as bytes."""
    return (spoil_json if chance.random() < 0.8 else spoil_bytes)(chance, data)


def spoil_safetensors(chance: random.Random, data: bytes) -> bytes:
    """Spoil a safetensors file: its header as JSON, its length, or any of its bytes."""
    if chance.random() < 0.3:
        return spoil_bytes(chance, data)
    end = 8 + int.from_bytes(data[:8], "little")
    header, rest = data[8:end], data[end:]
    if chance.random() < 0.15:
        # All bits set are NaN in every dtype: found only when the weights are read.
        where = chance.randrange(len(rest) // 4) * 4
        return data[: end + where] + b"\xff" * 4 + rest[where + 4 :]
    header = spoil_json(chance, header)
    length = len(header)
    if chance.random() < 0.1:
        length = chance.choice(
            (0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, chance.getrandbits(64))
        )
    if chance.random() < 0.1:
        rest = spoil_bytes(chance, rest)
    return length.to_bytes(8, "little") + header + rest


def spoil_template(chance: random.Random, data: bytes) -> bytes:
    """Put hostile fragments into a Jinja template, or move and drop its parts."""
    text = data.decode("utf-8")
    for _ in range(chance.choice((1, 1, 2, 3))):
        here, there = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        match chance.randrange(5):
            case 0 | 1:
                # Mostly between tags, where it is still a template.
                between = [0, *(found.end() for found in re.finditer(r"[%}]}", text))]
                here = chance.choice(between) if chance.random() < 0.8 else here
                text = text[:here] + chance.choice(_FRAGMENTS) + text[here:]
            case 2:
                text = text[:here] + text[there:]
            case 3:
                text = text[:there] + text[here:there] + text[there:]
            case 4:
                text = text[:here] + chr(chance.randrange(1, 0x250)) + text[here + 1 :]
    return text.encode("utf-8", "surrogatepass")


def _spoil_node(chance: random.Random, root: list[Any]) -> None:
    """Change one place in the tree, rarely the whole of it."""
    parent: Any = root
    key: Any = 0
    deeper = 0.97
    while isinstance(parent[key], dict | list) and parent[key] and chance.random() < deeper:
        deeper = 0.8
        parent = parent[key]
        key = chance.choice(list(parent)) if isinstance(parent, dict) else chance.randrange(len(parent))
    match chance.randrange(8):
        case 0 if parent is not root:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[str(chance.choice(_VALUES))] = parent.pop(key)
        case 2:
            parent[key] = [parent[key]]
        case 3 if isinstance(parent, dict):
            parent[key] = copy.deepcopy(parent[chance.choice(list(parent))])
        case 4 | 5 if isinstance(parent[key], int | float):
            parent[key] = _near(chance, parent[key])
        case _:
            parent[key] = copy.deepcopy(chance.choice(_VALUES))


def _near(chance: random.Random, number: float) -> Any:
    if not -1e300 < number < 1e300:
        return str(number)
    near = (number + 1, number - 1, -number, number * 2, number / 2, float(number), str(number), [number])
    return chance.choice(near)


def _with_duplicate(chance: random.Random, text: str) -> str:
    """Say a key of the document again, at the beginning of some object."""
    braces = [index for index, character in enumerate(text) if character == "{"]
    quotes = text.split('"')[1::2]
    if not braces or not quotes:
        return text
    where = chance.choice(braces) + 1
    value = json.dumps(chance.choice(_VALUES))
    return f'{text[:where]}"{chance.choice(quotes)}": {value}, {text[where:]}'
