"""What was measured on this machine, and what follows from it for the next answer."""

from __future__ import annotations
