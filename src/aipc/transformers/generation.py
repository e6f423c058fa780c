"""From transformers' words for how to generate (config, keywords, processors, criteria) to Sampling."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import (
    MaxTimeCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from aipc.errors import UsageError
from aipc.transformers.notices import warn_once
from aipc.types import Sampling

# What transformers takes where nobody says: so many new tokens, and when sampling so many candidates.
_DEFAULT_NEW_TOKENS = 20
_DEFAULT_TOP_K = 50

_HONOURED = {
    "max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty",
    "num_return_sequences", "eos_token_id", "pad_token_id", "bos_token_id", "max_time", "stop_strings",
    "return_dict_in_generate",
}  # fmt: skip
# They tell how to compute, not what, or belong to beams and assistants, which are refused by other words.
_WITHOUT_EFFECT = {
    "use_cache", "cache_implementation", "cache_config", "compile_config", "disable_compile", "low_memory",
    "prefill_chunk_size", "renormalize_logits", "remove_invalid_values", "early_stopping", "length_penalty",
    "transformers_version", "_from_model_config", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "is_assistant",
    "trust_remote_code",
}  # fmt: skip
# The value of an option that leaves the answer as it is, where that is neither None, False nor 0.
_NEUTRAL = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "typical_p": 1.0,
    "guidance_scale": 1.0,
    "encoder_repetition_penalty": 1.0,
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a call of generate asks for.

    sampling     but for the seed and, where max_length counts the prompt, the number of new tokens
    max_length   of prompt and answer; None where max_new_tokens says how long the answer is
    sequences    answers to each prompt
    pad_id       fills the rows of shorter answers
    criteria     end an answer early
    as_dict      give a ModelOutput
    """

    sampling: Sampling
    max_length: int | None
    sequences: int
    pad_id: int
    criteria: StoppingCriteriaList
    as_dict: bool


def parse_request(
    defaults: GenerationConfig,
    given: GenerationConfig | None,
    keywords: Mapping[str, Any],
    *,
    processors: Iterable[object],
    criteria: Iterable[object],
    tokenizer: Any,
) -> Request:
    """Read a call of generate.

    defaults     the model's own
    given        the call's generation_config; what it leaves open is taken from the model's
    keywords     win over both
    tokenizer    for stop_strings

    raises   UsageError for what the runtime cannot do; ValueError of transformers for values that contradict
    """
    config = copy.deepcopy(given if given is not None else defaults)
    for name in ("eos_token_id", "pad_token_id"):
        if getattr(config, name) is None:
            setattr(config, name, getattr(defaults, name))
    unknown = config.update(**keywords)
    _refuse_unsupported(config, [name for name, value in unknown.items() if value is not None])
    eos = config.eos_token_id
    stop_ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    pad_id = config.pad_token_id
    new_tokens, max_length = _lengths(config)
    return Request(
        sampling=Sampling(
            max_new_tokens=new_tokens,
            stop_ids=frozenset(int(token) for token in stop_ids),
            **_choice(config, processors),
        ),
        max_length=max_length,
        sequences=int(config.num_return_sequences or 1),
        pad_id=int(pad_id if pad_id is not None else next(iter(stop_ids), 0)),
        criteria=_criteria(config, criteria, tokenizer),
        as_dict=bool(config.return_dict_in_generate),
    )


def _refuse_unsupported(config: GenerationConfig, unknown: list[str]) -> None:
    """Say so where an option would be ignored and the answer be another one than asked for."""
    if unknown:
        raise UsageError(
            f"generate() knows no {', '.join(sorted(unknown))}",
            hint="beside the words of GenerationConfig it takes input_ids and attention_mask",
        )
    for name, value in config.to_diff_dict().items():
        neutral = value is None or value is False or value == _NEUTRAL.get(name, 0)
        if name not in _HONOURED | _WITHOUT_EFFECT and not neutral:
            raise UsageError(
                f"generate() is asked for {name}={value!r}, which the runtime cannot do",
                hint=f"possible are {', '.join(sorted(_HONOURED))}",
            )


def _lengths(config: GenerationConfig) -> tuple[int, int | None]:
    """Most new tokens, and where that depends on the prompt most tokens of both."""
    if config.max_new_tokens is not None:
        return int(config.max_new_tokens), None
    if "max_length" in config.to_diff_dict() and config.max_length is not None:
        return int(config.max_length), int(config.max_length)
    warn_once(
        f"neither max_new_tokens nor max_length is given: the answer ends after {_DEFAULT_NEW_TOKENS} tokens"
    )
    return _DEFAULT_NEW_TOKENS, None


def _choice(config: GenerationConfig, processors: Iterable[object]) -> dict[str, Any]:
    """How a token is chosen: the config's words, then those of processors that say the same."""
    top_k = _DEFAULT_TOP_K if config.top_k is None else int(config.top_k)
    choice = {
        "temperature": 1.0 if config.temperature is None else float(config.temperature),
        "top_k": top_k,
        "top_p": 1.0 if config.top_p is None else float(config.top_p),
        "repetition_penalty": float(config.repetition_penalty or 1.0),
    }
    for processor in processors:
        choice |= _processor_choice(processor)
    if not config.do_sample:
        choice |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
    elif choice["temperature"] == 0.0:
        raise UsageError("temperature is 0.0 with do_sample=True", hint="give do_sample=False")
    return choice


def _processor_choice(processor: object) -> dict[str, Any]:
    """What a processor of transformers says that the runtime does itself.

    raises   UsageError for every other
    """
    if isinstance(processor, TemperatureLogitsWarper):
        return {"temperature": float(processor.temperature)}
    if isinstance(processor, TopKLogitsWarper):
        return {"top_k": int(processor.top_k)}
    if isinstance(processor, TopPLogitsWarper):
        return {"top_p": float(processor.top_p)}
    if isinstance(processor, RepetitionPenaltyLogitsProcessor):
        return {"repetition_penalty": float(processor.penalty)}
    raise UsageError(
        f"the logits processor {type(processor).__name__} is not possible: the runtime chooses the token",
        hint="possible are TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper and "
        "RepetitionPenaltyLogitsProcessor; aipc.Model.stream holds an answer to a JSON schema or a regex",
    )


def _criteria(config: GenerationConfig, given: Iterable[object], tokenizer: Any) -> StoppingCriteriaList:
    criteria = StoppingCriteriaList(given)
    if config.max_time is not None:
        criteria.append(MaxTimeCriteria(config.max_time))
    if config.stop_strings is not None:
        if tokenizer is None:
            raise UsageError("stop_strings needs the tokenizer", hint="generate(..., tokenizer=tokenizer)")
        criteria.append(StopStringCriteria(tokenizer, config.stop_strings))
    return criteria


def seed() -> int:
    """From torch's generator, so that torch.manual_seed and transformers.set_seed make answers repeatable."""
    return int(torch.randint(2**31 - 1, ()).item())
