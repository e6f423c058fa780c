"""Makes tests/data/golden: what transformers answers, in float32 on the CPU, for small random models.

    pip install torch transformers
    PYTHONPATH=src:tests python tools/make_golden.py

For each case it takes the first seed whose greedy answer has no near-tie, so that every runtime
that computes in float32 must give the very same tokens.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from checkpoints import SINGLE_FILE, write_checkpoint, write_safetensors
from family import FAMILY, FAMILY_ARRAYS, SEED, lengths_of, text_ids
from golden import ARRAYS, CASES, DESCRIPTION, DTYPE, FOLDER, SAMPLING, Golden, fingerprint, make_weights

PROMPT_TOKENS = 24
NEW_TOKENS = 48
SPECIAL_TOKENS = 3  # ids 0 to 2: a runtime might stop at them
LEAST_MARGIN = 0.02
LEAST_VARIETY = 16  # different tokens in the answer: a loop of two would hide a wrong cache
POSITIONS = (0, 9, PROMPT_TOKENS - 1, PROMPT_TOKENS + NEW_TOKENS - 1)
MOST_SEEDS = 500


def make_case(config: Mapping[str, Any]) -> Golden:
    """The answer with the first seed that is good enough.

    raises   RuntimeError if none of many is
    """
    for seed in range(MOST_SEEDS):
        golden = answer(config, seed)
        varied = len(set(golden.tokens)) >= LEAST_VARIETY
        if varied and min(golden.margins) >= LEAST_MARGIN and min(golden.tokens) >= SPECIAL_TOKENS:
            return golden
    raise RuntimeError(f"no seed below {MOST_SEEDS} gives clear margins for {config}")


@torch.no_grad()
def answer(config: Mapping[str, Any], seed: int) -> Golden:
    """What transformers says with the weights of a seed."""
    weights = make_weights(config, seed)
    model = load_model(config, weights)
    random = np.random.default_rng(seed)
    prompt = random.integers(SPECIAL_TOKENS, config["vocab_size"], PROMPT_TOKENS)
    output = model.generate(
        torch.from_numpy(prompt)[None],
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=[],
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = output.sequences[0, PROMPT_TOKENS:]
    best = torch.cat(output.logits).topk(2).values
    logits = model(output.sequences).logits[0]
    return Golden(
        config=config,
        seed=seed,
        weights_sha256=fingerprint(weights),
        prompt=tuple(prompt.tolist()),
        tokens=tuple(tokens.tolist()),
        margins=tuple(round(margin, 4) for margin in (best[:, 0] - best[:, 1]).tolist()),
        positions=POSITIONS,
        logits=logits[list(POSITIONS)].numpy(),
        probabilities=sampling_probabilities(torch.from_numpy(prompt), logits[PROMPT_TOKENS - 1]).numpy(),
    )


def load_model(
    config: Mapping[str, Any], weights: Mapping[str, np.ndarray], attention: str = "eager"
) -> PreTrainedModel:
    """The model as transformers reads it from a checkpoint, in float32."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), config, dtype=DTYPE)
        write_safetensors(Path(folder) / SINGLE_FILE, weights, DTYPE)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        )
    model.generation_config.pad_token_id = 0
    return model.eval()


def sampling_probabilities(prompt: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The distribution from which transformers would draw the next token."""
    steps = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(SAMPLING.repetition_penalty),
            TemperatureLogitsWarper(SAMPLING.temperature),
            TopKLogitsWarper(SAMPLING.top_k),
            TopPLogitsWarper(SAMPLING.top_p),
        ]
    )
    return steps(prompt[None], logits[None].clone())[0].softmax(-1)


@torch.no_grad()
def family_arrays(member: str) -> dict[str, Any]:
    """The scores after each length of a text, each computed as one prompt, as family.py names them."""
    config = FAMILY[member]
    weights = make_weights(config, SEED)
    model = load_model(config, weights, attention="sdpa")
    ids = torch.tensor([text_ids(config, max(lengths_of(config)))])
    logits = {
        f"{member}.{length}": model(ids[:, :length], logits_to_keep=1).logits[0, -1].numpy()
        for length in lengths_of(config)
    }
    return logits | {f"{member}.weights": np.array(fingerprint(weights))}


def describe(golden: Golden) -> dict[str, Any]:
    """What golden.json says of a case."""
    return {
        "seed": golden.seed,
        "weights_sha256": golden.weights_sha256,
        "least_margin": min(golden.margins),
        "prompt": golden.prompt,
        "tokens": golden.tokens,
        "margins": golden.margins,
        "positions": golden.positions,
    }


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    FOLDER.mkdir(parents=True, exist_ok=True)
    family = {key: array for member in FAMILY for key, array in family_arrays(member).items()}
    np.savez_compressed(FAMILY_ARRAYS, **family)
    cases = {name: make_case(config) for name, config in CASES.items()}
    description = {
        "made_by": "tools/make_golden.py",
        "arithmetic": "float32, CPU, eager attention",
        "versions": {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "cases": {name: describe(golden) for name, golden in cases.items()},
    }
    arrays = {f"{name}.logits": golden.logits for name, golden in cases.items()}
    arrays |= {f"{name}.probabilities": golden.probabilities for name, golden in cases.items()}
    np.savez_compressed(ARRAYS, **arrays)
    # One line a case: a change of one is a change of one line.
    lines = json.dumps(description, separators=(", ", ": ")).replace('}, "', '},\n"')
    DESCRIPTION.write_text(lines + "\n", encoding="utf-8")
    for name, golden in cases.items():
        print(
            name, "seed", golden.seed, "least margin", min(golden.margins), "variety", len(set(golden.tokens))
        )


if __name__ == "__main__":
    main()
