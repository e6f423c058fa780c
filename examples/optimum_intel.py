"""The cookbook's script for optimum-intel, with its import changed.

    sh examples/convert.sh && python examples/optimum_intel.py openvinomodel/phi3/int4 GPU.0

DEVICE is GPU.0 unless another is named.
"""

import sys

from transformers import AutoConfig, AutoTokenizer

from aipc.transformers import OVModelForCausalLM

model_dir = sys.argv[1] if len(sys.argv) > 1 else "./openvinomodel/phi3/int4"
device = sys.argv[2] if len(sys.argv) > 2 else "GPU.0"
ov_config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "CACHE_DIR": ""}

ov_model = OVModelForCausalLM.from_pretrained(
    model_dir,
    device=device,
    ov_config=ov_config,
    config=AutoConfig.from_pretrained(model_dir, trust_remote_code=True),
    trust_remote_code=True,
)

tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=True)
prompt = "<|user|>\nCan you introduce yourself?<|end|>\n<|assistant|>\n"
input_tokens = tokenizer(prompt, return_tensors="pt")
answer = ov_model.generate(**input_tokens, max_new_tokens=1024)
print(tokenizer.batch_decode(answer[:, input_tokens["input_ids"].shape[1] :], skip_special_tokens=True)[0])
