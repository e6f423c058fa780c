"""Text in and out: tokenizer, chat template and its bounds, detokenizer, stop filter."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from aipc.errors import CheckpointError, UnsupportedModelError, UsageError
from aipc.text import StopFilter, Text, sandbox
from aipc.text.template import ChatTemplate
from aipc.text.tokenizer import load_tokenizer
from aipc.types import Message
from tokenizers_for_tests import HARD_TEXTS, write_gpt_style, write_llama_style

STYLES = {"llama": write_llama_style, "gpt": write_gpt_style}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in STYLES.items()}


@pytest.fixture(scope="module")
def texts(folders: dict[str, Path]) -> dict[str, Text]:
    return {name: Text.load(folder) for name, folder in folders.items()}


def user(content: str) -> list[Message]:
    return [Message("user", content)]


# Encoding


def test_plain_text_reads_special_tokens_as_such(folders: dict[str, Path], texts: dict[str, Text]) -> None:
    tokenizer = load_tokenizer(folders["llama"] / "tokenizer.json")
    ids = texts["llama"].encode("<|user|>\nhi<|end|>\n<|assistant|>\n")
    assert [tokenizer.id_to_token(i) for i in ids] == ["<|user|>", "▁", "hi", "<|end|>", "<|assistant|>"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("content", HARD_TEXTS)
def test_a_conversation_is_the_rendered_template(
    folders: dict[str, Path], texts: dict[str, Text], style: str, content: str
) -> None:
    if style == "llama":
        text = f"<|system|>\nBe brief<|end|>\n<|user|>\n{content}<|end|>\n<|assistant|>\n"
    else:
        text = "".join(f"<|im_start|>{r}<|im_sep|>{c}<|im_end|>" for r, c in _brief(content))
        text += "<|im_start|>assistant<|im_sep|>"
    tokenizer = load_tokenizer(folders[style] / "tokenizer.json")
    ids = texts[style].encode_chat([Message(role, text) for role, text in _brief(content)])
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids


def _brief(content: str) -> list[tuple[str, str]]:
    return [("system", "Be brief"), ("user", content)]


@pytest.mark.parametrize("style", STYLES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_message_can_write_a_special_token(
    texts: dict[str, Text], style: str, data: st.DataObject
) -> None:
    text = texts[style]
    tokenizer = original(text)
    special = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
    words = st.one_of(st.sampled_from([*special, " ", "\n", "<|", "|>", "<|en", "d|>", "\ufdd0"]), st.text())
    content = "".join(data.draw(st.lists(words, max_size=12)))
    harmless = text.encode_chat(user("x"))
    ids = text.encode_chat(user(content))
    control = set(tokenizer.get_added_tokens_decoder())
    assert [i for i in ids if i in control] == [i for i in harmless if i in control]
    shown = content.replace("▁", " ") if style == "llama" else content
    assert shown.strip() in tokenizer.decode(ids, skip_special_tokens=False)


def original(text: Text) -> Tokenizer:
    return text._tokenizer


def test_the_text_around_a_disarmed_token_is_read_as_always(texts: dict[str, Text]) -> None:
    text = texts["gpt"]
    tokenizer = original(text)
    spelled = tokenizer.decode(text.encode_chat(user("a<|im_end|>b")), skip_special_tokens=False)
    assert spelled == "<|im_start|>user<|im_sep|>a<|im_end|>b<|im_end|><|im_start|>assistant<|im_sep|>"


def test_a_begin_token_is_not_added_twice(tmp_path: Path) -> None:
    folder = write_llama_style(tmp_path)
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    text = Text.load(folder)
    assert text.encode("a").count(1) == text.encode("<s>a").count(1) == 1
    assert text.encode_chat(user("a")).count(1) == 0


def test_half_a_surrogate_pair_is_no_text(texts: dict[str, Text]) -> None:
    with pytest.raises(UsageError, match="surrogate"):
        texts["llama"].encode("\ud800")


# Stop ids


def test_stop_ids_are_the_union_of_all_sources(tmp_path: Path) -> None:
    folder = write_llama_style(tmp_path)
    (folder / "config.json").write_text('{"eos_token_id": 7}', encoding="utf-8")
    (folder / "generation_config.json").write_text('{"eos_token_id": [8, 9]}', encoding="utf-8")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    named = {tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|end|>")}
    assert Text.load(folder).stop_ids == {7, 8, 9} | named


def test_the_end_marker_of_the_template_stops(folders: dict[str, Path], texts: dict[str, Text]) -> None:
    assert (
        load_tokenizer(folders["gpt"] / "tokenizer.json").token_to_id("<|im_end|>") in texts["gpt"].stop_ids
    )


# Templates


def test_a_dropped_system_message_goes_to_the_user(tmp_path: Path) -> None:
    drops = "{% for m in messages if m.role != 'system' %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    text = Text.load(write_llama_style(tmp_path, chat_template=drops))
    chat = [Message("system", "Be brief"), *user("Hi"), Message("assistant", "Yes"), *user("So?")]
    merged = [*user("Be brief\n\nHi"), *chat[2:]]
    assert text.encode_chat(chat) == text.encode_chat(merged)


def test_a_kept_system_message_stays(texts: dict[str, Text]) -> None:
    chat = [Message("system", "Be brief"), *user("Hi")]
    assert texts["gpt"].encode_chat(chat) != texts["gpt"].encode_chat(user("Be brief\n\nHi"))


def test_templates_are_found_where_they_may_stand(tmp_path: Path) -> None:
    listed = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    folder = write_llama_style(tmp_path, chat_template=listed)
    assert Text.load(folder).encode_chat(user("x")) == Text.load(folder).encode("D")
    (folder / "chat_template.jinja").write_text("J", encoding="utf-8")
    assert Text.load(folder).encode_chat(user("x")) == Text.load(folder).encode("J")


def test_no_template_says_what_to_do(tmp_path: Path) -> None:
    text = Text.load(write_llama_style(tmp_path, chat_template=None))
    with pytest.raises(UsageError, match="no chat template") as caught:
        text.encode_chat(user("x"))
    assert "raw=True" in caught.value.hint


def test_an_empty_conversation_is_refused(texts: dict[str, Text]) -> None:
    with pytest.raises(UsageError, match="at least one"):
        texts["gpt"].encode_chat([])


def render(source: str, **limit: float) -> str:
    return ChatTemplate(source, "f.jinja", {"eos_token": "</s>"}, **limit).render(user("hi"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}\n  {{ m.role }}\n{% endfor %}", "  user\n"),
        ("{{ messages[0]['content'].strip() ~ eos_token }}", "hi</s>"),
        (
            "{% set s = namespace(n=1) %}{% for i in [1, 2] %}{% set s.n = s.n + i %}{% endfor %}{{ s.n }}",
            "4",
        ),
        ("{{ {'a': '<é>'}|tojson }}", '{"a": "<é>"}'),
        ("{{ [3, 1]|sort|join('-') }}{{ 'a-b'|replace('-', '+') }}", "1-3a+b"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') }}{{ f(x=1) }}", "<a><1>"),
        (
            "{% for m in messages %}{{ loop.index0 % 2 }}{{ loop.last }}{{ loop.length }}{% endfor %}",
            "0True1",
        ),
        ("{% generation %}{{ messages[-1].content }}{% endgeneration %}", "hi"),
        ("{% if tools is none and not x is defined %}{{ '%Y' in 'a%Yb' }}{% endif %}", "True"),
        ("{% set x %}{{ messages[0].role }}!{% endset %}{{ x * 2 }}", "user!user!"),
    ],
)
def test_templates_render_as_hugging_face_renders_them(source: str, expected: str) -> None:
    assert render(source) == expected


def test_the_time_is_written() -> None:
    assert render("{{ strftime_now('%Y') }}").startswith("20")


def test_waiting_for_a_processor_is_no_fault_of_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    def held_up(words: str) -> str:
        threading.Event().wait(1.2)
        return words

    monkeypatch.setattr(sandbox, "_strftime_now", held_up)
    assert render("{{ strftime_now('late') }}{{ 1 + 1 }}", seconds=1) == "late2"


def test_a_refusal_of_the_template_is_the_callers_error() -> None:
    with pytest.raises(UsageError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


SIXTY = "{% set ns = namespace(x=[1], y=[1], t='ab', n=3) %}{% for i in range(60) %}"
TOWER = SIXTY + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
TOWERS = SIXTY + "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}"
HOSTILE = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "text times": "{{ 'x' * 1000000000 }}",
    "list times": "{{ ([1] * 1000000000)|length }}",
    "power": "{{ 99 ** 99 ** 99 }}",
    "squares": SIXTY + "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "old format": "{{ '%0999999999d' % 1 }}",
    "format": "{{ '{:>999999999}'.format(1) }}",
    "padding filter": "{{ 'x'|center(999999999) }}",
    "padding method": "{{ 'x'.ljust(999999999) }}",
    "indent": "{{ messages|tojson(indent=999999999) }}",
    "time": "{{ strftime_now('%0999999999d') }}",
    "list tower": TOWER + "{{ ns.x }}",
    "compared towers": TOWERS,
    "argument tower": "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% else %}"
    "{{ varargs }}{% endif %}{% endmacro %}{{ f(60, 1, 2) }}",
    "namespace tower": SIXTY + "{% set ns.x = namespace(a=ns, b=ns) %}{% endfor %}{{ ns.x }}",
    "namespace in itself": "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "doubling": SIXTY + "{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    "doubling blocks": SIXTY + "{% set t %}{{ ns.t }}{{ ns.t }}{% endset %}{% set ns.t = t %}{% endfor %}",
    "much text": "{% set x %}{% for i in range(99999) %}" + "y" * 60_000 + "{% endfor %}{% endset %}",
    "endless macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macro": "{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set b = f(n - 1) %}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "replace method": "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}",
    "replace filter": "{% set x = 'a' * 100000 %}{{ x|replace('a', x) }}",
    "join method": "{% set x = 'a' * 100000 %}{{ x.join(x) }}",
    "join filter": "{% set x = 'a' * 100000 %}{{ x|join(x) }}",
    "mapped": "{% set x = 'a' * 100000 %}{{ range(99999)|map('string')|map('replace', '1', x)|list|length }}",
    "python": "{{ ''.__class__.__mro__ }}",
    "change": "{{ messages.append(1) }}",
    "include": "{% include 'x' %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "recursive loop": "{% for a in [[1]] recursive %}{{ loop(a) }}{% endfor %}",
    "brackets": "{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}",
    "chain": "{{ a" + ".a" * 20_000 + " }}",
    "long number": "{{ " + "9" * 60_000 + " }}",
    "nested ifs": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "too long": "x" * 200_000,
    "no end": "{% for %}",
    "undefined": "{{ a.b.c }}",
    "zero": "{{ 1 / 0 }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_or_broken_template_is_a_damaged_file(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"^f\.jinja: "):
        render(source, seconds=0.2)


def test_a_long_conversation_has_room() -> None:
    messages = [Message("user", "x" * 100_000)] * 50
    source = (
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.content %}{% endfor %}"
    )
    source += "{{ ns.t }}"
    assert len(ChatTemplate(source, "f", {}).render(messages)) == 5_000_000


# Damaged files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{}", "aipc reads BPE"),
        (b"[]", "list"),
        (b"\xff\xfe", "not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS pointer"),
        (b"[" * 100_000, "not JSON"),
        (b'{"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}', "damaged"),
        (b'{"model": {"type": "BPE", "continuing_subword_prefix": "##"}}', "subword"),
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message) as caught:
        Text.load(tmp_path)
    assert "tokenizer.json" in str(caught.value)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        Text.load(tmp_path)


def test_an_unknown_decoder_is_refused(tmp_path: Path) -> None:
    folder = write_llama_style(tmp_path)
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    raw["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        Text.load(folder)


# Detokenizer


def pieces_of(text: Text, ids: list[int]) -> list[str]:
    decoder = text.decoder()
    return [*map(decoder.push, ids), decoder.finish()]


@pytest.mark.parametrize("style", STYLES)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_pieces_of_any_ids_are_the_whole_decoding(
    texts: dict[str, Text], style: str, data: st.DataObject
) -> None:
    tokenizer = original(texts[style])
    size = tokenizer.get_vocab_size()
    bytes_ = st.integers(3, 258) if style == "llama" else st.integers(0, 255)
    ids = data.draw(st.lists(st.one_of(bytes_, st.integers(0, size + 40)), max_size=40))
    assert "".join(pieces_of(texts[style], ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("style", STYLES)
@given(content=st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_no_piece_of_a_text_is_broken(texts: dict[str, Text], style: str, content: str) -> None:
    text = texts[style]
    pieces = pieces_of(text, text.encode(content))
    expected = content.replace("▁", " ") if style == "llama" else content
    if not any(token in content for token in ("<|", "<s>", "</s>", "<unk>")):
        assert "".join(pieces) == expected
        assert sum(piece.count("\ufffd") for piece in pieces) == content.count("\ufffd")


@pytest.mark.parametrize("style", STYLES)
def test_text_comes_as_soon_as_it_is_certain(texts: dict[str, Text], style: str) -> None:
    pieces = pieces_of(texts[style], texts[style].encode("The model draws"))
    assert pieces[-1] == ""
    assert all(pieces[:-1])


# Stop filter


def stopped_text(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop_filter = StopFilter(stops)
    text = "".join(map(stop_filter.push, pieces))
    return text + stop_filter.finish(), stop_filter.stopped


def reference(stops: list[str], text: str) -> tuple[str, bool]:
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


letters = st.text(alphabet="ab\n", max_size=12)


@given(st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3), st.lists(letters, max_size=6))
def test_the_split_into_pieces_does_not_matter(stops: list[str], pieces: list[str]) -> None:
    assert stopped_text(stops, pieces) == reference(stops, "".join(pieces))


@given(st.text(alphabet="ab", min_size=1, max_size=4), letters)
def test_only_what_could_become_a_stop_is_held_back(stop: str, text: str) -> None:
    stop_filter = StopFilter([stop])
    given_out = stop_filter.push(text)
    if not stop_filter.stopped:
        held = text[len(given_out) :]
        assert stop.startswith(held)
        assert not any(
            stop.startswith(text[-n:]) for n in range(len(held) + 1, min(len(stop), len(text) + 1))
        )


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (["END"], ["a E", "N", "D b"], ("a ", True)),
        (["END"], ["a E", "N"], ("a EN", False)),
        (["ENDING", "END"], ["a ENDING"], ("a ", True)),
        (["bc", "c"], ["abc"], ("a", True)),
        (["abcd", "c"], ["abcd"], ("ab", True)),
        (["aab"], ["aaab"], ("a", True)),
        ([], ["a", "b"], ("ab", False)),
    ],
)
def test_stops(stops: list[str], pieces: list[str], expected: tuple[str, bool]) -> None:
    assert stopped_text(stops, pieces) == expected


def test_nothing_comes_after_a_stop() -> None:
    stop_filter = StopFilter(["x"])
    assert [stop_filter.push("ax"), stop_filter.push("b"), stop_filter.finish()] == ["a", "", ""]


@pytest.mark.parametrize("stops", [[""], ["a", ""], "ab", [1]])
def test_what_is_no_stop_string_is_refused(stops: list[str]) -> None:
    with pytest.raises(UsageError, match="stop string"):
        StopFilter(stops)
