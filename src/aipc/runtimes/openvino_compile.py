"""Compiles a folder for an NPU that need not be here, in a process of its own.

It calls OpenVINO's interface for C, whose export writes a file: Python's would hold the blob three times.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aipc.errors import AipcError, DeviceError, require
from aipc.preflight import WEIGHTS_FILE
from aipc.runtimes.engine import Inbox, Outbox, serve
from aipc.runtimes.openvino_devices import npu_here
from aipc.runtimes.openvino_errors import translated

openvino = require("openvino", "openvino")


@dataclass(frozen=True, slots=True)
class Options:
    """What `openvino.compile_for_npu` hands over.

    platform     that the NPU here must have where its driver's compiler is taken
    model        the description to compile, as a path in `folder`; its weights are the folder's
    blob         the file to write, as a path in `folder`
    properties   for the compiler
    """

    folder: str
    platform: str
    model: str
    blob: str
    properties: Mapping[str, str]


class Done:
    """An engine that has done all its work while it was loaded."""

    about: Mapping[str, object]

    def __init__(self, driver: str | None) -> None:
        self.about = {"openvino": openvino.get_version(), "driver": driver}

    def run(self, inbox: Inbox, outbox: Outbox) -> None:
        """Answer nothing."""


def main() -> None:
    """Serve the caller at the other end of stdin and stdout."""
    serve(lambda options: compile_folder(Options(**options)))


def compile_folder(options: Options) -> Done:
    """Let OpenVINO read, compile and export the model of a folder.

    raises   DeviceError if the driver's compiler is for another NPU; what `translated` makes of its words
    """
    driver = _driver(options)
    library = _load_library()
    core, model, compiled = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    words = [ctypes.c_char_p(word.encode()) for pair in options.properties.items() for word in pair]

    def call(function: str, *arguments: Any) -> None:
        if getattr(library, function)(*arguments) != 0:
            said = (library.ov_get_last_err_msg() or b"").decode("utf-8", "replace")
            error: AipcError = translated(RuntimeError(said), options.folder, "NPU")
            raise error

    # From inside the folder every path is ASCII, whatever system and code page read it.
    with contextlib.chdir(options.folder):
        call("ov_core_create", ctypes.byref(core))
        files = options.model.encode(), WEIGHTS_FILE.encode()
        call("ov_core_read_model", core, *files, ctypes.byref(model))
        count = ctypes.c_size_t(len(words))
        call("ov_core_compile_model", core, model, b"NPU", count, ctypes.byref(compiled), *words)
        call("ov_compiled_model_export_model", compiled, options.blob.encode())
    return Done(driver)


def _driver(options: Options) -> str | None:
    """The driver whose compiler is taken, or None for OpenVINO's own."""
    if options.properties.get("NPU_COMPILER_TYPE") != "DRIVER":
        return None
    here, driver = npu_here()
    if here != options.platform:
        raise DeviceError(
            f"the compiler here is the driver's, for the NPU {here}, not for {options.platform}",
            hint="run aipc compile under Windows, where OpenVINO's packages carry a compiler for each NPU",
        )
    return driver


def _load_library() -> ctypes.CDLL:
    """OpenVINO's interface for C, which its package carries unused."""
    libraries = Path(str(openvino.__file__)).parent / "libs"
    name = "openvino_c.dll" if os.name == "nt" else "libopenvino_c.*"
    library = ctypes.CDLL(str(next(libraries.glob(name))))
    library.ov_get_last_err_msg.restype = ctypes.c_char_p
    return library
