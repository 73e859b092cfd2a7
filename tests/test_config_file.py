"""The configuration file: what it may say, and how each mistake in it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deslaunch.config import Credentials, Login, Secret, TargetSettings, merged_targets
from deslaunch.config_file import read_config
from deslaunch.errors import ConfigurationError, CredentialsRefused

if TYPE_CHECKING:
    from pathlib import Path

ACME = '[targets.acme]\nbase_url = "https://des.example"\ntoken_env = "ACME"\n'
BISTRO = """
[targets.bistro.oauth]
org_id = "BISTRO"
client_id = "night"
client_secret_env = "BISTRO_SECRET"
username_env = "BISTRO_USER"
password_env = "BISTRO_PASSWORD"
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def mistakes(folder: Path, text: str | bytes) -> list[str]:
    path = written(folder, text)

    with pytest.raises(ConfigurationError) as caught:
        read_config(path)

    assert caught.value.hint
    assert "s3cret" not in f"{caught.value}{vars(caught.value)}"
    return str(caught.value).replace(str(path), "FILE").split("\n")


def test_the_targets_of_a_file(tmp_path: Path) -> None:
    text = (
        ACME
        + "concurrency = 8\ntimeout = 5\nconnect_timeout = 1.5\n"
        + BISTRO
        + 'auth_url = "https://auth.example"\n'
        + '[targets."Café 1"]\nbase_url = "http://des.local"\nallow_http = true\n'
        + 'token_command = ["vault", "read"]\n'
    )

    assert read_config(written(tmp_path, text)) == {
        "acme": TargetSettings(
            "https://des.example",
            Credentials(token_env="ACME"),
            concurrency=8,
            timeout=5,
            connect_timeout=1.5,
        ),
        "bistro": TargetSettings(
            None,
            Credentials(
                login=Login(
                    org_id="BISTRO",
                    client_id="night",
                    client_secret=Secret(variable="BISTRO_SECRET"),
                    username=Secret(variable="BISTRO_USER"),
                    password=Secret(variable="BISTRO_PASSWORD"),
                    auth_url="https://auth.example",
                )
            ),
        ),
        "Café 1": TargetSettings(
            "http://des.local", Credentials(token_command=("vault", "read")), allow_http=True
        ),
    }


def test_the_public_auth_server_is_the_default(tmp_path: Path) -> None:
    login = read_config(written(tmp_path, BISTRO))["bistro"].credentials.login

    assert login is not None
    assert login.auth_url == "https://auth.powerepos.cloud"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        pytest.param("acme.token", "{folder}/acme.token", id="beside"),
        pytest.param("/run/acme.token", "/run/acme.token", id="absolute"),
        pytest.param("~/acme.token", "{home}/acme.token", id="home"),
    ],
)
def test_paths_are_meant_from_the_files_folder(
    name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/of/u")
    text = ACME.replace('token_env = "ACME"', f'token_file = "{name}"')

    found = read_config(written(tmp_path, text))["acme"].credentials.token_file

    assert found == path.format(folder=tmp_path, home="/home/of/u")


@pytest.mark.parametrize("text", [pytest.param("", id="empty"), pytest.param("[targets]", id="no")])
def test_a_file_of_no_targets(text: str, tmp_path: Path) -> None:
    assert read_config(written(tmp_path, text)) == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(
            "target = 1", "target: is no key of this table; did you mean targets?", id="top"
        ),
        pytest.param("targets = 1", "targets: expected a table, got 1", id="no-table"),
        pytest.param(
            "[targets]\nacme = 's3cret'",
            "[targets] acme: expected a table, got a text",
            id="target-no-table",
        ),
        pytest.param(
            ACME + "concurency = 8",
            "[targets.acme] concurency: is no key of this table; did you mean concurrency?",
            id="near-miss",
        ),
        pytest.param(
            ACME + "base-url = 's3cret'",
            "[targets.acme] base-url: is no key of this table; did you mean base_url?",
            id="dash",
        ),
        pytest.param(
            ACME + "x = 's3cret'",
            "[targets.acme] x: is no key of this table; expected one of base_url, token_env, "
            "token_file, token_command, oauth, concurrency, timeout, connect_timeout, allow_http",
            id="unknown",
        ),
        pytest.param(
            ACME.replace('"https://des.example"', "5"),
            "[targets.acme] base_url: expected a text in quotes, got 5",
            id="number-for-text",
        ),
        pytest.param(
            ACME.replace('"ACME"', '""'),
            "[targets.acme] token_env: expected a text in quotes, got an empty text",
            id="empty-text",
        ),
        pytest.param(
            ACME + "concurrency = 0",
            "[targets.acme] concurrency: expected a whole number from 1 to 1,024, got 0",
            id="no-slots",
        ),
        pytest.param(
            ACME + "concurrency = true",
            "[targets.acme] concurrency: expected a whole number from 1 to 1,024, got true",
            id="true-slots",
        ),
        pytest.param(
            ACME + "concurrency = 's3cret'",
            "[targets.acme] concurrency: expected a whole number from 1 to 1,024, got a text",
            id="text-slots",
        ),
        pytest.param(
            ACME + "timeout = inf",
            "[targets.acme] timeout: expected seconds, above 0, got inf",
            id="endless",
        ),
        pytest.param(
            ACME + "timeout = 0",
            "[targets.acme] timeout: expected seconds, above 0, got 0",
            id="no-time",
        ),
        pytest.param(
            ACME + "allow_http = 2026-01-01",
            "[targets.acme] allow_http: expected true or false, got a date",
            id="date",
        ),
        pytest.param(
            ACME.replace('token_env = "ACME"', "token_command = 'vault s3cret'"),
            "[targets.acme] token_command: expected a list of texts, as in "
            '["vault", "read", "secret/des"]; there is no shell, got a text',
            id="command-text",
        ),
        pytest.param(
            ACME.replace('token_env = "ACME"', "token_command = []"),
            "[targets.acme] token_command: expected a list of texts, as in "
            '["vault", "read", "secret/des"]; there is no shell, got a list',
            id="command-empty",
        ),
        pytest.param(
            ACME + "token = 's3cret'",
            "[targets.acme] token: a secret must not stand in this file; "
            "write token_env, token_file or token_command",
            id="token-literal",
        ),
        pytest.param(
            BISTRO.replace('password_env = "BISTRO_PASSWORD"', "password = 's3cret'"),
            "[targets.bistro.oauth] password: a secret must not stand in this file; "
            "write password_env or password_file",
            id="password-literal",
        ),
        pytest.param(
            BISTRO.replace("client_secret_env", "client_secret"),
            "[targets.bistro.oauth] client_secret: a secret must not stand in this file; "
            "write client_secret_env or client_secret_file",
            id="client-secret-literal",
        ),
        pytest.param(
            ACME + "token_file = 'f'",
            "[targets.acme] token_env and token_file: are both there; expected one token",
            id="two-sources",
        ),
        pytest.param(
            ACME + BISTRO.replace("bistro", "acme"),
            "[targets.acme] token_env and oauth: are both there; expected one token",
            id="token-and-oauth",
        ),
        pytest.param(
            '[targets.acme]\nbase_url = "https://des.example"',
            "[targets.acme] token: is missing; expected token_env, token_file, token_command "
            "or oauth",
            id="no-source",
        ),
        pytest.param(
            '[targets.acme]\ntoken_env = "ACME"',
            "[targets.acme] base_url: is missing; only an oauth table can do without it",
            id="no-base-url",
        ),
        pytest.param(
            BISTRO.replace('org_id = "BISTRO"', ""),
            "[targets.bistro.oauth] org_id: is missing",
            id="no-organisation",
        ),
        pytest.param(
            BISTRO.replace('username_env = "BISTRO_USER"', ""),
            "[targets.bistro.oauth] username: is missing; expected username_env or username_file",
            id="no-user",
        ),
        pytest.param(
            BISTRO + "password_file = 'f'",
            "[targets.bistro.oauth] password_env and password_file: are both there; "
            "expected one password",
            id="two-passwords",
        ),
        pytest.param(
            ACME.replace("https:", "http:"),
            "[targets.acme] base_url: the URL 'http://des.example' would send the token in the "
            "clear; write https://des.example; or, where nobody can listen on the way, allow http "
            "with allow_http = true",
            id="http",
        ),
        pytest.param(
            ACME.replace("des.ex", "u:s3cret@des.ex"),
            "[targets.acme] base_url: the URL holds a user name or password; remove what stands "
            "before the '@': DES takes nothing but a token",
            id="password-in-url",
        ),
        pytest.param(
            BISTRO + 'auth_url = "http://auth.example"',
            "[targets.bistro.oauth] auth_url: the URL 'http://auth.example' would send the token "
            "in the clear; write https://auth.example; or, where nobody can listen on the way, "
            "allow http with allow_http = true",
            id="auth-http",
        ),
        pytest.param(
            '[targets."a b"]\ntoken_env = "A"',
            '[targets."a b"] base_url: is missing; only an oauth table can do without it',
            id="quoted-name",
        ),
    ],
)
def test_a_mistake(text: str, told: str, tmp_path: Path) -> None:
    assert mistakes(tmp_path, text) == [f"FILE: {told}"]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = "x = 1\n" + ACME + "concurrency = 0\n" + BISTRO + "y = 2"

    assert [line.split(":")[1].strip() for line in mistakes(tmp_path, text)] == [
        "x",
        "[targets.acme] concurrency",
        "[targets.bistro.oauth] y",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(
            "[targets.acme]\ntoken = s3cret", "is no TOML: Invalid value (at line 2", id="t"
        ),
        pytest.param(
            ACME + ACME, "is no TOML: Cannot declare ('targets', 'acme') twice", id="twice"
        ),
        pytest.param("# é".encode("utf-16"), "is not in UTF-8", id="utf-16"),
    ],
)
def test_a_file_that_can_not_be_understood(text: Any, told: str, tmp_path: Path) -> None:
    assert told in mistakes(tmp_path, text)[0]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.toml can't be read: No such file"):
        read_config(tmp_path / "gone.toml")


# What the environment and the arguments add.


ENV = {"DES_BASE_URL": "https://env.example", "DES_TOKEN": "t"}
OF_ENV = Credentials(token_env="DES_TOKEN")
OF_FILE = TargetSettings("https://file.example", Credentials(token_file="f"), concurrency=8)


@pytest.mark.parametrize(
    ("of_file", "environment", "options", "merged"),
    [
        pytest.param({"a": OF_FILE}, {}, {}, {"a": OF_FILE}, id="file-alone"),
        pytest.param(
            {"a": OF_FILE},
            ENV,
            {},
            {"a": OF_FILE, "default": TargetSettings("https://env.example", OF_ENV)},
            id="environment-is-the-default",
        ),
        pytest.param(
            {"default": OF_FILE},
            ENV,
            {},
            {"default": TargetSettings("https://env.example", OF_ENV, concurrency=8)},
            id="environment-wins",
        ),
        pytest.param(
            {"default": OF_FILE},
            {"DES_TOKEN": "t"},
            {},
            {"default": TargetSettings("https://file.example", OF_ENV, concurrency=8)},
            id="environment-in-part",
        ),
        pytest.param({"a": OF_FILE}, {"DES_TOKEN": "t"}, {}, {"a": OF_FILE}, id="half-a-default"),
        pytest.param(
            {"a": OF_FILE},
            {"DES_TOKEN": "t"},
            {"base_url": "https://arg.example"},
            {"a": OF_FILE, "default": TargetSettings("https://arg.example", OF_ENV)},
            id="argument-of-the-default",
        ),
        pytest.param(
            {"a": OF_FILE},
            ENV,
            {"base_url": "https://arg.example", "target": "a"},
            {
                "a": TargetSettings("https://arg.example", OF_FILE.credentials, concurrency=8),
                "default": TargetSettings("https://env.example", OF_ENV),
            },
            id="argument-of-a-target",
        ),
    ],
)
def test_who_wins(
    of_file: dict[str, TargetSettings],
    environment: dict[str, str],
    options: dict[str, str],
    merged: dict[str, TargetSettings],
) -> None:
    assert merged_targets(of_file, environment, **options) == merged


def test_a_base_url_of_no_target() -> None:
    with pytest.raises(ConfigurationError, match="target b, and there is none"):
        merged_targets({"a": OF_FILE}, {}, base_url="https://arg.example", target="b")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(None, "can't be read", id="gone"),
        pytest.param(b"", "holds nothing", id="empty"),
        pytest.param(b" \n", "holds nothing", id="blank"),
        pytest.param(b"\xffs3cret", "not in UTF-8", id="latin"),
    ],
)
def test_a_secret_that_is_not_there(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "password"

    if content is not None:
        path.write_bytes(content)

    with pytest.raises(CredentialsRefused, match=told) as caught:
        Secret(file=str(path)).read()

    assert caught.value.hint
    assert "s3cret" not in f"{caught.value!r}{caught.value.__cause__!r}"


def test_a_secret_is_read_anew_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "password"
    monkeypatch.setenv("P", "ab c")
    secrets = [Secret(file=str(path)), Secret(variable="P")]
    path.write_text("pass word\n")
    before = [secret.read() for secret in secrets]
    path.write_text("new")
    monkeypatch.delenv("P")

    assert before == ["pass word", "ab c"]
    assert secrets[0].read() == "new"

    with pytest.raises(CredentialsRefused, match="variable P holds nothing"):
        secrets[1].read()
