"""The program that renders chat templates, a process of its own that `jmi.tokenizers.renderer` starts.

Jinja's sandbox keeps a template from files and from Python, but not from using all time and memory: ranges
within each other, ``9**9**9``, lists that hold themselves twice. So nothing of jmi is in this process, its
memory is bounded where the system can do that, and who started it ends it when time is over.

Requests come as one line of JSON each, and so go the answers. The environment is that of transformers 5.24.
"""

import contextlib
import datetime
import functools
import json
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

MOST_CHARACTERS = 2**24
"""Characters of the longest text that comes back, 16 million."""

MOST_MEMORY = 2**30
"""Bytes of memory of this process, 1 GiB, on systems that can bound it (Linux)."""

LONGEST_MESSAGE = 1000


class Refused(jinja2.TemplateError):
    """What a template says by ``raise_exception``."""


class TooLongError(Exception):
    """More text than `MOST_CHARACTERS`."""


class Generation(jinja2.ext.Extension):
    """``{% generation %}`` around what the model says; keeps where each stands in the text.

    Attributes:
      written: characters of the text so far.
      placed: whether there are such blocks, each in the text itself; what stands in a macro is rendered
        before the text around it, so that its place is not known.
      blocks: (start, text) of each block; None unless they are placed.
    """

    tags = {"generation"}  # noqa: RUF012  jinja's own form

    def __init__(self, environment: jinja2.Environment):
        super().__init__(environment)
        self.placed = False
        self.begin()

    def begin(self) -> None:
        """Forget the text before."""
        self.written = 0
        self.blocks: list[tuple[int, str]] | None = [] if self.placed else None

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        text = caller()
        if self.blocks is not None:
            self.blocks.append((self.written, text))
        return text


class Dict:
    """``dict`` in a template, without the attributes that a class has."""

    def __call__(self, *given: Any, **named: Any) -> dict[Any, Any]:
        return dict(*given, **named)

    def fromkeys(self, *given: Any) -> dict[Any, Any]:
        """As of a dict."""
        return dict.fromkeys(*given)


class Namespace(jinja2.utils.Namespace):
    """``namespace`` in a template; names with an underscore before are Python's own and refused."""

    def __init__(*given: Any, **named: Any) -> None:
        self, *rest = given  # so that one may hold a name "self", as jinja's own
        held = dict(*rest, **named)
        for name in held:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, held)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"a namespace of a template may not hold {name!r}")


def _raise(message: Any) -> None:
    raise Refused(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _hidden(tree: jinja2.nodes.Template) -> bool:
    """Whether a generation block is in a part that is rendered by itself, such as a macro."""
    nodes = jinja2.nodes
    outer = tree.find_all((nodes.Macro, nodes.FilterBlock, nodes.AssignBlock, nodes.For, nodes.CallBlock))
    for node in outer:
        apart = not isinstance(node, nodes.For) or node.recursive
        ours = isinstance(node, nodes.CallBlock) and isinstance(node.call.node, nodes.ExtensionAttribute)
        if apart and not ours and node.find(nodes.ExtensionAttribute):
            return True
    return False


@functools.lru_cache(maxsize=32)
def compiled(text: str) -> tuple[jinja2.Template, Generation, frozenset[str]]:
    """A template, what marks its blocks, and the names it reads."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": Namespace,
    }
    marks = next(each for each in environment.extensions.values() if isinstance(each, Generation))
    tree = environment.parse(text)
    marks.placed = tree.find(jinja2.nodes.ExtensionAttribute) is not None and not _hidden(tree)
    reads = jinja2.meta.find_undeclared_variables(tree)
    return environment.from_string(text), marks, frozenset(reads)


def rendered(template: str, variables: Mapping[str, Any], must_read: list[str]) -> dict[str, Any]:
    """The answer: ``text`` and ``blocks``, or ``unread``: names in ``must_read`` that the template does not.

    Raises:
      Exception: whatever the template makes happen.
    """
    found, marks, reads = compiled(template)
    unread = sorted({*must_read} - reads)
    if unread:
        return {"unread": unread, "reads": sorted(reads)}
    marks.begin()
    pieces = []
    for piece in found.generate(variables):
        pieces.append(piece)
        marks.written += len(piece)
        if marks.written > MOST_CHARACTERS:
            raise TooLongError(f"more than {MOST_CHARACTERS:,} characters")
    return {"text": "".join(pieces), "blocks": marks.blocks}


def answer(line: str) -> str:
    """The answer to one request; ``refused`` by the template itself, or ``failed`` by what it does."""
    try:
        return json.dumps(rendered(**json.loads(line)))
    except Refused as error:
        return json.dumps({"refused": str(error)[:LONGEST_MESSAGE]})
    except Exception as error:
        said = str(getattr(error, "message", None) or error)[:LONGEST_MESSAGE]
        where = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        return json.dumps({"failed": type(error).__name__, "message": said + where})


def main() -> None:
    """Answer until there are no more requests."""
    # An interruption is for the process that asks; it ends this one if an answer is under way.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        print(answer(line), flush=True)


if __name__ == "__main__":
    main()
