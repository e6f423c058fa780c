"""Microsoft's Phi-3 family on the best processor of an AI PC."""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers know the name; importing typing costs half an interpreter's start

if TYPE_CHECKING:
    from typing import Any

    from aipc.inventory import ListedDevice, devices
    from aipc.model import Model, load
    from aipc.prepare import convert
    from aipc.verification.check import verify

__version__ = "0.1.0"

__all__ = ["ListedDevice", "Model", "__version__", "convert", "devices", "load", "verify"]

_HOMES = {
    "load": "aipc.model",
    "Model": "aipc.model",
    "convert": "aipc.prepare",
    "devices": "aipc.inventory",
    "ListedDevice": "aipc.inventory",
    "verify": "aipc.verification.check",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import aipc` alone loads nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'aipc' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
