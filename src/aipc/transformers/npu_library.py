"""aipc under the name of the Intel NPU Acceleration Library, which is archived."""

from __future__ import annotations

import sys
from types import ModuleType

from aipc.errors import UsageError
from aipc.transformers import compiler
from aipc.transformers.causal_lm import CausalLM
from aipc.transformers.models import NPUModelForCausalLM
from aipc.transformers.notices import warn_once

LIBRARY = "intel_npu_acceleration_library"


def compile(model: object, *args: object, **kwargs: object) -> CausalLM:  # noqa: A001 - the library's name
    """The model as it is: what from_pretrained gives is compiled already.

    raises   UsageError for a model of torch
    """
    if isinstance(model, CausalLM):
        warn_once("compile() has no effect: the model was compiled when it was loaded")
        return model
    raise UsageError(
        f"a {type(model).__name__} is not compiled here: aipc reads weights from their files, not from torch",
        hint="NPUModelForCausalLM.from_pretrained(name, config=CompilerConfig(dtype=int4))",
    )


def install() -> None:
    """Let `import intel_npu_acceleration_library` mean aipc, in this process.

    raises   UsageError if the library itself was imported before
    """
    known = sys.modules.get(LIBRARY)
    if known is not None and getattr(known, "NPUModelForCausalLM", None) is not NPUModelForCausalLM:
        raise UsageError(f"{LIBRARY} is imported already", hint="call aipc.transformers.install() before it")
    library, library_compiler = ModuleType(LIBRARY), ModuleType(f"{LIBRARY}.compiler")
    for name in ("CompilerConfig", "int4", "int8", "float16", "float32"):
        setattr(library, name, getattr(compiler, name))
    library_compiler.CompilerConfig = compiler.CompilerConfig  # type: ignore[attr-defined]
    for module in (library, library_compiler):
        module.compile = compile  # type: ignore[attr-defined]
    library.NPUModelForCausalLM = NPUModelForCausalLM  # type: ignore[attr-defined]
    library.compiler = library_compiler  # type: ignore[attr-defined]
    library.__path__ = []
    sys.modules[LIBRARY] = library
    sys.modules[f"{LIBRARY}.compiler"] = library_compiler
