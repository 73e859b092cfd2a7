"""Settings: their ranges, what a session's record says of them, and where tokens come from."""

from __future__ import annotations

from dataclasses import fields
from math import inf, nan
from typing import Any

import pytest

from deslaunch.config import (
    Credentials,
    LaunchOptions,
    Login,
    Secret,
    Settings,
    target_from_environment,
)
from deslaunch.errors import ConfigurationError

URL = "https://des.example"
LOGIN = {
    "DES_ORG_ID": "BISTRO",
    "DES_CLIENT_ID": "night",
    "DES_CLIENT_SECRET": "s3cret",
    "DES_USERNAME": "u5er",
    "DES_PASSWORD": "p4ss",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("concurrency", 1, id="one-slot"),
        pytest.param("concurrency", 1_024, id="most-slots"),
        pytest.param("rate", None, id="no-rate"),
        pytest.param("rate", 0.001, id="slow"),
        pytest.param("rate", inf, id="no-limit"),
        pytest.param("max_attempts", 1, id="one-attempt"),
        pytest.param("max_wait", 0.1, id="short-wait"),
        pytest.param("give_up_after", inf, id="never-give-up"),
        pytest.param("drain_timeout", None, id="an-attempts-timeout"),
        pytest.param("schema_max_age", 0, id="no-cache"),
        pytest.param("schema_max_age", 1_000_000, id="a-century"),
        pytest.param("retry_5xx", "all", id="retry-all"),
        pytest.param("retry_5xx", "none", id="retry-none"),
        pytest.param("format", "csv", id="csv"),
    ],
)
def test_what_is_in_range(name: str, value: Any) -> None:
    assert getattr(Settings(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("concurrency", 0, id="no-slots"),
        pytest.param("concurrency", 1_025, id="too-many-slots"),
        pytest.param("concurrency", 2.5, id="half-a-slot"),
        pytest.param("rate", 0, id="no-starts"),
        pytest.param("rate", -1.0, id="negative-rate"),
        pytest.param("rate", nan, id="nan-rate"),
        pytest.param("max_attempts", 0, id="no-attempts"),
        pytest.param("max_wait", 0, id="no-wait"),
        pytest.param("give_up_after", 0, id="give-up-at-once"),
        pytest.param("drain_timeout", 0, id="no-drain"),
        pytest.param("schema_max_age", -1, id="negative-age"),
        pytest.param("schema_max_age", inf, id="an-age-that-no-timedelta-holds"),
        pytest.param("retry_5xx", "some", id="unknown-retry"),
        pytest.param("retry_5xx", "default", id="a-name-of-the-inside"),
        pytest.param("format", "xml", id="unknown-format"),
    ],
)
def test_what_is_out_of_range(name: str, value: Any) -> None:
    option = f"--{name.replace('_', '-')} takes "

    with pytest.raises(ConfigurationError, match=option):
        Settings(**{name: value})


def test_the_keyword_arguments_are_the_settings() -> None:
    assert set(LaunchOptions.__annotations__) == {field.name for field in fields(Settings)}


def test_a_session_records_what_tunes_it_and_nothing_of_the_batch() -> None:
    tuning = Settings(retry_5xx="all", job_id="x", allow_duplicates=True).tuning()

    assert tuning["retry5xx"] == "all"
    assert tuning["maxAttempts"] == 5
    assert not tuning.keys() & {"jobId", "target", "format", "skipInvalid", "allowDuplicates"}


@pytest.mark.parametrize(
    ("consents", "allow"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param({"allow_duplicates": True}, ["duplicates"], id="duplicates"),
        pytest.param({"allow_repeated_auto": True}, ["repeatedAuto"], id="auto"),
        pytest.param({"allow_new_origin": True}, [], id="of-one-session"),
    ],
)
def test_the_allowances_that_stay_with_a_batch(consents: dict[str, bool], allow: list[str]) -> None:
    options: Any = consents

    assert Settings(**options).allow == allow


@pytest.mark.parametrize(
    ("environment", "credentials"),
    [
        pytest.param({}, Credentials(), id="nothing"),
        pytest.param({"DES_TOKEN": ""}, Credentials(), id="empty"),
        pytest.param({"DES_TOKEN": "t"}, Credentials(token_env="DES_TOKEN"), id="token"),
        pytest.param({"DES_TOKEN_FILE": "/t"}, Credentials(token_file="/t"), id="file"),
        pytest.param(
            {"DES_TOKEN_COMMAND": "vault read 'a b'"},
            Credentials(token_command=("vault", "read", "a b")),
            id="command",
        ),
    ],
)
def test_a_token_comes_from_one_place(
    environment: dict[str, str], credentials: Credentials
) -> None:
    assert target_from_environment(environment).credentials == credentials


@pytest.mark.parametrize(
    ("more", "auth_url"),
    [
        pytest.param({}, "https://auth.powerepos.cloud", id="public"),
        pytest.param({"DES_AUTH_URL": "https://a.example"}, "https://a.example", id="own"),
    ],
)
def test_a_login_comes_from_the_environment(more: dict[str, str], auth_url: str) -> None:
    credentials = target_from_environment(LOGIN | more).credentials

    assert credentials.login == Login(
        org_id="BISTRO",
        client_id="night",
        client_secret=Secret(variable="DES_CLIENT_SECRET"),
        username=Secret(variable="DES_USERNAME"),
        password=Secret(variable="DES_PASSWORD"),
        auth_url=auth_url,
    )
    assert not [
        secret for secret in ("s3cret", "u5er", "p4ss") if secret in repr(credentials.login)
    ]


@pytest.mark.parametrize("variable", list(LOGIN))
def test_half_a_login_is_none(variable: str) -> None:
    with pytest.raises(ConfigurationError, match=f"lacks {variable}"):
        target_from_environment(LOGIN | {variable: ""})


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        pytest.param(LOGIN | {"DES_TOKEN": "t"}, "DES_TOKEN and DES_ORG_ID and", id="and-login"),
        pytest.param(
            {"DES_TOKEN": "t", "DES_TOKEN_FILE": "/t"}, "DES_TOKEN and DES_TOKEN_FILE", id="two"
        ),
        pytest.param({"DES_TOKEN_COMMAND": "vault 'read"}, "can't be split", id="open-quote"),
        pytest.param({"DES_TOKEN_COMMAND": "  "}, "names no command", id="blank-command"),
    ],
)
def test_a_token_source_that_can_not_be_used(environment: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        target_from_environment(environment)


@pytest.mark.parametrize(
    ("environment", "argument", "base_url"),
    [
        pytest.param({}, None, None, id="nowhere"),
        pytest.param({"DES_BASE_URL": ""}, None, None, id="empty"),
        pytest.param({"DES_BASE_URL": URL}, None, URL, id="environment"),
        pytest.param({"DES_BASE_URL": "https://old.example"}, URL, URL, id="argument-wins"),
    ],
)
def test_where_des_is(environment: dict[str, str], argument: str | None, base_url: str) -> None:
    assert target_from_environment(environment, base_url=argument).base_url == base_url


@pytest.mark.parametrize(
    ("credentials", "shown"),
    [
        pytest.param(Credentials(), "<Credentials from nowhere>", id="none"),
        pytest.param(Credentials(token_file="secret"), "<Credentials from token_file>", id="file"),
        pytest.param(
            Credentials(token_command=("secret",)), "<Credentials from token_command>", id="command"
        ),
    ],
)
def test_credentials_never_show_themselves(credentials: Credentials, shown: str) -> None:
    assert (repr(credentials), "secret" in f"{credentials}") == (shown, False)
    assert bool(credentials) == (shown != "<Credentials from nowhere>")
