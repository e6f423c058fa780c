"""How a model scores an answer that is given, written for the caller, in the process that computes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from aipc.runtimes.engine import Outbox, Request


def write_scores(request: Request, scores: Iterable[np.ndarray], outbox: Outbox) -> None:
    """Save the scores at each token of `request.forced`, [tokens, vocab_size] float32, where it says.

    scores   [vocab_size] before each token, as they are computed
    raises   what computing them raises, and OSError; then there is no file
    """
    assert request.forced is not None  # noqa: S101 - the caller asked before
    rows = []
    for row, token in zip(scores, request.forced.ids, strict=True):
        rows.append(row)
        # A sign of life: a whole answer may take longer than the caller waits for one.
        outbox.ids(request.number, [token], end=False)
    np.save(request.forced.path, np.stack(rows))
