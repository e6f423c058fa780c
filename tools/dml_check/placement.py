"""Which provider computes which node, as ONNX Runtime logs it while it loads a model."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

DIRECTML, CPU = "DmlExecutionProvider", "CPUExecutionProvider"

_BEGIN = "VerifyEachNodeIsAssignedToAnEp] Node placements"
_SAYS = r"VerifyEachNodeIsAssignedToAnEp\]\s+"
_ALL = re.compile(_SAYS + r"All nodes placed on \[(\w+)\]\. Number of nodes: (\d+)")
_SOME = re.compile(_SAYS + r"Node\(s\) placed on \[(\w+)\]\. Number of nodes: (\d+)")
_NODE = re.compile(_SAYS + r"(\w+) \(.*\)\s*$")


@dataclass(frozen=True, slots=True)
class Placement:
    """How many nodes each provider computes, after ONNX Runtime's own changes to the graph.

    kinds   of them, by provider; empty where one computes all, as the log does not list them then
    """

    totals: dict[str, int]
    kinds: dict[str, dict[str, int]]


def placement(log: str) -> Placement:
    """What a log of everything says.

    A graph of constants has no nodes left.

    raises   ValueError if the log says nothing of it, or lists other nodes than it counts
    """
    totals: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    provider = ""
    for line in log.splitlines():
        if found := _ALL.search(line):
            totals[found[1]] += int(found[2])
        elif found := _SOME.search(line):
            provider = found[1]
            totals[provider] += int(found[2])
        elif provider and (found := _NODE.search(line)):
            kinds.setdefault(provider, Counter())[found[1]] += 1
    listed = {name: sum(each.values()) for name, each in kinds.items()}
    if _BEGIN not in log or (listed and listed != totals):
        raise ValueError(f"ONNX Runtime's log counts the nodes {dict(totals)} and lists {listed}")
    return Placement(dict(totals), {name: dict(sorted(each.items())) for name, each in kinds.items()})
