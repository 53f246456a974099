"""Path templates: what a peer says chooses a file below a directory, and nothing else."""

from __future__ import annotations

import os
import re
import time
from pathlib import PurePosixPath

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aiolog.backups import PARTIAL
from aiolog.errors import ConfigError
from aiolog.livefile import Keeping, LiveFile
from aiolog.rotation import SUFFIXES, Retention, Rotation, next_backup, split_backup
from aiolog.routing import MAX_COMPONENT_CHARS, MAX_NAME_BYTES, OTHER, OWN_TAIL_BYTES, PathTemplate, safe

VALUES = {"app": "shop", "host": "web1", "logger": "shop.orders", "process": "worker-1", "level": "INFO"}
TEMPLATES = ("{app}/{logger}.log", "{app}-{logger}.log", "a{level}b{app}/{host}", "{logger}-{date}.log",
             "{date}/{process}{app}.x", "{app}{logger}")  # fmt: skip

names = st.one_of(
    st.text(max_size=20),
    st.text(alphabet="ab-._~/", max_size=6),
    st.sampled_from(["", ".", "..", "../x", "/etc/passwd", "a\\..\\b", "a\0b", "con", "a" * 300, "ａ", "a%2f..%2fb",
                     "é", "e\u0301", "x.", "x ", OTHER, "-", "~", "a~0123456789abcdef", "\ud800", ".x.ledger",
                     "app.log.20261123T080102Z.0000", "app.log.20261123T080102Z.0000.zst.tmp"]),
)  # fmt: skip
values = st.fixed_dictionaries(dict.fromkeys(VALUES, names))


def test_what_names_become():
    """Ordinary names stay as they are; the rest can be read, and told apart."""
    template = PathTemplate("logs/{app}/{logger}.log")
    assert str(template.root) == "logs"
    assert template.resolve(VALUES) == "shop/shop.orders.log"
    assert template.resolve({**VALUES, "app": ""}) == "-/shop.orders.log"
    assert re.fullmatch(r"_\._.._etc~[0-9a-f]{16}/shop.orders.log", template.resolve({**VALUES, "app": "../../etc"}))
    assert template.fallback == "_other/_other.log"


@pytest.mark.parametrize("text", TEMPLATES)
@given(first=values, second=values)
def test_two_names_never_share_a_file(text, first, second):
    """Whatever peers call themselves, two who differ in what the template names have two files, below the root."""
    template = PathTemplate(f"logs/{text}")
    fields = set(re.findall(r"{(\w+)}", text)) - {"date"}
    paths = [template.dated(template.resolve(one), "2026-11-28") for one in (first, second)]
    assert (paths[0] == paths[1]) == all(first[field] == second[field] for field in fields)
    for path in paths:
        assert len(PurePosixPath(path).parts) == template.depth
        for part in path.split("/"):
            assert re.fullmatch(r"[A-Za-z0-9._@+=,~-]+", part, re.ASCII)
            assert not part.startswith(".")
            assert len(part) <= MAX_COMPONENT_CHARS
            assert split_backup(part) is None
        assert path != template.dated(template.fallback, "2026-11-28")
        assert template.dated(template.family(path), "2026-11-28") == path


@given(first=names, second=names)
def test_a_safe_name_is_injective(first, second):
    """Two names become two names, at any length that a component may have."""
    for limit in (40, 200):
        assert (safe(first, limit) == safe(second, limit)) == (first == second)
        assert len(safe(first, limit)) <= limit


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("logs/{ap}.log", "{ap} is no field. The fields are {app}, {host}"),
        ("logs/{}.log", "{} is no field"),
        ("logs/{app!r}.log", "is no field"),
        ("logs/{app:>20}.log", "is no field"),
        ("logs/{app.name}.log", "is no field"),
        ("logs/{app", "'}'"),
        ("logs/{app}/../x", "'..' behind a field"),
        ("logs/{app}{logger}{host}{process}{level}{date}", "too little room"),
        ("logs/" + "x" * 180 + "{app}", "too little room"),
        ("logs/{date:%Y/%m}.log", "a date with a slash would be two names"),
        ("logs/{date:%Y-%-m}.log", "are not all of one length"),
        ("logs/{date:%e}.log", "are not all of one length"),
        ("logs/{date:%-H}.log", "are not all of one length"),
        (
            "logs/" + "a" * 222 + ".log",
            "has 226 bytes, and a name has at most 225, with room for the names of its backups",
        ),
        ("logs/" + "ü" * 111 + ".log", "has 226 bytes"),
        ("d" * 256 + "/app.log", "has 256 bytes, and a name has at most 255. Shorten it"),
        ("d" * 256 + "/{app}.log", "has 256 bytes"),
        ("ü" * 90 + "{app}.log", "too little room"),
        ("logs/{date:" + "%A" * 40 + "}.log", "the date in"),
    ],
)
def test_what_is_no_template_is_refused(text, said):
    """In one sentence that says what to write."""
    with pytest.raises(ConfigError) as caught:
        PathTemplate(text)
    assert said in str(caught.value)


def test_a_plain_path_has_no_fields():
    """Braces that stand twice are braces, and a plain path is its own fallback."""
    template = PathTemplate("/var/{{x}}/app.log")
    assert template.is_plain
    assert template.root / template.fallback == PurePosixPath("/var/{x}/app.log")


def test_what_is_no_name_is_told_at_once():
    """A peer may choose names whose ledgers look like them in a million ways."""
    template = PathTemplate("logs/{app}-{logger}-{host}-{process}.log")
    began = time.process_time()
    assert template.family("." + "-" * 190 + ".log.ledger") is None
    assert time.process_time() - began < 0.05  # it was 0.2 s, with the interpreter's lock held


def test_a_date_can_be_anywhere():
    """Its form is strftime's, and a path is known again under any date."""
    template = PathTemplate("logs/{date:%Y}/{date:%Y}-{app}.log")
    assert template.has_date
    path = template.resolve(VALUES)
    assert template.dated(path, "2026") == "2026/2026-shop.log"
    assert template.family("2025/2025-shop.log") == path
    assert template.family("20x5/2025-shop.log") is None
    assert template.family("2025-shop.log") is None


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("logs/app.log", "logs/app.log", True),
        ("logs/app.log", "logs/{app}.log", True),
        ("logs/errors.log", "logs/{app}.txt", False),
        ("logs/a/app.log", "logs/{app}.log", False),
        ("logs/{app}.log", "logs/{logger}-x.log", True),
        ("logs/a-{app}.log", "logs/b-{logger}.log", False),
        ("logs/{app}/x.log", "logs/{logger}/y.log", False),
        ("logs/{app}/x.log", "logs/shop/{logger}.log", True),
        ("a/{app}.log", "b/{app}.log", False),
    ],
)
def test_two_templates_that_could_meet(one, other, expected):
    """No sink may come to write, rotate or remove what is another's."""
    assert PathTemplate(one).may_meet(PathTemplate(other)) is expected
    assert PathTemplate(other).may_meet(PathTemplate(one)) is expected


@pytest.mark.parametrize("text", TEMPLATES)
@given(first=values)
def test_templates_that_cannot_meet_do_not(text, first):
    """What comes of a template meets every literal path that it says it may."""
    template = PathTemplate(f"logs/{text}")
    path = template.dated(template.resolve(first), "2026-11-28")
    assume("{" not in path)
    assert template.may_meet(PathTemplate(f"logs/{path}"))


def beside(directory, name):
    """Return the names of all that a live file ever has beside it, as those who make them make them."""
    live = LiveFile(
        directory / name,
        Keeping(Rotation(), Retention(), "", "written", session_ttl_seconds=1.0, max_sessions=1),
        whole_records=lambda data: [len(data)],
        backups_thread=None,
        clock=lambda: 0.0,
        warn=pytest.fail,
    )
    backup = next_backup(name, 1_795_420_862, [])
    found = [live.ledger.path.name, live.ledger.path.name + ".new"]
    found += [backup + suffix + partial for suffix in SUFFIXES.values() for partial in ("", PARTIAL)]
    (directory / name).write_bytes(b"torn")
    live._descriptor = os.open(directory / name, os.O_RDONLY)
    found += [live._move_torn(0, 4, 1_795_420_862.0).name for _ in range(2)]
    live.close()
    return found


@pytest.mark.parametrize("keeper", ["app.log", "{app}.log", "a{app}-{logger}.log"])
def test_what_stands_beside_a_file_is_nobody_elses(tmp_path, keeper):
    """Whoever had the name of a ledger, a backup or a torn line for a live file would destroy it, or be destroyed."""
    name = {"{app}.log": "shop.log", "a{app}-{logger}.log": "ashop-x.log"}.get(keeper, keeper)
    found = beside(tmp_path, name)
    assert len(found) == 10
    ours = PathTemplate(f"logs/{keeper}")
    for other in found:
        assert ours.may_spoil(PathTemplate(f"logs/{other}")), other
        assert not PathTemplate(f"logs/{other}").may_spoil(ours)
        assert not ours.may_spoil(PathTemplate(f"logs/x/{other}"))
        assert not ours.may_spoil(PathTemplate(f"other/{other}"))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("logs/app.log", "logs/.{app}.ledger", True),
        ("logs/{app}.log", "logs/.{logger}.log.ledger", True),
        ("logs/app.log", "logs/app.log.{app}", True),
        ("logs/{app}/x.log", "logs/shop/.x.log.ledger", True),
        ("logs/app.log", "logs/{app}.ledger", False),
        ("logs/app.log", "logs/app.log.{date}", False),
        ("logs/app.log", "logs/{app}.txt", False),
        ("logs/app.log", "logs/app.log.20200101", False),
        ("logs/app1.log", "logs/app2.log.20200101T000000Z.0000", False),
        ("logs/app.log", "logs/.app.log", False),
        ("logs/app.log", "logs/app.log.ledger", False),
        (".", "app.log", False),
        ("app.log", ".", False),
    ],
)
def test_two_templates_of_which_one_could_spoil_the_other(one, other, expected):
    """What no record can be called is no reason to refuse, and what one can be called is."""
    assert PathTemplate(one).may_spoil(PathTemplate(other)) is expected


@pytest.mark.parametrize(
    ("text", "of_record"),
    [
        ("{app}.{logger}", {"app": "shop.log", "logger": "20200101T000000Z.0000"}),
        ("{app}.{logger}", {"app": "shop.log", "logger": "20200101T000000Z.0000.zst"}),
        ("app.log.{app}", {"app": "20200101T000000Z.0000"}),
        ("{app}.0000", {"app": "shop.log.20200101T000000Z"}),
    ],
)
def test_no_record_is_called_as_a_backup(text, of_record):
    """Neither by one field nor by two together, or with what stands between them in the template."""
    template = PathTemplate(f"logs/{text}")
    path = template.resolve(VALUES | of_record)
    assert split_backup(path) is None
    assert "~" in path
    assert template.family(path) == path


def test_the_longest_name_has_room_for_all_that_stands_beside_it(tmp_path):
    """A live file that is accepted can be rotated, compressed and repaired."""
    name = "a" * (MAX_NAME_BYTES - OWN_TAIL_BYTES)
    PathTemplate(f"logs/{name}")
    assert max(map(len, beside(tmp_path, name))) == MAX_NAME_BYTES


def test_a_backup_of_a_routed_file_is_taken_apart():
    """Names of backups are found without knowing the live file's."""
    name = next_backup("shop.log", 1_795_420_862, [])
    live_name, backup = split_backup(name + ".zst")
    assert (live_name, backup.suffix) == ("shop.log", ".zst")
    assert split_backup(name + ".zst.tmp") is None
    assert split_backup(name[len("shop.log") :]) is None
