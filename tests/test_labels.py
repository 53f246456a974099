"""The labels of a process, from its environment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolog.labels import join, parse, process_labels


def test_a_process_alone_is_known_by_its_parent():
    """With nothing in the environment there is the parent's pid, and nothing else."""
    assert process_labels({}, 17) == {"ppid": "17"}


def test_workers_of_xdist_and_pods_are_known():
    """Each variable makes its label; one that is empty makes none, and the first name of several wins."""
    environment = {
        "PYTEST_XDIST_WORKER": "gw3",
        "PYTEST_XDIST_TESTRUNUID": "abc",
        "POD_NAME": "web-5",
        "K8S_POD_NAME": "other",
        "MY_POD_NAMESPACE": "shop",
        "NODE_NAME": "",
        "HOME": "/root",
    }
    assert process_labels(environment, 1) == {
        "ppid": "1", "worker": "gw3", "run": "abc", "pod": "web-5", "namespace": "shop"
    }  # fmt: skip


def test_what_an_operator_says_wins():
    """AIOLOG_LABELS adds labels and replaces found ones; a pair that is none is passed over here."""
    environment = {"POD_NAME": "web-5", "AIOLOG_LABELS": "zone=a, pod = mine ,nonsense,=x,team=a%2Cb=c"}
    assert process_labels(environment, 1) == {"ppid": "1", "pod": "mine", "zone": "a", "team": "a,b=c"}


def test_labels_as_text():
    """Pairs are parted by commas; blanks around them and empty pairs do not count."""
    assert parse("") == {}
    assert parse(" a=1 , b = 2,,c=") == {"a": "1", "b": "2", "c": ""}


@pytest.mark.parametrize("text", ["a", "a=1,b", "=1"])
def test_what_is_no_label(text):
    """A pair without a name or a sign is refused, and shown."""
    with pytest.raises(ValueError, match="is no label; write name=value,name=value"):
        parse(text)


@given(st.dictionaries(st.text(min_size=1).map(str.strip).filter(len), st.text().map(str.strip), max_size=4))
def test_any_labels_survive_the_way_through_the_environment(labels):
    """What one process joins another parses, commas and signs included."""
    assert parse(join(labels)) == labels
