"""The house stands as docs/design.md draws it: arrows point down only, and each library has one door."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "aiolog"

# From the ground up: a module, what it may import of aiolog, and which libraries it may touch. A row may name only
# what stands above it, so there are no cycles, and nobody imports upward.
LAYERS = """
    errors        |                                                      |
    crash         |                                                      |
    report        |                                                      |
    context       |                                                      |
    labels        |                                                      |
    redaction     |                                                      |
    coerce        |                                                      |
    source        | coerce                                               |
    record        | coerce source                                        |
    rotation      | errors                                               |
    checksum      |                                                      | isal
    ledger        | errors crash checksum                                |
    routing       | errors                                               |
    config        | errors routing                                       | msgspec
    formats       | source record                                        |
    formats.escaping    |                                                |
    formats.layout      | source record formats                          |
    formats.templates   | errors                                         |
    formats.text        | errors source record formats formats.escaping  |
                        | formats.layout formats.templates               |
    formats.schemas     | source                                         |
    formats.structured  | errors coerce source record formats            |
                        | formats.escaping formats.layout                |
                        | formats.schemas                                |
    formatting    | source formats formats.escaping formats.schemas      |
                  | formats.text formats.structured                      |
    filters       | errors source record formatting                      |
    protocol      | errors                                               | msgpack
    backlog       | errors protocol                                      |
    segments      | errors crash protocol                                |
    spool         | errors crash protocol backlog segments               |
    sender        | errors crash protocol backlog                        |
    recovery      | errors crash segments spool sender                   |
    handler       | context labels redaction record protocol backlog     |
                  | spool sender recovery                                |
    configure     | labels handler                                       |
    auto          | configure                                            |
    testing       | errors source record protocol                        |
    contrib       |                                                      |
    contrib.gunicorn | configure                                         |
    contrib.django | configure                                           |
    contrib.celery | configure context handler                           | celery
    contrib.foreign | configure                                          |
    contrib.structlog | contrib.foreign                                  | structlog
    contrib.loguru | contrib.foreign                                     |
    fanout        | errors source record report                          |
    ordering      | record report fanout                                 |
    sinks         | source record fanout                                 |
    backups       | errors crash rotation ledger                         | compression backports
    livefile      | errors crash rotation checksum ledger backups        |
    sinks.file    | errors formatting livefile fanout sinks              | aiofiles
    sinks.routed  | errors source record rotation routing formatting     | aiofiles
                  | backups livefile ledger fanout sinks sinks.file      |
    sinks.stdout  | errors source record formatting fanout sinks         |
    connection    | errors crash report coerce source record checksum    |
                  | protocol fanout                                      |
    reading       | protocol                                             |
    server        | errors report source record protocol fanout reading  |
                  | connection                                           |
    control       | errors config                                        |
    http          | errors control fanout server                         | aiohttp prometheus_client
    service       | errors report source rotation routing config         | msgspec uvloop
                  | formatting filters livefile fanout ordering sinks    |
                  | sinks.file sinks.routed sinks.stdout connection      |
                  | server http recovery                                 |
    probe         | errors protocol                                      |
    doctor        | errors handler probe                                 |
    demo          | errors rotation handler probe                        | rich compression backports
    cli           | errors config recovery handler service control       | click rich
                  | configure probe doctor demo                          |
"""
ALLOWED: dict[str, set[str]] = {}
LIBRARIES: dict[str, set[str]] = {}
for row in LAYERS.strip().splitlines():
    name, above, libraries = row.split("|")
    name = name.strip() or list(ALLOWED)[-1]
    ALLOWED.setdefault(name, set()).update(above.split())
    LIBRARIES.setdefault(name, set()).update(libraries.split())
ORDER = list(ALLOWED)

FORMATS = {name for name in ALLOWED if name.partition(".")[0] == "formats"}
PURE = {"errors", "context", "labels", "redaction", "coerce", "source", "record", "protocol", "backlog"}
PURE |= {"rotation", "routing", "checksum", "formatting", "filters", "config", "report", *FORMATS}
IMPURE = {"asyncio", "socket", "threading", "selectors", "select", "time"}
CONVERSIONS = {  # of IMPURE, and yet they only convert what they are given
    "formats.templates": {"localtime", "strftime"},
    "routing": {"gmtime", "strftime"},
    "formats.text": {"localtime", "strftime", "struct_time"},
}
BOTH_SIDES = {"service", "cli"}  # may know the server as well as the sinks


def modules():
    """Return the source files of the package by module name, the package itself as ""."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
IN_TABLE = sorted(MODULES.keys() - {"", "__main__"})


@cache
def parsed(name):
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imports(name, *, with_type_checking=True):
    """Yield what a module imports, at its top and inside functions, as (module, names)."""
    tree = parsed(name)
    skipped = set()
    if not with_type_checking:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, set()
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute here"
            yield node.module, {alias.name for alias in node.names}


def own_imports(name):
    """Return the modules of aiolog that a module imports: ``aiolog.sinks.file`` as ``sinks.file``."""
    found = set()
    for module, names in imports(name):
        if module.split(".")[0] != "aiolog":
            continue
        inner = module.partition(".")[2]
        submodules = {f"{inner}.{one}".lstrip(".") for one in names} & MODULES.keys()
        found |= submodules or {inner}
    return found - {""}  # the package itself loads nothing, see below


def outer_imports(name):
    return {module.split(".")[0] for module, _ in imports(name)} - {"aiolog"}


def reachable(name):
    """Return all modules of aiolog that are loaded when this one is."""
    found, waiting = set(), [name]
    while waiting:
        for other in own_imports(waiting.pop()) - found:
            found.add(other)
            waiting.append(other)
    return found


def test_every_module_has_a_place():
    """A new file gets a row in the table, at the height where it belongs; a file that is gone, none."""
    assert set(IN_TABLE) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_rows_name_only_what_stands_above_them(name):
    """The table itself points one way, so that there can be no cycle."""
    assert ALLOWED[name] <= set(ORDER[: ORDER.index(name)])


@pytest.mark.parametrize("name", IN_TABLE)
def test_a_module_imports_only_what_its_row_allows(name):
    """Of aiolog's own modules; at the top of the file and anywhere inside it."""
    assert own_imports(name) <= ALLOWED[name]


@pytest.mark.parametrize("name", IN_TABLE)
def test_a_library_is_touched_only_by_its_modules(name):
    """msgpack by the protocol, aiohttp by the HTTP side, click by the commands, and so on."""
    assert outer_imports(name) - sys.stdlib_module_names <= LIBRARIES[name]


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_are_pure(name):
    """No socket, no thread, no event loop and no clock: what time it is, is passed in."""
    for module, names in imports(name):
        if module.split(".")[0] in IMPURE:
            assert names, f"{name} imports all of {module}"
            assert names <= CONVERSIONS.get(name, set())


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_rest_on_pure_modules(name):
    """What they import of aiolog is pure as well."""
    assert reachable(name) <= PURE


@pytest.mark.parametrize("name", [name for name in IN_TABLE if name.startswith("sinks")])
def test_a_sink_knows_no_socket_no_server_and_no_configuration(name):
    """Neither itself nor through what it imports."""
    assert "socket" not in outer_imports(name)
    assert not reachable(name) & {"protocol", "connection", "server", "config", "handler", "sender", "cli", "service"}


@pytest.mark.parametrize("name", sorted(set(IN_TABLE) - BOTH_SIDES))
def test_only_the_commands_know_the_server_and_the_sinks(name):
    """They are joined in one place; everywhere else, one of the two can be taken away."""
    known = reachable(name) | {name}
    assert not ({"server", "connection"} & known and {one for one in known if one.startswith("sinks")})


@pytest.mark.parametrize("name", ["configure", "handler", "sender", "backlog"])
def test_the_client_needs_nothing_of_the_server(name):
    """A worker that only logs pays for no server, in imports or in dependencies."""
    known = reachable(name)
    assert known <= {
        "errors", "crash", "context", "labels", "redaction", "coerce", "source", "record", "protocol", "backlog",
        "segments", "spool", "sender", "recovery", "handler",
    }  # fmt: skip
    libraries = set().union(*(outer_imports(one) for one in known | {name})) - sys.stdlib_module_names
    assert libraries <= {"msgpack"}
    assert "asyncio" not in set().union(*(outer_imports(one) for one in known | {name}))


def test_the_package_itself_is_lazy():
    """``import aiolog`` loads no module of aiolog and none of anybody else's."""
    assert {module for module, _ in imports("", with_type_checking=False)} <= {"__future__", "importlib"}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_format_knows_no_sink_and_no_configuration(name):
    """Formats are reached through their door, and know nobody above it."""
    assert reachable(name) <= {"errors", "coerce", "source", "record"} | FORMATS
    users = {user for user in IN_TABLE if own_imports(user) & FORMATS}
    assert users <= FORMATS | {"formatting"}


def test_names_say_what_is_in_a_file():
    """No drawer for what nobody found a place for."""
    names = {part for name in MODULES for part in name.split(".")}
    assert not names & {"utils", "util", "common", "manager", "base", "helpers", "misc", "core"}


@pytest.mark.parametrize("name", IN_TABLE)
def test_a_module_says_what_it_is(name):
    """A file opens with a docstring whose first line is a sentence."""
    docstring = ast.get_docstring(parsed(name))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))
