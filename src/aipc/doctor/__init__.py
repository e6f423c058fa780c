"""What can be wrong between a model and an answer: one check a line, each with what mends it."""

from __future__ import annotations

from aipc.doctor.model import model_checks
from aipc.doctor.processors import processor_checks
from aipc.doctor.report import anonymous, header
from aipc.doctor.software import cache_checks, runtime_checks
from aipc.types import Check

__all__ = ["anonymous", "checkup", "header"]


def checkup(model: str | None = None) -> list[Check]:
    """Every check that applies to this machine, and to a model if one is named.

    raises   ModelNotFoundError, CheckpointError for a model that is none
    """
    # What is asked by name comes first: a wrong name is found before anything takes time.
    about_model = model_checks(model) if model is not None else []
    return [*processor_checks(), *runtime_checks(), *cache_checks(), *about_model]
