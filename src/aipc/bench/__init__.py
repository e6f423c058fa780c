"""Every device, runtime and precision side by side: how fast, with how much memory, and which to take."""

from __future__ import annotations

from aipc.bench.cells import Cell, cells_for
from aipc.bench.measure import Benchmark, Step

__all__ = ["Benchmark", "Cell", "Step", "cells_for"]
