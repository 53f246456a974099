"""gunicorn's settings in one call; tests/test_exits_services.py and the recipes run them in gunicorn itself."""

from __future__ import annotations

import pytest

from aiolog.contrib.gunicorn import logconfig_dict


def test_all_three_of_gunicorns_sections_are_there(monkeypatch):
    """gunicorn lays them over its own key by key; the environment says what the call does not."""
    monkeypatch.setenv("AIOLOG_URL", "tcp://logs:9021")
    monkeypatch.setenv("AIOLOG_APP", "shop")
    settings = logconfig_dict(level="DEBUG", spool_dir="/var/spool/shop")
    assert settings["handlers"]["aiolog"] == {
        "class": "aiolog.AiologHandler",
        "host": "logs",
        "port": 9021,
        "app": "shop",
        "spool_dir": "/var/spool/shop",
    }
    assert settings["root"] == {"level": "DEBUG", "handlers": ["aiolog", "stderr"]}
    assert settings["loggers"].keys() == {"gunicorn.error", "gunicorn.access"}
    assert settings["disable_existing_loggers"] is False


def test_stderr_is_a_choice():
    """Workers that cannot start are seen on stderr, unless that is not wanted."""
    assert logconfig_dict()["handlers"]["stderr"]["level"] == "WARNING"
    assert logconfig_dict(stderr_level=None)["root"]["handlers"] == ["aiolog"]


def test_an_unknown_option_is_an_error():
    """It is named when the file is read, and not when dictConfig fails in a worker."""
    with pytest.raises(TypeError, match="did you mean 'spool_dir'"):
        logconfig_dict(spool="x")
