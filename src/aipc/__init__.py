"""Microsoft's Phi-3 family on the best processor of an AI PC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aipc.conversion import convert
    from aipc.model import Model, load

__version__ = "0.1.0"

__all__ = ["Model", "__version__", "convert", "load"]

_HOMES = {"load": "aipc.model", "Model": "aipc.model", "convert": "aipc.conversion"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import aipc` alone loads nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'aipc' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
