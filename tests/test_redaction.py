"""What is taken out of texts, and how long that takes."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiolog.redaction import DEFAULT, REDACTED, compiled, hides_default, redact_default

CASES = {
    "Authorization: Bearer abc.def-ghi": f"Authorization: {REDACTED}",
    "Authorization: Basic dXNlcjpwYXNz": f"Authorization: {REDACTED}",
    'Proxy-Authorization: Digest username="x", response="y"\nHost: z': f"Proxy-Authorization: {REDACTED}\nHost: z",
    "headers={'authorization': 'Bearer xyz', 'host': 'h'}": f"headers={{'authorization': {REDACTED}, 'host': 'h'}}",
    "sent bearer abcdefgh123 to them": f"sent bearer {REDACTED} to them",
    "Set-Cookie: a=b; c=d\r\nHost: z": f"Set-Cookie: {REDACTED}\r\nHost: z",
    "password=hunter2 user=bob": f"password={REDACTED} user=bob",
    "DB_PASSWORD: 'two words', next": f"DB_PASSWORD: {REDACTED}, next",
    '{"password": "my secret", "user": "bob"}': f'{{"password": {REDACTED}, "user": "bob"}}',
    "GET /?token=abc&page=1": f"GET /?token={REDACTED}&page=1",
    "aws_secret_access_key = abc/def+1": f"aws_secret_access_key = {REDACTED}",
    "key AKIAIOSFODNN7EXAMPLE used": f"key AKIA{REDACTED} used",
    "postgres://bob:p@ss@db/x": f"postgres://bob:{REDACTED}@db/x",
    "redis://:pw@cache:6379": f"redis://:{REDACTED}@cache:6379",
    "jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc_-d end": f"jwt eyJ{REDACTED} end",
    "a\n-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY----- b": (
        f"a\n-----BEGIN RSA PRIVATE KEY-----{REDACTED}-----END RSA PRIVATE KEY----- b"
    ),
    "-----BEGIN PRIVATE KEY-----\nMII, and cut here": f"-----BEGIN PRIVATE KEY-----{REDACTED}",
    "İ password=hunter2 İ": f"İ password={REDACTED} İ",  # a letter that grows when it becomes small
    "password=a token=b": f"password={REDACTED} token={REDACTED}",
}
HARMLESS = [
    "",
    "tokens: 15, the password is set",
    "https://example.org/a?b=c@d",
    "user 1234 logged in from 10.0.0.1 after 0.5 ms",
    "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----",
    "AKIAshort and eyJno.token",
    "12:30:05 GET /path?x=1:2",
]
# Each is repeated to fill a text, behind one occurrence of every word, so that no pattern is skipped.
SEEDS = [
    "a ", "-", "A", "é", "password=", "password='", 'password="', "://", "://a:", "://a:b@", "eyJ", "eyJa-",
    "eyJaaaaaaaaa.", "bearer ", "bearer aaaaaaaa ", "authorization:", "authorization: basic ",
    "-----BEGIN PRIVATE KEY-----", "-----BEGIN A", "AKIA", "token\t\t\t\t", "cookie: ", "cookie:\n", "pwd  ",
    "x=1&token=abc&", 'token="secret=',
]  # fmt: skip
GATE = "password :// eyj akia bearer  authorization cookie -----begin private key----- secret token "


@pytest.mark.parametrize("text", CASES)
def test_secrets_go_and_what_is_around_them_stays(text):
    """Each kind of secret is found, whatever its case and quotes."""
    assert redact_default(text) == CASES[text]
    assert redact_default(redact_default(text)) == CASES[text]


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays_as_it_is(text):
    """What only looks a little like a secret is left alone."""
    assert redact_default(text) == text


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from([*CASES, *SEEDS, *HARMLESS])).map("".join))
def test_any_text_is_redacted_without_an_error(text):
    """Whatever it holds, something comes out, and no secret of the simplest form with it."""
    assert type(redact_default(text)) is str
    assert "hunter2" not in redact_default(f"{text}\n password=hunter2\n")


@pytest.mark.parametrize("seed", SEEDS)
def test_time_grows_with_length_and_no_faster(seed):
    """Four times the text takes about four times as long: a quadratic pattern would take sixteen."""

    def seconds(count):
        text = (GATE + seed * (count // len(seed) + 1))[:count]
        best = 9.0
        for _ in range(3):
            began = time.process_time()
            redact_default(text)
            best = min(best, time.process_time() - began)
        return best

    for _ in range(3):  # a machine that does much else may disturb one measurement, hardly three
        ratio = seconds(256 << 10) / seconds(64 << 10)
        if ratio < 8:
            return
    pytest.fail(f"{seed!r}: four times the text took {ratio:.1f} times as long")


def test_names_of_secrets():
    """A field is hidden whole by its name."""
    for name in ("password", "API_KEY", "x-access-token", "Authorization", "client_secret", "Cookie"):
        assert hides_default(name)
    for name in ("user", "path", "status", "duration_us", "key", "pass"):
        assert not hides_default(name)


def test_what_the_option_may_be():
    """None, a function, the default, or patterns as text or compiled, with or without the default."""
    assert compiled(None) is None
    assert compiled(str.upper).text("a") == "A"
    assert compiled(DEFAULT).text("password=x") == f"password={REDACTED}"
    assert compiled(DEFAULT).hides("password")
    own = compiled([r"\d{4}", re.compile("bob", re.IGNORECASE)])
    assert own.text("Bob has 1234, password=x") == f"{REDACTED} has {REDACTED}, password=x"
    assert own.hides is None
    both = compiled([DEFAULT, r"\d{4}"])
    assert both.text("1234 password=x") == f"{REDACTED} password={REDACTED}"
    assert both.hides("password")


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("all", "redact is 'all'; it must be a function, 'default', or a list of patterns"),
        (5, "redact is 5; it must be"),
        (re.compile("x"), "it must be a function, 'default', or a list"),
        (["("], r"redact has '\(' in it, which is no pattern: "),
        ([b"x"], "redact has b'x' in it, which is no pattern for text"),
        ([re.compile(b"x")], "which is no pattern for text"),
    ],
)
def test_what_it_may_not_be(option, sentence):
    """Anything else is refused in one sentence."""
    with pytest.raises(ValueError, match=sentence):
        compiled(option)
