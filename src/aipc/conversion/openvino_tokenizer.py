"""A model's tokenizer as OpenVINO graphs, so that OpenVINO GenAI takes text from the folder alone.

The graphs are put together from the building blocks of openvino_tokenizers, without transformers, and
compared with the tokenizers library before they are written: a tokenizer that reads even one text
differently is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipc.conversion.tokenizer_json import TokenizerSpec, read_tokenizer_json
from aipc.errors import UnsupportedModelError, require
from aipc.text.detokenize import fallback_byte
from aipc.text.template import chat_template_source, optional_json_object
from aipc.text.tokenizer import load_tokenizer, named_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The white space that an added token strips, in Unicode's full sense.
_SPACES = r"[\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]*"
_NO_LIMIT = 2**31 - 65
_CACHED_WORDS = 20_000
_CHECKED_TEXTS = (
    "",
    "Hello, world!",
    "   several   spaces  ",
    "\n\nlines\r\n\ttabs \n",
    "It's she'LL WE'RE 1234567 3.14",
    "naïve café Größe e\u0301",
    "日本語，中文 한국어 ไทย हिन्दी مرحبا",
    "👩‍👩‍👧 😀 🇳🇴 𝔘",
    "def f(x):\n    return {'a': [x ** 2, x // 3]}  # ok\n",
    "no\u00a0break\u3000wide \u3000 x",
    "▁<0x41> $1 \\1 ^.*$",
    "\x00\x7f",
)


def write_openvino_tokenizer(source_folder: Path, out: Path) -> None:
    """Write openvino_tokenizer and openvino_detokenizer (.xml, .bin) for the tokenizer of a model folder.

    The detokenizer departs from the tokenizers library in one thing: for bytes that are no UTF-8 it
    writes as many U+FFFD as Unicode recommends, where Llama-style decoding writes one for each byte.

    raises   CheckpointError for a damaged file; UnsupportedModelError for a tokenizer that is not
             covered, or that the graphs do not reproduce
    """
    require("openvino_tokenizers", "openvino")
    import openvino as ov

    tokenizer = load_tokenizer(source_folder / "tokenizer.json")
    spec = read_tokenizer_json(source_folder / "tokenizer.json", tokenizer)
    config = optional_json_object(source_folder / "tokenizer_config.json")
    facts = _facts(source_folder, config, tokenizer)
    graphs = {
        "openvino_tokenizer": _tokenizer_graph(spec, config, facts.get("pad_token_id", 0)),
        "openvino_detokenizer": _detokenizer_graph(spec, _vocab_size(source_folder, spec)),
    }
    _check(spec, tokenizer, *graphs.values())
    for name, graph in graphs.items():
        for key, value in facts.items():
            graph.set_rt_info(value, key)
        ov.save_model(graph, out / f"{name}.xml", compress_to_fp16=False)


def _facts(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """What OpenVINO GenAI reads beside the graphs, under the names that openvino_tokenizers gives it."""
    import openvino as ov
    import openvino_tokenizers

    facts: dict[str, Any] = {
        "openvino_version": ov.get_version(),
        "openvino_tokenizers_version": openvino_tokenizers.__version__,
    }
    named = named_tokens(config) | named_tokens(optional_json_object(folder / "special_tokens_map.json"))
    for name in ("bos_token", "eos_token", "pad_token"):
        token_id = tokenizer.token_to_id(named[name]) if name in named else None
        if token_id is not None:
            facts[f"{name}_id"] = token_id
    source = chat_template_source(folder, config)
    if source is not None:
        facts["chat_template"] = source[0]
    return facts


def _vocab_size(folder: Path, spec: TokenizerSpec) -> int:
    """Ids that the model may give: its vocabulary is often padded beyond the tokenizer's."""
    size = optional_json_object(folder / "config.json").get("vocab_size")
    return max(len(spec.texts), size if isinstance(size, int) and size <= 2_000_000 else 0)


def _tokenizer_graph(spec: TokenizerSpec, config: Mapping[str, Any], pad_id: int) -> Any:
    """string [batch] -> input_ids, attention_mask [batch, length] int64."""
    from openvino import Type
    from openvino_tokenizers import tokenizer_pipeline as blocks
    from openvino_tokenizers.utils import change_outputs_type

    length = config.get("model_max_length")
    length = length if isinstance(length, int) and 0 < length < _NO_LIMIT else _NO_LIMIT
    around = [*map(_add_token, spec.before), blocks.Sequence(), *map(_add_token, spec.after)]
    pipeline = blocks.TokenizerPipeline()
    pipeline.add_steps(
        [
            *_special_tokens_split(spec),
            *_normalizers(spec),
            *(
                blocks.RegexSplitStep(
                    split.pattern,
                    invert=split.matches_only,
                    behaviour="remove" if split.matches_only else "isolate",
                    mergeable=False,
                )
                for split in spec.splits
            ),
            _bpe(spec),
            blocks.TruncationStep(
                max_length=length - len(spec.before) - len(spec.after),
                truncate_right=config.get("truncation_side") != "left",
            ),
            blocks.CombineSegmentsStep(around),
            blocks.PaddingStep(_token_id=pad_id, pad_right=config.get("padding_side") != "left"),
        ]
    )
    return change_outputs_type(pipeline.get_tokenizer_ov_subgraph(), Type.i64)


def _add_token(token_id: int) -> Any:
    from openvino_tokenizers.tokenizer_pipeline import AddToken

    return AddToken(_token_id=token_id)


def _special_tokens_split(spec: TokenizerSpec) -> Iterator[Any]:
    """One regular expression for all added tokens, the longest first, which the library does not keep."""
    from openvino_tokenizers import _get_factory
    from openvino_tokenizers.tokenizer_pipeline import SpecialTokensSplit
    from openvino_tokenizers.utils import create_string_constant_node

    pattern = "|".join(
        _SPACES * token.strip_left + f"({_quoted(token.content)})" + _SPACES * token.strip_right
        for token in sorted(spec.added, key=lambda token: len(token.content), reverse=True)
    )

    class Split(SpecialTokensSplit):  # type: ignore[misc]
        def get_ov_subgraph(self, input_nodes: list[Any]) -> Any:
            nodes = [*input_nodes, *create_string_constant_node(pattern)]
            return _get_factory().create("SpecialTokensSplit", nodes).outputs()

    if spec.added:
        yield Split()


def _normalizers(spec: TokenizerSpec) -> Iterator[Any]:
    from openvino_tokenizers.tokenizer_pipeline import RegexNormalizationStep

    if spec.prefix:
        yield RegexNormalizationStep(r"\A(?=[\s\S])", _replacement(spec.prefix))
    for old, new in spec.replacements:
        yield RegexNormalizationStep(_quoted(old), _replacement(new))


def _quoted(text: str) -> str:
    """A regular expression that matches `text` and nothing else."""
    return "".join(f"\\x{{{ord(character):X}}}" for character in text)


def _replacement(text: str) -> str:
    """What a regular expression's match is replaced by so that it becomes `text`."""
    if "$" in text or "\\" in text:
        raise UnsupportedModelError(f"tokenizer.json has a normalizer that writes {text[:80]!r}")
    return text


def _bpe(spec: TokenizerSpec) -> Any:
    """The BPE step, with its tables packed at once: the library takes seconds for 200,000 tokens."""
    from openvino_tokenizers import _get_factory
    from openvino_tokenizers.tokenizer_pipeline import TokenizationModelStep

    vocab, lefts, rights = _bpe_tables(spec)
    ids = [token.token_id for token in spec.added]
    options = {
        "unk_token": "",
        "fuse_unk": False,
        "suffix_indicator": "",
        "end_suffix": "",
        "byte_fallback": False,
        "cache_capacity": max(_CACHED_WORDS, len(vocab) // 5),
    }

    class Bpe(TokenizationModelStep):  # type: ignore[misc]
        def get_ov_subgraph(self, input_nodes: list[Any]) -> Any:
            nodes = [*input_nodes, *_packed(vocab), *_packed(lefts), *_packed(rights)]
            if ids:
                nodes += [*_packed([vocab[token_id] for token_id in ids]), _constant(ids)]
            return _get_factory().create("BPETokenizer", nodes, options).outputs()

    return Bpe()


def _bpe_tables(spec: TokenizerSpec) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """The vocabulary and the two sides of the merges, as bytes of the text that the graph works on.

    The graph starts from the longest entries that no merge makes, so an entry that BPE cannot arrive at
    must not be there: it would be found in text, as the "<0x41>" of Llama-style would. For the same
    reason byte fallback needs no option: a raw byte is the start where no character is.
    """
    byte_level = spec.decoder.byte_level
    # A space of Llama-style is still ▁ here.
    lefts, rights = zip(*spec.merges, strict=True) if spec.merges else ((), ())
    texts = {*spec.texts, *lefts, *rights}
    to_bytes = {text: spec.decoder.bytes_of(text) if byte_level else text.encode() for text in texts}
    added = {token.token_id: token.content.encode() for token in spec.added}
    merged = {left + right for left, right in spec.merges}
    vocab = []
    for index, text in enumerate(spec.texts):
        byte = None if byte_level else fallback_byte(text)
        if index in added:
            vocab.append(added[index])
        elif text in merged or len(text) == 1:
            vocab.append(to_bytes[text])
        elif byte is not None and (byte >= 0x80 or chr(byte) not in to_bytes):
            vocab.append(bytes([byte]))
        else:
            vocab.append(b"")
    return vocab, [to_bytes[text] for text in lefts], [to_bytes[text] for text in rights]


def _constant(values: Any) -> Any:
    import numpy as np
    from openvino import op

    return op.Constant(np.asarray(values, dtype=np.int32)).output(0)


def _packed(strings: list[bytes]) -> list[Any]:
    """A list of strings as the graphs hold it: begins, ends, bytes."""
    import numpy as np
    from openvino import op

    ends = np.cumsum([len(string) for string in strings], dtype=np.int32)
    begins = np.concatenate(([0], ends[:-1])) if strings else ends
    joined = np.frombuffer(b"".join(strings), dtype=np.uint8)
    return [_constant(begins), _constant(ends), op.Constant(joined).output(0)]


def _detokenizer_graph(spec: TokenizerSpec, vocab_size: int) -> Any:
    """ids [batch, length] int64 -> string [batch], special tokens left out."""
    from openvino import Type
    from openvino_tokenizers import tokenizer_pipeline as blocks
    from openvino_tokenizers.constants import UTF8ReplaceMode
    from openvino_tokenizers.utils import change_inputs_type

    pieces = [spec.decoder.bytes_of(text) for text in spec.texts]
    pieces += [b""] * (vocab_size - len(pieces))
    skipped = [token.token_id for token in spec.added if token.special]
    pipeline = blocks.TokenizerPipeline()
    pipeline.add_steps(
        [
            blocks.VocabDecoderStep(vocab=pieces, skip_tokens=skipped),
            blocks.FuseStep(),
            blocks.UTF8ValidateStep(UTF8ReplaceMode.REPLACE),
        ]
    )
    character, count = spec.decoder.strip
    if count and not spec.decoder.byte_level:
        pipeline.add_steps(blocks.RegexDecodingStep(rf"\A{_quoted(character)}{{1,{count}}}", ""))
    return change_inputs_type(pipeline.get_detokenizer_ov_subgraph(), Type.i64)


def _check(spec: TokenizerSpec, tokenizer: Tokenizer, tokenizer_graph: Any, detokenizer_graph: Any) -> None:
    """Compare the graphs with the tokenizers library.

    raises   UnsupportedModelError with the first text that differs
    """
    import openvino as ov

    core = ov.Core()
    encode = core.compile_model(tokenizer_graph, "CPU")
    decode = core.compile_model(detokenizer_graph, "CPU")
    for text in _texts_to_check(spec):
        expected = tokenizer.encode(text).ids
        found = encode([text])["input_ids"][0].tolist()
        if found != expected:
            raise _differs(f"reads {text[:80]!r} as {str(found)[:200]} instead of {str(expected)[:200]}")
        if not expected:
            continue
        written, original = str(decode([expected])[0][0]), tokenizer.decode(expected)
        if written != original:
            raise _differs(f"writes {written[:80]!r} instead of {original[:80]!r}")


def _texts_to_check(spec: TokenizerSpec) -> Iterator[str]:
    yield from _CHECKED_TEXTS
    for token in spec.added[:1000]:
        yield f"one {token.content} \n two{token.content}"
    yield " x ".join(token.content for token in spec.added[:1000])
    # Words of the vocabulary, evenly spread: what merges do is seen only on those. The last character
    # is no NUL, which numpy would take off the end of a string on the way into the graph.
    step = max(1, len(spec.texts) // 2000)
    yield " ".join(text.replace("▁", " ") for text in spec.texts[::step]) + " ."


def _differs(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the OpenVINO graph of this tokenizer {what}",
        hint="please report the model; aipc refuses to convert it rather than answer from other tokens",
    )
