"""Django's LOGGING in one call; the recipe runs it in Django itself."""

from __future__ import annotations

import sys

from aiolog.contrib.django import logging_config


def test_the_settings_are_read_without_django(monkeypatch):
    """Settings are a module that Django imports: the call must import nothing of it; the environment may say where."""
    monkeypatch.setenv("AIOLOG_URL", "unix:///run/aiolog.sock")
    before = {name for name in sys.modules if name.startswith("django")}
    settings = logging_config(app="shop")
    assert {name for name in sys.modules if name.startswith("django")} == before
    assert settings["handlers"]["aiolog"] == {
        "class": "aiolog.AiologHandler",
        "host": "/run/aiolog.sock",
        "port": None,
        "app": "shop",
    }
    assert settings["root"] == {"level": "INFO", "handlers": ["aiolog"]}


def test_runserver_reaches_both():
    """aiolog comes before the terminal, whose formatter puts colours into the record itself."""
    assert logging_config()["loggers"]["django.server"]["handlers"] == ["aiolog", "django.server"]
