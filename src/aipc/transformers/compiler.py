"""How weights are stored, in the words of the Intel NPU Acceleration Library."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from aipc.errors import UsageError

int4, int8, float16, float32 = "int4", "int8", "float16", "float32"

# A dtype: the weight format that it is converted to, and whether the arithmetic is float32.
_FORMATS = {
    "int4": ("int4", False),
    "int8": ("int8", False),
    "float16": ("fp16", False),
    "float32": ("fp16", True),
}


@dataclass(frozen=True, slots=True)
class CompilerConfig:
    """What NPUModelForCausalLM.from_pretrained takes as `config`.

    dtype    int4, int8, float16 or float32, also as torch.int8, torch.float16, torch.float32
    use_to   no effect
    training must be False

    raises   UsageError
    """

    dtype: object = float16
    use_to: bool = False
    training: bool = False

    def __post_init__(self) -> None:
        if self.training:
            raise UsageError("CompilerConfig has training=True; aipc answers and does not train")
        weight_format(self.dtype)


def weight_format(dtype: object) -> tuple[str, bool]:
    """The weight format that a dtype means, and whether it asks for float32 arithmetic.

    raises   UsageError
    """
    # torch.float16 calls itself "torch.float16".
    word = str(dtype).removeprefix("torch.")
    if word in _FORMATS:
        return _FORMATS[word]
    close = difflib.get_close_matches(word, _FORMATS, n=1)
    raise UsageError(
        f"there is no dtype {dtype!r}; possible are {', '.join(_FORMATS)}",
        hint=f"did you mean {close[0]}?" if close else "for example CompilerConfig(dtype=int4)",
    )
