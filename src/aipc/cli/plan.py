"""aipc plan: what a model is run with here, and why; a person may pin another choice."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from aipc.cli import console
from aipc.errors import UsageError

if TYPE_CHECKING:
    from aipc.choice import Choice
    from aipc.measurements.prediction import Prediction, Workload

GOALS = ("fast", "long", "efficient")
_HEADER = ("DEVICE", "RUNTIME", "LOAD s", "FIRST s", "PREFILL s", "DECODE s", "TOTAL s", "ENERGY J")


def add_arguments(parser: ArgumentParser) -> None:
    """The words of `aipc plan`."""
    parser.epilog = (
        "fast is a question to a model that is started for it, long a turn late in a long chat, efficient "
        "the least energy. Times are predicted from the newest record of aipc bench MODEL."
    )
    parser.add_argument("model", metavar="MODEL", help="alias (demo, phi-3-mini, ...), hub id or folder")
    parser.add_argument("--goal", choices=GOALS, default="fast", help="default: fast")
    parser.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="length of the prompt (default: the goal's)"
    )
    parser.add_argument(
        "--new-tokens", type=int, metavar="N", help="length of the answer (default: the goal's)"
    )
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--warm", action="store_const", const=True, help="the model is loaded already")
    state.add_argument(
        "--cold", action="store_const", const=False, dest="warm", help="the model is started for it"
    )
    parser.add_argument(
        "--weight-format", choices=["fp16", "int8", "int4"], help="of a checkpoint (default: int4)"
    )
    pins = parser.add_mutually_exclusive_group()
    pins.add_argument(
        "--pin", metavar="DEVICE[,RUNTIME]", help="take these from now on wherever no other are named"
    )
    pins.add_argument("--unpin", action="store_true", help="choose again")
    parser.add_argument("--json", action="store_true", help="the plan as JSON")


def run(args: Namespace) -> int:
    """Pin or unpin where that is asked for, then show the plan."""
    from aipc import choice

    workload = _workload(args)
    _require_room(args.model, workload)
    if args.pin:
        _pin(args.model, args.pin)
    if args.unpin:
        _unpin(args.model)
    made = choice.choose(args.model, weight_format=args.weight_format, goal=args.goal, workload=workload)
    if args.json:
        console.write_answer(json.dumps(_as_object(made, workload), indent=2) + "\n")
    else:
        console.write_answer("\n".join(_lines(args.model, made, workload)) + "\n")
    return 0


def _workload(args: Namespace) -> Workload:
    """What is usual for the goal, with what the words say otherwise.

    raises   UsageError
    """
    from aipc.measurements.prediction import WORKLOADS

    words = {name: getattr(args, name) for name in ("prompt_tokens", "new_tokens", "warm")}
    workload = replace(
        WORKLOADS[args.goal], **{name: value for name, value in words.items() if value is not None}
    )
    if workload.prompt_tokens < 1 or workload.new_tokens < 1:
        raise UsageError("prompt and answer have at least 1 token")
    return workload


def _require_room(model: str, workload: Workload) -> None:
    """Refuse a prompt and an answer that the model does not take.

    raises   UsageError, and as choice.choose
    """
    from aipc import choice

    room = choice.context_length(model)
    asked = workload.prompt_tokens + workload.new_tokens
    if room is not None and asked > room:
        raise UsageError(
            f"a prompt of {workload.prompt_tokens} tokens and {workload.new_tokens} new ones are {asked}; "
            f"the context of {model} is {room}",
            hint=f"--prompt-tokens {room - workload.new_tokens}"
            if workload.new_tokens < room
            else f"--new-tokens of at most {room - 1}",
        )


def _pin(model: str, words: str) -> None:
    """Pin a choice that can be taken here.

    raises   as choice.choose
    """
    from aipc import choice
    from aipc.measurements import kept

    device, _, runtime = words.partition(",")
    taken = choice.choose(model, device, runtime or None).plan.candidates[0]
    kept.pin(model, kept.Pin(taken.device.word, taken.runtime.name if runtime else None))


def _unpin(model: str) -> None:
    from aipc.measurements import kept

    if not kept.unpin(model):
        console.note(f"nothing was pinned for {model}")


def _lines(model: str, made: Choice, workload: Workload) -> list[str]:
    best = made.plan.candidates[0]
    rows = [
        (item.device.word, item.runtime.name, *_times(prediction))
        for item, prediction in zip(made.plan.candidates, made.predictions, strict=True)
    ]
    return [
        *console.aligned([_HEADER, *rows]),
        "",
        f"For {workload}: {best}.",
        f"Why: {made.why}.",
        f"aipc run {model} --device {best.device.word} --runtime {best.runtime.name}",
    ]


def _times(prediction: Prediction | None) -> tuple[str, ...]:
    if prediction is None:
        return ("-",) * 6
    times = (
        prediction.load_s,
        prediction.first_inference_s,
        prediction.prefill_s,
        prediction.decode_s,
        prediction.total_s,
    )
    joules = "-" if prediction.energy_j is None else f"{prediction.energy_j:.1f}"
    return (*(f"{seconds:.2f}" for seconds in times), joules)


def _as_object(made: Choice, workload: Workload) -> dict[str, object]:
    return {
        "workload": asdict(workload),
        "why": made.why,
        "candidates": [
            {
                "device": item.device.word,
                "runtime": item.runtime.name,
                "prediction": prediction and {**asdict(prediction), "total_s": prediction.total_s},
            }
            for item, prediction in zip(made.plan.candidates, made.predictions, strict=True)
        ],
    }
