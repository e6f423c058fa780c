"""A model with the methods of transformers' own, answering from aipc's runtimes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from transformers import AutoConfig, GenerationConfig
from transformers.generation import GenerateDecoderOnlyOutput

from aipc.errors import StorageError, UsageError
from aipc.model import Model
from aipc.transformers.generation import Request, parse_request, seed
from aipc.transformers.notices import warn_once


class CausalLM:
    """A model that generates as transformers' models do; `model` is the aipc.Model below.

    config              the checkpoint's
    generation_config   the checkpoint's, with every token at which an answer ends
    device              where tensors are put, as transformers' models mean it; model.device computes
    """

    main_input_name = "input_ids"
    base_model_prefix = "model"
    framework = "pt"
    input_modalities = output_modalities = ("text",)
    dtype = torch.float32

    def __init__(self, load: partial[Model], device: str, config: Any = None) -> None:
        self._load = load
        self.model = load(device=device)
        self.device = torch.device("cpu")
        self.name_or_path = str(load.args[0])
        self.config = AutoConfig.from_pretrained(str(self._folder)) if config is None else config
        self.generation_config = _generation_config(self._folder, self.model)

    def generate(
        self,
        inputs: Any = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Iterable[object] | None = None,
        stopping_criteria: Iterable[object] | None = None,
        *,
        streamer: Any = None,
        tokenizer: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        **keywords: Any,
    ) -> Any:
        """Continue each row, as transformers' generate does.

        inputs     [batch, length] token ids, padded to the left or masked by `attention_mask`
        keywords   of GenerationConfig: max_new_tokens, do_sample, temperature, top_k, top_p, ...
        returns    [batch * num_return_sequences, length + new] token ids, or with
                   return_dict_in_generate a ModelOutput that holds them as `sequences`
        raises     UsageError for what the runtime cannot do: beams, foreign logits processors, scores;
                   PromptTooLongError, RuntimeFailedError
        """
        request = parse_request(
            self.generation_config,
            generation_config,
            keywords,
            processors=logits_processor or (),
            criteria=stopping_criteria or (),
            tokenizer=tokenizer,
        )
        prompt = _as_batch(inputs if inputs is not None else input_ids)
        prompts = [
            row for row in _without_padding(prompt, attention_mask, request) for _ in range(request.sequences)
        ]
        if streamer is not None and len(prompts) > 1:
            raise UsageError(
                f"a streamer shows one answer, and {len(prompts)} are asked for",
                hint="give one prompt, or leave the streamer out",
            )
        try:
            if streamer is not None:
                streamer.put(prompt.cpu())
            answers = self._answers(prompts, _fitting(request, prompt.shape[1]), streamer)
        finally:
            if streamer is not None:
                streamer.end()
        sequences = _as_rows(prompt.repeat_interleave(request.sequences, dim=0), answers, request.pad_id)
        return GenerateDecoderOnlyOutput(sequences=sequences) if request.as_dict else sequences

    def can_generate(self) -> bool:
        """Whether `generate` exists, which pipelines ask."""
        return True

    def forward(self, *args: object, **kwargs: object) -> None:
        """Not there: the runtime keeps logits to itself.

        raises   UsageError, always
        """
        raise UsageError("the runtime gives tokens, not logits", hint="call generate()")

    __call__ = forward

    def eval(self) -> Self:
        """The model itself, which is never in training."""
        return self

    def compile(self) -> Self:
        """The model itself: it was compiled when it was loaded."""
        return self

    def half(self) -> Self:
        """The model itself, with a warning: its arithmetic is the runtime's."""
        warn_once("half() has no effect: the weights stay as they were converted")
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The model, moved if a device of aipc is named ("GPU.0", "NPU"); other words move nothing.

        raises   DeviceError if it is not there; the model then stays where it is
        """
        for target in (*args, *kwargs.values()):
            if isinstance(target, str) and target != target.lower():
                moved = self._load(device=target)
                self.model.close()
                self.model = moved
            elif str(target) != "cpu":
                warn_once(
                    f"to({target!s}) has no effect: the model computes on {self.model.device}; "
                    'name one of its devices, such as to("GPU.0")'
                )
        return self

    def save_pretrained(self, save_directory: str | Path, **kwargs: object) -> None:
        """Copy the converted folder, which every tool for its runtime takes.

        raises   StorageError if the folder exists and is not empty
        """
        out = Path(save_directory)
        if out.exists() and any(out.iterdir()):
            raise StorageError(f"the folder {out} is not empty", hint="name a new one")
        shutil.copytree(self._folder, out, dirs_exist_ok=True)

    def close(self) -> None:
        """Free the device."""
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _folder(self) -> Path:
        assert self.model.folder is not None  # noqa: S101 - load() always gives one
        return self.model.folder

    def _answers(self, prompts: Sequence[list[int]], request: Request, streamer: Any) -> list[list[int]]:
        # Streams that are computed together round differently from run to run. So samples, which torch's seed
        # is to make repeatable, are drawn one after the other.
        if len(prompts) == 1 or not request.sampling.greedy:
            return [self._answer(prompt, request, streamer) for prompt in prompts]
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self._answer(prompt, request, None), prompts))

    def _answer(self, prompt: list[int], request: Request, streamer: Any) -> list[int]:
        sampling = request.sampling
        if not sampling.greedy:
            sampling = replace(sampling, seed=seed())
        row = torch.empty((1, len(prompt) + sampling.max_new_tokens), dtype=torch.long)
        row[0, : len(prompt)] = torch.tensor(prompt)
        length = len(prompt)
        tokens = self.model.session.generate(prompt, sampling)
        for token in tokens:
            row[0, length] = token
            length += 1
            if streamer is not None:
                streamer.put(row[0, length - 1 : length])
            if request.criteria and bool(request.criteria(row[:, :length], None).all()):
                break
        close = getattr(tokens, "close", None)
        if close is not None:
            close()
        answer: list[int] = row[0, len(prompt) : length].tolist()
        return answer


def _generation_config(folder: Path, model: Model) -> GenerationConfig:
    """The checkpoint's; an answer ends where any of its files says so."""
    if (folder / "generation_config.json").is_file():
        config = GenerationConfig.from_pretrained(str(folder))
    else:
        config = GenerationConfig()
    eos = config.eos_token_id
    named = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    config.eos_token_id = sorted({*named, *model.text.stop_ids})
    return config


def _as_batch(inputs: Any) -> torch.Tensor:
    """Token ids as [batch, length].

    raises   UsageError
    """
    if inputs is None:
        raise UsageError("generate() has no prompt", hint="generate(**tokenizer(text, return_tensors='pt'))")
    prompt = torch.as_tensor(inputs)
    if prompt.ndim != 2 or prompt.is_floating_point() or prompt.numel() == 0:
        raise UsageError(
            f"input_ids is {tuple(prompt.shape)} of {prompt.dtype}; it must be [batch, length] of integers"
        )
    return prompt


def _without_padding(prompt: torch.Tensor, attention_mask: Any, request: Request) -> list[list[int]]:
    """Each row's own ids. Without a mask, a padding token that is no end token counts as padding."""
    if attention_mask is not None:
        mask = torch.as_tensor(attention_mask).bool()
        if mask.shape != prompt.shape:
            raise UsageError(f"attention_mask is {tuple(mask.shape)}, and input_ids {tuple(prompt.shape)}")
    elif request.pad_id in request.sampling.stop_ids:
        mask = torch.ones_like(prompt, dtype=torch.bool)
    else:
        mask = prompt != request.pad_id
    return [row[kept].tolist() for row, kept in zip(prompt, mask, strict=True)]


def _fitting(request: Request, prompt_length: int) -> Request:
    """The request with its number of new tokens, where max_length counts the prompt."""
    if request.max_length is None:
        return request
    room = request.max_length - prompt_length
    if room < 1:
        raise UsageError(
            f"max_length is {request.max_length}, and the prompt alone has {prompt_length} tokens",
            hint="give max_new_tokens, which counts the answer alone",
        )
    return replace(request, sampling=replace(request.sampling, max_new_tokens=room))


def _as_rows(prompts: torch.Tensor, answers: list[list[int]], pad_id: int) -> torch.Tensor:
    """Prompts and answers as one tensor, shorter answers filled up."""
    longest = max(map(len, answers))
    rows = [answer + [pad_id] * (longest - len(answer)) for answer in answers]
    return torch.cat([prompts, torch.tensor(rows, dtype=prompts.dtype, device=prompts.device)], dim=1)
