"""The demo model that ships with aipc: a tiny Phi-3, trained by tools/train_demo.py.

This folder is a checkpoint as the Hugging Face hub would hold it; its README.md is the model card.
"""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The folder of the checkpoint."""
    return Path(__file__).resolve().parent
