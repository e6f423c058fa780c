"""The cookbook's script for the Intel NPU Acceleration Library, with its imports changed and nothing else.

    python examples/intel_npu.py [MODEL]

Without an NPU the best other device answers, with a warning. MODEL is a hub id or a checkpoint folder;
without one, the tiny model that ships with aipc is asked.
"""

import sys
import warnings

from transformers import AutoTokenizer, TextStreamer, pipeline

import aipc.demo
from aipc.transformers import CompilerConfig, NPUModelForCausalLM, int4

model_id = sys.argv[1] if len(sys.argv) > 1 else aipc.demo.path()

compiler_conf = CompilerConfig(dtype=int4)
model = NPUModelForCausalLM.from_pretrained(
    model_id, use_cache=True, config=compiler_conf, attn_implementation="sdpa"
).eval()

tokenizer = AutoTokenizer.from_pretrained(model_id)

text_streamer = TextStreamer(tokenizer, skip_prompt=True)

generation_args = {
    "max_new_tokens": 1024,
    "return_full_text": False,
    "temperature": 0.3,
    "do_sample": False,
    "streamer": text_streamer,
}

pipe = pipeline(
    "text-generation",
    model=model,
    tokenizer=tokenizer,
)

query = (
    "<|system|>You are a helpful AI assistant.<|end|><|user|>Can you introduce yourself?<|end|><|assistant|>"
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pipe(query, **generation_args)
