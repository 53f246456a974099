"""The labels of a process: what tells it from its siblings, in each of its lines.

Pure: the environment and the parent's pid are passed in. What came from nowhere in particular (``AIOLOG_LABELS``) is
read here too, so that ``setup()``, a handler that somebody configured by hand, and ``aiolog doctor`` agree.
"""

from __future__ import annotations

from collections.abc import Mapping

VARIABLE = "AIOLOG_LABELS"

# Label, and the variables that it may come from: the first that is set wins.
_VARIABLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # pytest-xdist (src/xdist/remote.py) sets both in each of its workers.
    ("worker", ("PYTEST_XDIST_WORKER",)),
    ("run", ("PYTEST_XDIST_TESTRUNUID",)),
    # Kubernetes' downward API leaves the names to its users; these are the ones in its documentation and in charts.
    ("pod", ("POD_NAME", "K8S_POD_NAME", "MY_POD_NAME")),
    ("namespace", ("POD_NAMESPACE", "K8S_NAMESPACE", "K8S_POD_NAMESPACE", "MY_POD_NAMESPACE")),
    ("node", ("NODE_NAME", "K8S_NODE_NAME", "MY_NODE_NAME")),
)


def process_labels(environment: Mapping[str, str], parent_pid: int) -> dict[str, str]:
    """Return what a process is known by, beyond its app, host, pid and name; what ``AIOLOG_LABELS`` says wins.

    A pair in that variable that is none is passed over: this runs in a log call. :func:`parse` tells of it.
    """
    found = {"ppid": str(parent_pid)}
    for label, variables in _VARIABLES:
        value = next(filter(None, map(environment.get, variables)), None)
        if value is not None:
            found[label] = value
    for pair in environment.get(VARIABLE, "").split(","):
        name, equals, value = pair.partition("=")
        if equals and name.strip():
            found[_decoded(name)] = _decoded(value)
    return found


def parse(text: str) -> dict[str, str]:
    """Return the labels in ``k=v,k2=v2``; ``%2C`` stands for a comma, ``%25`` for a percent sign.

    Raises ValueError for a pair without a name or without an equals sign.
    """
    found = {}
    for pair in text.split(","):
        if not pair.strip():
            continue
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"{pair.strip()!r} is no label; write name=value,name=value")
        found[_decoded(name)] = _decoded(value)
    return found


def join(labels: Mapping[str, str]) -> str:
    """Return the text from which :func:`parse` makes these labels."""
    return ",".join(f"{_encoded(name)}={_encoded(value)}" for name, value in labels.items())


def _decoded(text: str) -> str:
    return text.strip().replace("%2C", ",").replace("%3D", "=").replace("%25", "%")


def _encoded(text: str) -> str:
    return text.replace("%", "%25").replace(",", "%2C").replace("=", "%3D")
