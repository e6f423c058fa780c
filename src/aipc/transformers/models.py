"""The classes that scripts name, and what their from_pretrained takes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import aipc
from aipc.errors import DeviceError, UsageError
from aipc.transformers.causal_lm import CausalLM
from aipc.transformers.compiler import CompilerConfig, weight_format
from aipc.transformers.notices import warn_once

# They change nothing in what is computed here: no code of a model is run, attention is the runtime's.
_ACCEPTED = {
    "use_cache", "attn_implementation", "trust_remote_code", "low_cpu_mem_usage", "export", "transpile",
    "compile", "dynamic_shapes", "stateful", "library_name", "task", "use_safetensors",
}  # fmt: skip
_INSTEAD = {
    "token": "set HF_TOKEN, or run: hf auth login",
    "use_auth_token": "set HF_TOKEN, or run: hf auth login",
    "cache_dir": "set HF_HOME",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "force_download": "delete the model with: hf cache rm",
    "subfolder": "name the folder itself",
}


class NPUModelForCausalLM(CausalLM):
    """As the Intel NPU Acceleration Library's: on the NPU, or with a warning on the best device there is."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, config: CompilerConfig | None = None, **kwargs: Any
    ) -> Self:
        """A model, converted to the dtype of `config` (float16 without one), ready to generate.

        config    a CompilerConfig; `dtype` in place of it is taken as well
        raises    as aipc.load; UsageError for arguments that neither library knows
        """
        dtype = kwargs.pop("dtype", None)
        if config is not None and not isinstance(config, CompilerConfig):
            raise UsageError(
                f"config is a {type(config).__name__}, not a CompilerConfig",
                hint="CompilerConfig(dtype=int4)",
            )
        chosen = (
            config if config is not None else CompilerConfig() if dtype is None else CompilerConfig(dtype)
        )
        stored, exact = weight_format(chosen.dtype)
        revision = _common_arguments(kwargs)
        load = partial(
            aipc.load, pretrained_model_name_or_path, weight_format=stored, exact=exact, revision=revision
        )
        if exact:
            warn_once("no NPU computes in float32: the CPU answers")
            return cls(load, "CPU")
        try:
            return cls(load, "NPU")
        except DeviceError as exc:
            warn_once(f"{exc.message}; the best other device answers")
            return cls(load, "auto")


class OVModelForCausalLM(CausalLM):
    """As optimum-intel's: OpenVINO on the device that is named."""

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        *,
        device: str = "CPU",
        ov_config: Mapping[str, object] | None = None,
        config: Any = None,
        load_in_8bit: bool | None = None,
        quantization_config: Any = None,
        **kwargs: Any,
    ) -> Self:
        """A model: a converted folder as it is, a checkpoint converted first, to int4 unless said otherwise.

        ov_config             properties of OpenVINO
        quantization_config   of which `bits` counts: 4 or 8
        raises    as aipc.load; UsageError for arguments that neither library knows
        """
        revision = _common_arguments(kwargs)
        load = partial(
            aipc.load,
            model_id,
            runtime="openvino",
            weight_format=_stored(load_in_8bit, quantization_config),
            revision=revision,
            properties=dict(ov_config or {}),
        )
        return cls(load, device, config)


# A pipeline compares a model's class with this table, and complains of others.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.update(
    {f"aipc-{kind.__name__}": kind.__name__ for kind in (NPUModelForCausalLM, OVModelForCausalLM)}
)


def _common_arguments(kwargs: dict[str, Any]) -> str | None:
    """The revision; everything else has no effect here, or is refused."""
    revision: str | None = kwargs.pop("revision", None)
    for name in ("torch_dtype", "dtype"):
        if kwargs.pop(name, None) is not None:
            warn_once(f"{name} has no effect: how weights are stored is said by the conversion")
    if kwargs.pop("device_map", None) is not None:
        warn_once("device_map has no effect: one device computes the whole model")
    for name in kwargs.keys() - _ACCEPTED:
        if kwargs[name]:
            raise UsageError(
                f"from_pretrained() knows no {name}",
                hint=_INSTEAD.get(name, "see aipc.load and aipc.convert for what there is"),
            )
    return revision


def _stored(load_in_8bit: bool | None, quantization_config: Any) -> str | None:
    if quantization_config is None:
        return None if load_in_8bit is None else "int8" if load_in_8bit else "fp16"
    if isinstance(quantization_config, Mapping):
        bits = quantization_config.get("bits")
    else:
        bits = getattr(quantization_config, "bits", None)
    if bits not in {4, 8}:
        raise UsageError(f"quantization_config has bits={bits!r}; possible are 4 and 8")
    return f"int{bits}"
