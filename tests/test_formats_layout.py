"""The compiled loop: any batch gives what its records give one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import NOON, NOON_NS, Worker, nasty_texts

from aiolog.formats import layout as layouts
from aiolog.formatting import ecs, json_lines, logfmt, otel, text
from aiolog.record import Source

FORMATS = [
    text("%(asctime)s %(levelname)s %(name)s: %(message)s"),
    text("%(message)s %(threadName)s %(asctime)s %(msecs)03d %(message)-9s", multiline="escape"),
    text("%(created)f %(message)s"),
    json_lines(),
    json_lines(fields=["thread", "msg", "fields", "ts"], flatten_extras=True),
    logfmt(),
    ecs(),
    otel(),
]
moments = st.sampled_from([NOON, NOON + 0.9999999, NOON_NS, NOON_NS + 999, NOON_NS + 876_543_999, 0.5, 1e9, 10**9,
                           1_500_000_000, 2_000_000_000, 10**12 - 1, 10**12, 1e12, 10**18, 1e18])  # fmt: skip
rare = st.fixed_dictionaries(
    {},
    optional={
        "exc_text": nasty_texts,
        "taskName": nasty_texts,
        "process": st.integers(0, 9),
        "extra": st.lists(st.tuples(st.sampled_from("ab"), nasty_texts), max_size=2).map(lambda pairs: sum(pairs, ())),
    },
)
records = st.tuples(moments, st.sampled_from([0, 1, 9]), st.sampled_from([2, 3, 9]), st.just("plain") | nasty_texts)
records |= st.tuples(moments, st.just(0), st.just(2), nasty_texts, rare)


def source():
    made = Source(app="shop", host="web1", pid=1, process_name="Main", labels={"env": "prod"})
    for definition in (("a", 20, "INFO", "p", "f", "m", 1, "fn"), ("b", 40, "ERROR", "p", "f", "m", 2, None),
                       (1, "T1"), (2, "T2")):  # fmt: skip
        made.define(definition)
    return made


@settings(max_examples=100, deadline=None)
@given(st.lists(records, max_size=6), st.sampled_from([0, 1, layouts._TOGETHER - 1, layouts._TOGETHER]))
def test_a_batch_is_its_records(batch, before):
    """Whatever stands beside a record, and wherever the batch is divided: a fresh format would say the same."""
    batch = [(NOON_NS, 1, 3, "quiet")] * before + batch
    for compiled in FORMATS:
        common = source()
        alone = {}
        for record in batch:
            key = repr(record)
            if key not in alone:
                alone[key] = compiled(source(), [record])[0]
        expected = [alone[repr(record)] for record in batch]
        assert compiled(common, batch) == expected
        assert compiled(common, batch) == expected


@pytest.mark.parametrize("unit", [1, 10**9])
def test_seconds_and_nanoseconds_do_not_meet(unit):
    """A window of one unit never takes a moment of the other, even where the numbers are the same."""
    compiled = text("%(asctime)s %(message)s", time_zone="UTC")
    common = source()
    batch = [(10**9 * unit, 0, 2, "int"), (1e9 * unit, 0, 2, "float"), (10**9 * unit, 0, 2, "int")]
    compiled(common, batch)
    assert compiled(common, batch) == [compiled(source(), [record])[0] for record in batch]


def test_nothing_of_a_setting_gets_into_the_source_of_the_loop(monkeypatch):
    """It is written of this project's own words alone, whatever a template, a key or a default says."""
    written = []

    def spy(code, *args):
        written.append(code)
        return compile(code, *args)

    monkeypatch.setattr(layouts, "compile", spy, raising=False)
    evil = "'''{boom}\"\"\"\\"
    text(f"{evil} %(message)s %({evil})s", defaults={evil: evil}, datefmt=evil)
    text(f"{{message:{evil[0]}>9}}", style="{")
    json_lines(rename={"msg": evil, "ts": evil + "2", "thread": evil + "3"})
    assert len(written) == 3
    assert not any("boom" in code or "'''" in code for code in written)


def test_what_is_learned_is_bounded_by_the_dictionary():
    """Numbers that were never defined leave nothing, and each that was leaves one entry a table."""
    for compiled in FORMATS:
        common = source()
        batch = [(NOON_NS, site, thread, "x", {"extra": ("a", "b")}) for site in range(50) for thread in range(50)]
        compiled(common, batch)
        compiled(common, batch)
        assert sum(map(len, common.plans.values())) <= 2 * len(common.definitions)
        assert Worker().source.plans == {}
