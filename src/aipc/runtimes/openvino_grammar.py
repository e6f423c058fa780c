"""Whether OpenVINO GenAI can follow a grammar, found out before a pipeline is asked to.

A pipeline compiles a grammar in the middle of a step: all other streams wait for it, and if it refuses the
grammar there, they are lost. So each is first given to a pipeline whose model computes nothing. What that
compiles belongs to the tokenizer, and every pipeline with the same one finds it there.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai
from openvino import opset13 as ops

from aipc.errors import UsageError
from aipc.runtimes.json_grammar import schema_grammar
from aipc.runtimes.openvino_errors import gist
from aipc.runtimes.pattern_grammar import pattern_grammar
from aipc.types import Guidance


class Grammars:
    """What the pipelines with this tokenizer would make of a grammar."""

    def __init__(self, tokenizer: genai.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pipeline: genai.LLMPipeline | None = None

    def check(self, guidance: Guidance) -> None:
        """Compile a grammar, and refuse what the pipelines would refuse. Other threads go on meanwhile.

        raises   UsageError
        """
        config = genai.GenerationConfig(max_new_tokens=1, ignore_eos=True)
        config.structured_output_config = structured_output(guidance)
        try:
            self._pipeline = self._pipeline or _pipeline(self._tokenizer)
            self._pipeline.generate(openvino.Tensor(np.array([[0]], np.int64)), config)
        except RuntimeError as exc:
            raise UsageError(
                f"OpenVINO cannot follow this response_format: {gist(exc)}",
                hint="use a simpler schema or pattern",
            ) from exc


# Asked twice of each request: to try it, and to answer it.
@functools.lru_cache(maxsize=16)
def structured_output(guidance: Guidance) -> genai.StructuredOutputConfig:
    """Guidance in GenAI's words: a grammar of our own, as GenAI's of a schema allows blanks without an end.

    raises   UsageError
    """
    if guidance.kind == "regex":
        return genai.StructuredOutputConfig(grammar=pattern_grammar(guidance.text))
    return genai.StructuredOutputConfig(grammar=schema_grammar(json.loads(guidance.text)))


def _pipeline(tokenizer: genai.Tokenizer) -> genai.LLMPipeline:
    """A pipeline with a model for which all tokens are alike."""
    with tempfile.TemporaryDirectory() as scratch:
        # Two ids may have the same text, and the masks are as long as the ids reach.
        vocab_size = max(tokenizer.get_vocab().values()) + 1
        openvino.save_model(_indifferent(vocab_size), Path(scratch) / "openvino_model.xml")
        return genai.LLMPipeline(scratch, tokenizer, "CPU", ATTENTION_BACKEND="SDPA")


def _indifferent(vocab_size: int) -> openvino.Model:
    """A language model's inputs and outputs, and nothing between them."""
    kinds = {"input_ids": np.int64, "attention_mask": np.int64, "position_ids": np.int64}
    inputs = [ops.parameter([-1, -1], kind, name=name) for name, kind in kinds.items()]
    inputs.append(ops.parameter([-1], np.int32, name="beam_idx"))
    for node in inputs:
        node.output(0).get_tensor().set_names({node.get_friendly_name()})
    shape = ops.concat([ops.shape_of(inputs[0]), ops.constant(np.array([vocab_size], np.int64))], 0)
    logits = ops.broadcast(ops.constant(np.float32(0)), shape)
    logits.output(0).get_tensor().set_names({"logits"})
    return openvino.Model([ops.result(logits)], inputs, "indifferent")
