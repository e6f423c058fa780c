"""The kinds of folder that a conversion can write, each for one runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aipc.conversion.genai_config import write_genai_config
from aipc.conversion.onnx_genai import MODEL_FILE as ONNX_MODEL_FILE
from aipc.conversion.onnx_genai import OnnxWriter
from aipc.conversion.onnx_weights import Target, stored_nbytes, target_named
from aipc.conversion.openvino_ir import OpenVINOWriter
from aipc.conversion.openvino_tokenizer import write_openvino_tokenizer
from aipc.conversion.quantize import Packed
from aipc.conversion.recipe import Recipe
from aipc.errors import UsageError
from aipc.phi3 import Phi3Config, WeightSpec


class Writer(Protocol):
    """Takes the row blocks of every weight of a model, from any thread and in any order."""

    def add(self, spec: WeightSpec, first_row: int, packed: Packed) -> None:
        """Store the rows of a weight that start at `first_row`, an even number."""

    def close(self) -> None:
        """Finish the folder's model."""


class Format(Protocol):
    """A kind of folder.

    word      for `to`, and the folder's name beside one of another format
    runtime   the name of the runtime that takes it
    details   what a manifest's recipe says besides the quantisation
    """

    @property
    def word(self) -> str: ...

    @property
    def runtime(self) -> str: ...

    @property
    def details(self) -> dict[str, str]: ...

    def nbytes(self, config: Phi3Config, recipe: Recipe) -> int:
        """How large the weights become.

        raises   SchemeError if the runtime's kernels do not take the recipe
        """

    def write_texts(self, source: Path, folder: Path, config: Phi3Config) -> None:
        """Write what the runtime needs besides the model, beside the texts that all need.

        raises   CheckpointError, UnsupportedModelError, MissingExtraError
        """

    def open_writer(self, folder: Path, config: Phi3Config, recipe: Recipe) -> Writer:
        """Begin the model in `folder`."""


@dataclass(frozen=True, slots=True)
class OpenVINOFormat:
    """A folder for OpenVINO GenAI."""

    word = "openvino"
    runtime = "openvino"

    @property
    def details(self) -> dict[str, str]:
        """Nothing: one folder serves every device."""
        return {}

    def nbytes(self, config: Phi3Config, recipe: Recipe) -> int:
        """See `Format`."""
        return recipe.nbytes(config.weights())

    def write_texts(self, source: Path, folder: Path, config: Phi3Config) -> None:
        """The tokenizer as graphs."""
        write_openvino_tokenizer(source, folder)

    def open_writer(self, folder: Path, config: Phi3Config, recipe: Recipe) -> Writer:
        """See `Format`."""
        return OpenVINOWriter(folder, config, recipe)


@dataclass(frozen=True, slots=True)
class OnnxFormat:
    """A folder for ONNX Runtime's generate(), made for the kernels of one target."""

    target: Target
    word = "onnx"
    runtime = "onnxruntime"

    @property
    def details(self) -> dict[str, str]:
        """The target."""
        return {"target": self.target.name}

    def nbytes(self, config: Phi3Config, recipe: Recipe) -> int:
        """See `Format`."""
        return stored_nbytes(config, recipe.scheme_for, self.target)

    def write_texts(self, source: Path, folder: Path, config: Phi3Config) -> None:
        """genai_config.json."""
        write_genai_config(folder, config, self.target, ONNX_MODEL_FILE)

    def open_writer(self, folder: Path, config: Phi3Config, recipe: Recipe) -> Writer:
        """See `Format`."""
        return OnnxWriter(folder, config, recipe, self.target)


FORMATS = (OpenVINOFormat.word, OnnxFormat.word)


def formats_named(words: Sequence[str], target: str) -> list[Format]:
    """The formats of a conversion, in the order of their words.

    target   whose kernels an ONNX folder is for
    raises   UsageError for a word that does not exist or stands twice, or for no word
    """
    known: dict[str, Format] = {
        "openvino": OpenVINOFormat(),
        "onnx": OnnxFormat(target_named(target)),
    }
    for word in words:
        if word not in known:
            raise UsageError(f"there is no format {word!r}; possible are {', '.join(FORMATS)}")
    if not words or len(set(words)) < len(words):
        raise UsageError(f"the formats are {list(words)}; name one, or several once each")
    return [known[word] for word in words]
