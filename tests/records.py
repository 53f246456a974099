"""Records of a worker, each as a LogRecord and as what travels; templates; and how text is escaped, written plainly."""

from __future__ import annotations

import json
import logging
import math
import re
from datetime import datetime

from hypothesis import strategies as st

from aiolog.formatting import CONTINUATION
from aiolog.record import STANDARD_ATTRIBUTES
from aiolog.source import Site, Source

NOON = 1_795_420_862.25  # 2026-11-23T08:01:02.250000Z, exact as a float
NOON_NS = 1_795_420_862_123_456_789
NOON_SECOND = 1_795_420_862
START = NOON - 60

# What a peer may want to put into a line: all that str.splitlines splits at, orders to terminals, turns of direction.
NASTY = ("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\t\x00\x07\x08\x1b\x7f\x9b\u202e\u2066\u200e\u061c\ud800\udfff"
         "|% {}$\"'\\=")  # fmt: skip
pieces = st.sampled_from([*NASTY, "\t| ", "ok", "é☃😀", " x "]) | st.characters(exclude_categories=())
nasty_texts = st.lists(pieces, max_size=6).map("".join)
names = st.text(alphabet=st.sampled_from("abc.é☃😀%{$"), max_size=9)

# -- a worker's record, as a LogRecord and as what travels


def moment(created, start):
    """Return created, msecs and relativeCreated as LogRecord.__init__ computes them in CPython 3.12 and in 3.13."""
    if isinstance(created, float):
        return {
            "created": created,
            "msecs": int((created - int(created)) * 1000) + 0.0,
            "relativeCreated": (created - start) * 1000,
        }
    msecs = (created % 1_000_000_000) // 1_000_000 + 0.0
    if msecs == 999.0 and int(created / 1e9) != created // 1_000_000_000:
        msecs = 0.0
    return {"created": created / 1e9, "msecs": msecs, "relativeCreated": (created - start) / 1e6}


class Worker:
    """One record in its worker, and the source and wire record that the server has of it."""

    def __init__(self, *, created=NOON, site=None, thread=(7, "MainThread"), message="hello", extra=None, **given):
        self.created, self.message = created, message
        self.thread, self.extra = thread, extra or {}
        self.site = Site(*(site or ("app.db", 20, "INFO", "/srv/app/db.py", "db.py", "db", 42, "query")))
        self.pid, self.process_name = given.pop("process", 123), given.pop("processName", "MainProcess")
        self.start = START if isinstance(created, float) else int(START * 1e9)
        self.source = Source(
            app=given.pop("app", "shop"),
            host="web1",
            pid=self.pid,
            process_name=self.process_name,
            labels=given.pop("labels", None),
            start_time=self.start,
        )
        self.source.define(self.site)
        self.source.define(self.thread)
        self.rare = {key: value for key, value in given.items() if value}

    def record(self):
        """Return the LogRecord as it was in the worker."""
        return logging.makeLogRecord(
            {
                **self.site._asdict(),
                **moment(self.created, self.start),
                "msg": self.message,
                "args": None,  # they never travel
                "thread": self.thread[0],
                "threadName": self.thread[1],
                "process": self.pid,
                "processName": self.process_name,
                "exc_text": None,
                "stack_info": None,
                "taskName": None,
                **self.rare,
                **self.extra,
            }
        )

    def wire(self, *, in_place=False):
        rare = dict(self.rare)
        if self.extra:
            rare["extra"] = [item for pair in self.extra.items() for item in pair]
        if not isinstance(self.created, float) and moment(self.created, 0)["msecs"] != (self.created % 10**9 // 10**6):
            rare["msecs"] = 0.0  # as the handler sends it: this one does not follow
        site, thread = (tuple(self.site), tuple(self.thread)) if in_place else (0, 1)
        wire = (self.created, site, thread, self.message)
        return (*wire, rare) if rare else wire

    def lines(self, layout):
        """Return the text of the record as the first of its site, as a later one, and with all fields in place."""
        return layout(self.source, [self.wire(), self.wire(), self.wire(in_place=True)])


floats = st.floats(min_value=0.0, max_value=4e9, allow_nan=False)
nanoseconds = st.one_of(
    st.integers(min_value=0, max_value=4 * 10**18),
    # Where ns / 1e9 rounds up to the next second.
    st.builds(lambda s, n: s * 10**9 + n, st.integers(1, 2**31), st.integers(999_998_990, 999_999_999)),
)


@st.composite
def workers(draw, texts=names, created=floats | nanoseconds):
    """Draw a record of an honest worker."""
    optional = st.none() | texts
    levels = [(10, "DEBUG"), (20, "INFO"), (25, "NOTICE"), (40, "ERROR"), (-1, "ODD"), (7, draw(texts))]
    levelno, levelname = draw(st.sampled_from(levels))
    site = (draw(texts), levelno, levelname, draw(texts), draw(texts), draw(texts), draw(st.integers(0, 9999)),
            draw(optional))  # fmt: skip
    values = texts | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.booleans() | st.none()
    return Worker(
        created=draw(created),
        site=site,
        thread=(draw(st.none() | st.integers(0, 2**63)), draw(optional)),
        message=draw(texts),
        process=draw(st.none() | st.integers(0, 2**22)),
        processName=draw(optional),
        exc_text=draw(st.none() | texts | texts.map(lambda trace: f"Traceback\n  {trace}\n")),
        stack_info=draw(st.none() | texts | texts.map(lambda stack: f"Stack\n{stack}")),
        taskName=draw(optional),
        extra=draw(st.dictionaries(st.sampled_from(["user", "ratio"]) | texts, values, max_size=3)
                   .map(lambda found: {k: v for k, v in found.items() if k not in STANDARD_ATTRIBUTES})),
    )  # fmt: skip


# -- templates

TEXTS = ["name", "levelname", "pathname", "filename", "module", "processName", "message", "msg", "asctime"]
NULLABLE = ["funcName", "threadName", "exc_text", "stack_info", "taskName", "exc_info", "args", "user"]
INTS = ["levelno", "lineno"]
FLOATS = ["created", "msecs", "relativeCreated"]
PERCENT = {
    "text": ["s", "-8s", "12s", ".3s", "r", "a", "6.2s"],
    "any": ["s", "r", "-10s"],
    "int": ["d", "s", "05d", "+i", "x", "#o", "8.3f", "ld"],
    "float": ["f", "s", "d", ".3f", "03d", "g", "-12.1e"],
}
BRACE = {
    "text": ["", "!r", "!s", "!a", ":>10", ":.3", "!r:^12", ":*<9s", ".upper"],
    "any": ["", "!r", "!s:<8", "!a"],
    "int": ["", ":05d", ":x", "!r", ":,", ":+"],
    "float": ["", ":.3f", ":03.0f", ":e", "!s:>20", ":,.2f"],
}
KINDS = [(name, kind) for kind, group in
         [("text", TEXTS), ("any", [*NULLABLE, "process", "thread"]), ("int", INTS), ("float", FLOATS)]
         for name in group]  # fmt: skip


def field(style, name, kind, choice):
    if style == "%":
        return f"%({name}){PERCENT[kind][choice % len(PERCENT[kind])]}"
    if style == "{":
        form = BRACE[kind][choice % len(BRACE[kind])]
        if form == ".upper":
            return f"{{{name}.__class__}}"
        return f"{{{name}{form}}}"
    return f"${{{name}}}" if choice % 2 else f"${name}"


def literal(style, raw):
    return raw.replace("%", "%%") if style == "%" else re.sub(r"([{}])" if style == "{" else r"(\$)", r"\1\1", raw)


# Blanks around a literal, so that "$name" ends where it should.
literals = st.sampled_from([" ", " - ", " [", "] ", " 100% ", " {x} ", " $1 ", " é☃ ", " %(a)s ", "\n", " \t| "])


@st.composite
def templates(draw):
    """Draw a style and a template: any fields in any order, or the usual order with anything in between."""
    style = draw(st.sampled_from("%{$"))
    fields = st.sampled_from(KINDS)
    if draw(st.booleans()):
        chosen = draw(st.lists(st.tuples(fields, st.integers(0, 99)), min_size=1, max_size=6))
    else:
        constant = st.lists(st.tuples(fields.filter(lambda f: f[0] in SITE_BOUND), st.integers(0, 99)), max_size=2)
        plain = st.sampled_from([[], [(("asctime", "any"), 0)], [(("msecs", "float"), 4)],
                                 [(("asctime", "any"), 0), (("msecs", "float"), 4)]])  # fmt: skip
        thread = st.lists(st.tuples(st.sampled_from([("thread", "any"), ("threadName", "any")]),
                                    st.integers(0, 99)), max_size=2)  # fmt: skip
        chosen = [
            *draw(constant), *draw(plain), *draw(constant), *draw(thread), *draw(constant),
            (("message", "any"), 0), *draw(constant),
        ]  # fmt: skip
    made = [draw(st.sampled_from(["", "> ", "\t"]))]
    for (name, kind), choice in chosen:
        made += [field(style, name, kind, choice), literal(style, draw(literals))]
    return style, "".join(made)


SITE_BOUND = {*TEXTS, *INTS, "funcName", "taskName", "exc_text", "process"} - {"message", "msg", "asctime"}
datefmts = st.sampled_from([None, None, "%H:%M:%S", "%d/%b/%Y:%H:%M:%S %z", "%x %%", "at %n%t%H", "\t%H"])


def standard(worker, template, style, datefmt, *, defaults=None, zone=None):
    """Return what logging.Formatter gives in the worker; an extra that is not there is "-"."""
    formatter = logging.Formatter(template, datefmt, style, defaults={"user": "-"} | (defaults or {}))
    if zone:
        formatter.converter = lambda created: datetime.fromtimestamp(math.floor(created), zone).timetuple()
    return formatter.format(worker.record())


def reference_escape(raw, newline="\n" + CONTINUATION):
    """Escape character by character, as the rule is written; slow and plain."""
    keep = {"\t": "\t", "\n": newline}
    lines = set("\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
    turns = {chr(code) for code in [0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]}
    made = []
    for char in raw:
        code = ord(char)
        control = code < 0x20 or 0x7F <= code <= 0x9F
        if char in keep:
            made.append(keep[char])
        elif control or char in lines or char in turns or 0xD800 <= code <= 0xDFFF:
            made.append(f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
        else:
            made.append(char)
    line = "".join(made)
    return "\\x09" + line[1:] if line.startswith("\t") else line


def parse_logfmt(line):
    """Read a line of logfmt by its grammar."""
    assert line.endswith("\n")
    pair = re.compile(r'([^ ="\\]+)=("(?:[^"\\]|\\.)*"|[^ ="\\]*)(?: |$)')
    found, end = [], 0
    while end < len(line) - 1:
        match = pair.match(line[:-1], end)
        assert match, line[end:]
        key, value = match.groups()
        found.append((key, json.loads(value) if value.startswith('"') else value))
        end = match.end()
    return found
