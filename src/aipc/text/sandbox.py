"""A Jinja environment for templates that are not trusted: bounded in time and in memory.

Jinja's own sandbox keeps a template away from Python, but not from the processor and the memory:
nested loops, `*`, padding, or a list that holds itself twice forty times over. Here

- only the filters and methods named below exist, and none of them can grow its input much,
  or its growth is computed beforehand (`*`, replace, join);
- everything a template makes (strings, lists, output) is paid for by its size from one budget,
  which bounds the memory and the cost of any single operation;
- every loop iteration, call and filter looks at the clock.

The hooks are put into the syntax tree before it is compiled, where a template cannot reach them.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS, do_join, do_replace
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace, pass_context, pass_eval_context
from jinja2.visitor import NodeTransformer

_FILTERS = """
    abs capitalize count d default dictsort first float int items last length list lower map max min
    reject rejectattr reverse safe select selectattr sort string title trim unique upper
"""
_STRING_METHODS = """
    capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric
    isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex
    rpartition rsplit rstrip split splitlines startswith strip swapcase title upper
"""
_METHODS: tuple[tuple[type | tuple[type, ...], frozenset[str]], ...] = (
    (str, frozenset(_STRING_METHODS.split())),
    (dict, frozenset({"copy", "get", "items", "keys", "values"})),
    ((list, tuple), frozenset({"copy", "count", "index"})),
    (LoopContext, frozenset({"cycle"})),
)
_SEQUENCES: tuple[type[Iterable[Any]], ...] = (
    list,
    tuple,
    set,
    frozenset,
    type({}.items()),
    type({}.keys()),
    type({}.values()),
)
_ELEMENT_COST = 8
_MAX_INT_BITS = 4096


class OverrunError(TemplateError):
    """A template asked for more time or memory than it is given."""


class RefusalError(TemplateError):
    """A template refused the conversation, by its own raise_exception()."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering, with Hugging Face's settings, globals and filters.

    budget     characters that the template may make in all; a list element counts as eight
    deadline   on the clock of time.thread_time(): waiting for a processor is no fault of the template
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, budget: int, deadline: float) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[LoopControlExtension, _GenerationExtension],
        )
        self._left = budget
        self._deadline = deadline
        own = {"join": self._join, "replace": self._replace, "tojson": _tojson}
        allowed = {name: FILTERS[name] for name in _FILTERS.split()} | own
        self.filters = {name: self._guarded(function) for name, function in allowed.items()}
        self.filters |= {"_emit": self._emit, "_each": self._each, "_admit": self._admitted}
        self.globals = {
            "range": safe_range,
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def metered(self, source: str) -> nodes.Template:
        """The syntax tree of a template, with the hooks in it.

        raises   jinja2.TemplateSyntaxError, RecursionError
        """
        tree: nodes.Template = _Meter(self).visit(self.parse(source))
        return tree

    def is_safe_callable(self, obj: Any) -> bool:
        """Whether a template may call it: macros, our globals, and the methods named above."""
        if isinstance(obj, Macro | Undefined) or any(obj is known for known in self.globals.values()):
            return True
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        return any(isinstance(owner, kind) and name in names for kind, names in _METHODS)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what a template calls, and pay for what goes in and comes out."""
        self = __self
        self._tick()
        if not self.is_safe_callable(__obj):
            name = getattr(__obj, "__name__", type(__obj).__name__)
            raise SecurityError(f"the template calls {name!r}, which aipc does not run")
        given = [value for key, value in kwargs.items() if key not in {"_loop_vars", "_block_vars"}]
        given += args
        if isinstance(__obj, Macro):
            given = [value for value in given if not isinstance(value, Namespace)]
        self._admit(given)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name == "replace" and len(args) >= 2:
            self._check_replace(owner, args[0], args[1])
        elif isinstance(owner, str) and name == "join" and args:
            args = (self._check_join(args[0], owner), *args[1:])
        return self._admit(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an operator whose result may be larger than its operands."""
        self._tick()
        if operator == "*":
            self._check_product(left, right)
        elif operator == "**" and not (_is_small(left) and _is_small(right)):
            raise OverrunError("the power of a large number is not computed")
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("the template formats with %, which aipc does not run")
        return self._admit(super().call_binop(context, operator, left, right))

    def _tick(self) -> None:
        if time.thread_time() > self._deadline:
            raise OverrunError("the template takes too long")

    def _pay(self, cost: int) -> None:
        self._left -= cost
        if self._left < 0:
            raise OverrunError("the template makes too much text")

    def _admit(self, value: Any) -> Any:
        """Pay for a value that the template has made; shared parts cost as often as they are met."""
        stack = [value]
        while stack:
            item = stack.pop()
            self._pay(_ELEMENT_COST)
            if isinstance(item, str):
                self._pay(len(item))
            elif isinstance(item, int):
                self._pay(item.bit_length() // 8)
            elif isinstance(item, Mapping):
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, _SEQUENCES):
                stack += item
            elif isinstance(item, Namespace) and item is not value:
                raise SecurityError("a namespace cannot be kept in another value")
        return value

    def _check_room(self, cost: int) -> None:
        if cost > self._left:
            raise OverrunError("the template makes too much text")

    def _check_product(self, left: Any, right: Any) -> None:
        for value, count in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(count, int):
                self._check_room(len(value) * max(count, 0))
        if isinstance(left, int) and isinstance(right, int):
            self._check_room(left.bit_length() + right.bit_length())
            if left.bit_length() + right.bit_length() > _MAX_INT_BITS:
                raise OverrunError("the product of large numbers is not computed")

    def _check_replace(self, text: object, old: object, new: object) -> None:
        self._check_room(str(text).count(str(old)) * len(str(new)))

    def _check_join(self, items: Iterable[Any], separator: str) -> list[Any]:
        listed = list(items)
        self._check_room(len(listed) * len(separator))
        return listed

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._tick()
            return self._admit(function(*args, **kwargs))

        return guarded

    @pass_eval_context
    def _join(self, ctx: EvalContext, value: Iterable[Any], d: str = "", attribute: Any = None) -> Any:
        return do_join(ctx, self._check_join(value, str(d)), d, attribute)

    @pass_eval_context
    def _replace(self, ctx: EvalContext, s: str, old: str, new: str, count: int | None = None) -> str:
        self._check_replace(s, old, new)
        return do_replace(ctx, s, old, new, count)

    # pass_context keeps Jinja from computing these while it compiles.
    @pass_context
    def _emit(self, _: Context, value: Any) -> str:
        self._tick()
        text = value if isinstance(value, str) else str(value)
        self._pay(len(text))
        return text

    @pass_context
    def _each(self, _: Context, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._tick()
            yield value

    @pass_context
    def _admitted(self, _: Context, value: Any) -> Any:
        if isinstance(value, Namespace):
            raise SecurityError("a namespace cannot be kept in another value")
        return self._admit(value)


class _Meter(NodeTransformer):
    """Puts the sandbox's hooks around whatever loops, makes a value or writes."""

    def __init__(self, environment: Sandbox) -> None:
        self._environment = environment

    def _hooked(self, node: nodes.Node, hook: str) -> nodes.Filter:
        hooked = nodes.Filter(node, hook, [], [], None, None, lineno=node.lineno)
        hooked.set_environment(self._environment)
        return hooked

    def _hook(self, node: nodes.Expr) -> nodes.Expr:
        return self._hooked(self.generic_visit(node), "_admit")

    visit_Concat = visit_List = visit_Dict = _hook  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:  # noqa: N802
        return self._hook(node) if node.ctx == "load" else node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        written: list[nodes.Expr] = []
        for child in node.nodes:
            constant = isinstance(child, nodes.TemplateData)
            value = nodes.Const(child.as_const(), lineno=child.lineno) if constant else child
            written.append(self._hooked(value, "_emit"))
        node.nodes = written
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.recursive:
            raise TemplateSyntaxError("aipc runs no recursive loop", node.lineno)
        self.generic_visit(node)
        node.iter = self._hooked(node.iter, "_each")
        return node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.target, nodes.NSRef) or any(node.target.find_all(nodes.NSRef)):
            node.node = self._hooked(node.node, "_admit")
        return node

    def _refuse(self, node: nodes.Node) -> nodes.Node:
        raise TemplateSyntaxError(f"a chat template has no use for {type(node).__name__}", node.lineno)

    visit_Extends = visit_Include = visit_Import = visit_FromImport = visit_Block = _refuse  # noqa: N815


class _GenerationExtension(Extension):
    """`{% generation %}`, with which Hugging Face marks what a model is trained on: here only its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _is_small(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and -64 <= value <= 64)


def _raise_exception(message: object) -> None:
    raise RefusalError(str(message)[:500])


def _strftime_now(form: str) -> str:
    # A width such as %0999999999d fills the memory, and an odd letter ends the process on some platforms.
    if not isinstance(form, str) or not re.fullmatch(r"(?:%[-#]?[a-zA-Z%]|[^%]){0,100}", form):
        raise SecurityError("the template asks for a time in a form that aipc does not write")
    return datetime.now().astimezone().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: no HTML escapes."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise SecurityError("tojson indents by 0 to 16")
    if separators is not None and any(len(separator) > 8 for separator in separators):
        raise SecurityError("the separators of tojson are longer than 8 characters")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
