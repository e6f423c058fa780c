"""xgrammar as OpenVINO GenAI carries it, driven by models that compute nothing: what does a grammar allow?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai
from openvino import opset13 as ops


class GrammarEngine:
    """Texts by and against grammars, with a model's tokenizer.

    folder   of a converted model, whose tokenizer has a token for each byte
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = genai.Tokenizer(str(folder))
        texts = self._tokenizer.get_vocab()
        self._vocab_size = max(texts.values()) + 1
        self._eos = self._tokenizer.get_eos_token_id()
        scores = np.zeros(self._vocab_size, np.float32)
        for text, token in texts.items():
            # Else most texts would be too long to come to an end.
            scores[token] = 3 if text[:1] in {'"', "}", "]"} else 0
        scores[self._eos] = 6
        stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        self._bytes = [stored[f"<0x{byte:02X}>"] for byte in range(256)]
        self._sampler = self._pipeline(ops.constant(scores))

    def sampled(self, grammar: str, seed: int, max_tokens: int = 300) -> str | None:
        """A text that the grammar allows, drawn at random; None if it came to no end."""
        config = self._config(grammar, max_tokens)
        config.do_sample, config.temperature, config.rng_seed = True, 1.0, seed
        return self._generated(self._sampler, config, 1)

    def accepted(self, cases: Sequence[tuple[str, str]]) -> list[bool]:
        """Of pairs of a grammar and a text: whether a model may write the text, and end there."""
        scripts = [[*(self._bytes[byte] for byte in text.encode()), self._eos] for _, text in cases]
        starts = np.cumsum([0, *map(len, scripts)])
        # The score is 1 for the token that stands at this position in the scripts.
        table = ops.constant(np.concatenate(scripts).astype(np.int64))
        pipeline = self._pipeline(table)
        verdicts = []
        for (grammar, text), start, script in zip(cases, starts, scripts, strict=False):
            written = self._generated(pipeline, self._config(grammar, len(script)), int(start) + 1)
            verdicts.append(written == text)
        return verdicts

    def _config(self, grammar: str, max_tokens: int) -> genai.GenerationConfig:
        config = genai.GenerationConfig(max_new_tokens=max_tokens)
        config.structured_output_config = genai.StructuredOutputConfig(grammar=grammar)
        config.set_eos_token_id(self._eos)
        return config

    def _generated(
        self, pipeline: genai.LLMPipeline, config: genai.GenerationConfig, length: int
    ) -> str | None:
        prompt = openvino.Tensor(np.zeros((1, length), np.int64))
        ids = list(pipeline.generate(prompt, config).tokens[0])
        return str(self._tokenizer.decode(ids[:-1])) if ids[-1:] == [self._eos] else None

    def _pipeline(self, table: openvino.Node) -> genai.LLMPipeline:
        """A model whose scores are a table, or whose next token is what a table has for the position."""
        kinds = {"input_ids": np.int64, "attention_mask": np.int64, "position_ids": np.int64}
        inputs = [ops.parameter([-1, -1], kind, name=name) for name, kind in kinds.items()]
        inputs.append(ops.parameter([-1], np.int32, name="beam_idx"))
        for node in inputs:
            node.output(0).get_tensor().set_names({node.get_friendly_name()})
        scores = table
        if table.get_element_type() == openvino.Type.i64:
            last = ops.gather(inputs[2], ops.constant(np.int64(-1)), ops.constant(np.int64(1)))
            token = ops.gather(table, last, ops.constant(np.int64(0)))
            size, one, zero = (
                ops.constant(kind(number))
                for kind, number in ((np.int64, self._vocab_size), (np.float32, 1), (np.float32, 0))
            )
            scores = ops.one_hot(token, size, one, zero, -1)
        logits = ops.reshape(scores, ops.constant(np.array([1, 1, self._vocab_size], np.int64)), False)
        logits.output(0).get_tensor().set_names({"logits"})
        with tempfile.TemporaryDirectory() as scratch:
            model = openvino.Model([ops.result(logits)], inputs, "scripted")
            openvino.save_model(model, Path(scratch) / "openvino_model.xml", compress_to_fp16=False)
            # The folder goes and the pipeline stays: Windows removes no file that is mapped.
            properties = {"ATTENTION_BACKEND": "SDPA", "ENABLE_MMAP": False}
            return genai.LLMPipeline(scratch, self._tokenizer, "CPU", **properties)
