"""Good, suspicious or broken, from what the measures say."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from aipc.verdicts import Verdict
from aipc.verification.losses import Loss
from aipc.verification.stored import MatrixError

# Mean KL divergence in nats: up to the first, weights of a format lose what their bits cost; beyond the
# second they answer as another model would. docs/verified.md has the measurements behind all these numbers.
LIMITS = {"fp16": (0.01, 0.1), "int8": (0.03, 0.3), "int4": (0.2, 0.5)}

# The same between the device and its folder's own weights, computed in float32.
DEVICE_LIMIT = 0.1

# A matrix this far from the original's is another one: 4 bits with a scale for a whole row cost up to 0.25.
OTHER_MATRIX = 0.5

# The runtime takes another token than the model scores likeliest, and by this much, in nats: rounding is
# a tenth of it.
OTHER_TOKEN = 1.0


def level(losses: Sequence[Loss], precision: str) -> Verdict:
    """The verdict by the worst length alone.

    precision      of the weights; what is not known is judged as int4
    """
    good, suspicious = LIMITS.get(precision, LIMITS["int4"])
    worst = _worst(losses).kl_mean
    return "good" if worst <= good else "suspicious" if worst <= suspicious else "broken"


def judge(
    losses: Sequence[Loss],
    precision: str,
    other_tokens: Sequence[int],
    matrices: Sequence[MatrixError],
    device_losses: Sequence[Loss],
) -> tuple[Verdict, list[str]]:
    """The verdict and its reasons, a sentence each.

    losses          for each length
    other_tokens    lengths at which the runtime answered with another token than the scores say
    matrices        all that were compared
    device_losses   of the device's scores against what the folder's own weights give; possibly none
    """
    verdict = level(losses, precision)
    others = other_matrices(matrices)
    reasons = [] if verdict == "good" else [_loss_sentence(_worst(losses), precision)]
    if others:
        reasons.append(_matrix_sentence(others, len(matrices)))
    if others and verdict == "good":
        verdict = "suspicious"
        reasons.append("methods such as AWQ move scales between matrices, and change them so on purpose")
    elif others or other_tokens:
        verdict = "broken"
    if other_tokens:
        lengths = ", ".join(map(str, sorted(set(other_tokens))))
        reasons.append(f"at {lengths} tokens the runtime answers otherwise than the model scores")
    if device_losses:
        reasons.append(_device_sentence(_worst(device_losses), matrices))
    return verdict, reasons


def other_matrices(matrices: Sequence[MatrixError]) -> list[MatrixError]:
    """Those that are too far from the original's for any quantisation."""
    return [matrix for matrix in matrices if not matrix.relative_error <= OTHER_MATRIX]


def _worst(losses: Sequence[Loss]) -> Loss:
    return max(losses, key=lambda loss: loss.kl_mean)


def _loss_sentence(worst: Loss, precision: str) -> str:
    if not worst.finite:
        return f"at {worst.tokens} tokens the scores are not numbers"
    limit = LIMITS.get(precision, LIMITS["int4"])[0]
    return (
        f"at {worst.tokens} tokens the KL divergence is {worst.kl_mean:.3g} nats; up to {limit:g} is what "
        f"{precision if precision in LIMITS else 'such'} weights may cost"
    )


def _matrix_sentence(others: Sequence[MatrixError], compared: int) -> str:
    named = ", ".join(f"{m.name.removesuffix('.weight')} ({m.relative_error:.2f})" for m in others[:4])
    more = f" and {len(others) - 4} more" if len(others) > 4 else ""
    return (
        f"{len(others)} of {compared} matrices are not the original's, by their relative error: {named}{more}"
    )


def _device_sentence(worst: Loss, matrices: Sequence[MatrixError]) -> str:
    if worst.kl_mean <= DEVICE_LIMIT:
        error = median(matrix.relative_error for matrix in matrices)
        return (
            "the device computes what the folder's weights say: the loss is in them. Their relative error is "
            f"{error:.2g}; rounding to 4 bits in groups of 128 costs 0.12, to 8 bits 0.01"
        )
    return (
        f"the folder's weights are not to blame: at {worst.tokens} tokens the device is {worst.kl_mean:.3g} "
        "nats from what they give in float32. Another driver or runtime may compute rightly"
    )
