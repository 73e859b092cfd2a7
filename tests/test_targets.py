"""Where DES is and where its tokens come from: file, environment, options."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from stage import TOKEN, ended

from deslaunch.cli.options import Given
from deslaunch.cli.targets import (
    Config,
    clients_of,
    default_config,
    from_environment,
    merged,
    read_config,
    read_secret,
)
from deslaunch.des.http import proxy_of
from deslaunch.errors import ConfigurationError, CredentialsRefused

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stage import Workplace

    from deslaunch.cli.targets import Target

URL = "https://des.example"
ACME = '[targets.acme]\nbase_url = "https://des.example"\ntoken_env = "ACME"\n'
BISTRO = """
[targets.bistro.oauth]
org_id = "BISTRO"
client_id = "night"
client_secret_env = "BISTRO_SECRET"
username_env = "BISTRO_USER"
password_env = "BISTRO_PASSWORD"
"""
LOGIN = {
    "DES_ORG_ID": "BISTRO",
    "DES_CLIENT_ID": "night",
    "DES_CLIENT_SECRET": "s3cret",
    "DES_USERNAME": "u5er",
    "DES_PASSWORD": "p4ss",
}


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def mistakes(folder: Path, text: str | bytes) -> list[str]:
    path = written(folder, text)

    with pytest.raises(ConfigurationError) as caught:
        read_config(path)

    assert caught.value.hint
    assert "s3cret" not in f"{caught.value}{vars(caught.value)}{caught.value.__cause__!r}"
    return str(caught.value).replace(str(path), "FILE").split("\n")


# The configuration file.


def test_the_targets_of_a_file(tmp_path: Path) -> None:
    text = (
        ACME
        + "concurrency = 8\n"
        + BISTRO
        + 'auth_url = "https://auth.example"\n'
        + '[targets."Café 1"]\nbase_url = "https://des.local"\n'
        + 'token_command = ["vault", "read"]\n'
    )

    assert read_config(written(tmp_path, text)).targets == {
        "acme": {
            "base_url": URL,
            "token_env": "ACME",
            "concurrency": 8,
        },
        "bistro": {
            "oauth": {
                "org_id": "BISTRO",
                "client_id": "night",
                "client_secret_env": "BISTRO_SECRET",
                "username_env": "BISTRO_USER",
                "password_env": "BISTRO_PASSWORD",
                "auth_url": "https://auth.example",
            }
        },
        "Café 1": {
            "base_url": "https://des.local",
            "token_command": ["vault", "read"],
        },
    }


@pytest.mark.parametrize(
    ("name", "path"),
    [
        pytest.param("acme.token", "{folder}/acme.token", id="beside"),
        pytest.param("/run/acme.token", "/run/acme.token", id="absolute"),
        pytest.param("~/acme.token", "/home/of/u/acme.token", id="home"),
    ],
)
def test_paths_are_meant_from_the_files_folder(
    name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/of/u")
    text = ACME.replace('token_env = "ACME"', f'token_file = "{name}"')

    (target,) = read_config(written(tmp_path, text)).targets.values()

    assert target["token_file"] == path.format(folder=tmp_path)


@pytest.mark.parametrize("text", [pytest.param("", id="empty"), pytest.param("[targets]", id="no")])
def test_a_file_of_no_targets(text: str, tmp_path: Path) -> None:
    assert read_config(written(tmp_path, text)) == Config()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(
            "target = 1", "target: is not a key of this table; did you mean targets?", id="top"
        ),
        pytest.param("targets = 1", "targets: expected a table, got 1", id="no-table"),
        pytest.param(
            "[targets]\nacme = 's3cret'",
            "[targets] acme: expected a table, got a string",
            id="target-no-table",
        ),
        pytest.param(
            ACME + "concurency = 8",
            "[targets.acme] concurency: is not a key of this table; did you mean concurrency?",
            id="near-miss",
        ),
        pytest.param(
            ACME + "base-url = 's3cret'",
            "[targets.acme] base-url: is not a key of this table; did you mean base_url?",
            id="dash",
        ),
        pytest.param(
            ACME + "x = 's3cret'",
            "[targets.acme] x: is not a key of this table; expected one of base_url, token_env, "
            "token_file, token_command, oauth, concurrency",
            id="unknown",
        ),
        pytest.param(
            ACME.replace('"https://des.example"', "5"),
            "[targets.acme] base_url: expected a string in quotes, got 5",
            id="number-for-text",
        ),
        pytest.param(
            ACME.replace('"ACME"', '""'),
            "[targets.acme] token_env: expected a string in quotes, got an empty string",
            id="empty-text",
        ),
        pytest.param(
            ACME + "concurrency = 0",
            "[targets.acme] concurrency: expected a whole number of slots from 1 to 1,024, got 0",
            id="no-slots",
        ),
        pytest.param(
            ACME + "concurrency = true",
            "[targets.acme] concurrency: expected a whole number of slots from 1 to 1,024, "
            "got true",
            id="true-slots",
        ),
        pytest.param(
            ACME + "concurrency = 's3cret'",
            "[targets.acme] concurrency: expected a whole number of slots from 1 to 1,024, "
            "got a string",
            id="text-slots",
        ),
        pytest.param(
            ACME + "concurrency = 8.5",
            "[targets.acme] concurrency: expected a whole number of slots from 1 to 1,024, got 8.5",
            id="half-a-slot",
        ),
        pytest.param(
            ACME + "concurrency = 2026-01-01",
            "[targets.acme] concurrency: expected a whole number of slots from 1 to 1,024, "
            "got a date",
            id="date",
        ),
        pytest.param(
            ACME.replace('token_env = "ACME"', "token_command = 'vault s3cret'"),
            "[targets.acme] token_command: expected a program and its arguments, as in "
            '["program", "argument"]; there is no shell, got a string',
            id="command-text",
        ),
        pytest.param(
            ACME.replace('token_env = "ACME"', "token_command = []"),
            "[targets.acme] token_command: expected a program and its arguments, as in "
            '["program", "argument"]; there is no shell, got a list',
            id="command-empty",
        ),
        pytest.param(
            ACME + "token = 's3cret'",
            "[targets.acme] token: this file takes no secrets; "
            "write token_env, token_file, token_command or oauth",
            id="token-literal",
        ),
        pytest.param(
            BISTRO.replace('password_env = "BISTRO_PASSWORD"', "password = 's3cret'"),
            "[targets.bistro.oauth] password: this file takes no secrets; "
            "write password_env or password_file",
            id="password-literal",
        ),
        pytest.param(
            BISTRO.replace("client_secret_env", "client_secret"),
            "[targets.bistro.oauth] client_secret: this file takes no secrets; "
            "write client_secret_env or client_secret_file",
            id="client-secret-literal",
        ),
        pytest.param(
            ACME + "token_file = 'f'",
            "[targets.acme] token_env and token_file: are both set; expected one token",
            id="two-sources",
        ),
        pytest.param(
            ACME + BISTRO.replace("bistro", "acme"),
            "[targets.acme] token_env and oauth: are both set; expected one token",
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
            "[targets.bistro.oauth] password_env and password_file: are both set; "
            "expected one password",
            id="two-passwords",
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
            "[targets.acme]\ntoken = s3cret",
            "is not valid TOML: Invalid value (at line 2",
            id="no-toml",
        ),
        pytest.param(
            ACME + ACME, "is not valid TOML: Cannot declare ('targets', 'acme') twice", id="twice"
        ),
        pytest.param("# é s3cret".encode("utf-16"), "is not in UTF-8", id="utf-16"),
    ],
)
def test_a_file_that_can_not_be_understood(text: Any, told: str, tmp_path: Path) -> None:
    assert told in mistakes(tmp_path, text)[0]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.toml can't be read: No such file"):
        read_config(tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(None, "can't be read", id="gone"),
        pytest.param(b" \n", "is empty", id="blank"),
        pytest.param(b"\xffs3cret", "not in UTF-8", id="latin"),
        pytest.param(b"s3cret" * 20_000, "over 64 KiB", id="large"),
    ],
)
def test_a_secret_that_is_not_there(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "password"

    if content is not None:
        path.write_bytes(content)

    with pytest.raises(CredentialsRefused, match=told) as caught:
        read_secret({"password_file": str(path)}, "password")

    assert caught.value.hint
    assert "s3cret" not in f"{caught.value!r}{caught.value.__cause__!r}"


def test_a_secret_is_read_anew_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "password"
    monkeypatch.setenv("P", "ab c")
    login = {"password_file": str(path), "username_env": "P"}
    path.write_text("pass word\n")

    assert [read_secret(login, name) for name in ("password", "username")] == ["pass word", "ab c"]

    path.write_text("new")
    monkeypatch.delenv("P")

    assert read_secret(login, "password") == "new"

    with pytest.raises(CredentialsRefused, match="variable P is not set"):
        read_secret(login, "username")

    monkeypatch.setenv("P", " ")

    with pytest.raises(CredentialsRefused, match="variable P is empty"):
        read_secret(login, "username")


def test_the_users_own_file_is_in_the_configuration_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "deslaunch").mkdir()
    none = default_config()
    path = written(tmp_path / "deslaunch", ACME)

    assert (none, default_config()) == (None, path)


def test_a_user_without_a_home_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr("os.getuid", lambda: 77_777)  # nobody of this number is listed

    assert default_config() is None


# The environment, and what is said on top of a file.


@pytest.mark.parametrize(
    ("environment", "target"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param({"DES_TOKEN": "", "DES_BASE_URL": ""}, {}, id="empty"),
        pytest.param({"DES_TOKEN": "s3cret"}, {"token_env": "DES_TOKEN"}, id="token"),
        pytest.param({"DES_TOKEN_FILE": "/t"}, {"token_file": "/t"}, id="file"),
        pytest.param(
            {"DES_TOKEN_COMMAND": "vault read 'a b'"},
            {"token_command": ["vault", "read", "a b"]},
            id="command",
        ),
        pytest.param(
            LOGIN | {"DES_AUTH_URL": "https://a.example"},
            {
                "oauth": {
                    "org_id": "BISTRO",
                    "client_id": "night",
                    "client_secret_env": "DES_CLIENT_SECRET",
                    "username_env": "DES_USERNAME",
                    "password_env": "DES_PASSWORD",
                    "auth_url": "https://a.example",
                }
            },
            id="login",
        ),
    ],
)
def test_a_token_comes_from_one_place(environment: Mapping[str, str], target: Target) -> None:
    found = from_environment(environment)

    assert found == target
    assert not [secret for secret in ("s3cret", "u5er", "p4ss") if secret in repr(found)]


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        *(
            pytest.param(LOGIN | {name: ""}, f"lacks {name}", id=f"without-{name}")
            for name in LOGIN
        ),
        pytest.param(LOGIN | {"DES_TOKEN": "t"}, "DES_TOKEN and DES_ORG_ID and", id="and-login"),
        pytest.param(
            {"DES_TOKEN": "t", "DES_TOKEN_FILE": "/t"}, "DES_TOKEN and DES_TOKEN_FILE", id="two"
        ),
        pytest.param({"DES_TOKEN_COMMAND": "vault 'read"}, "can't be split", id="open-quote"),
        pytest.param({"DES_TOKEN_COMMAND": "  "}, "can't be split", id="blank-command"),
    ],
)
def test_a_token_source_that_can_not_be_used(environment: Mapping[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        from_environment(environment)


ENV = {"DES_BASE_URL": "https://env.example", "DES_TOKEN": "t"}
OF_ENV = {"base_url": "https://env.example", "token_env": "DES_TOKEN"}
OF_FILE = {"base_url": "https://file.example", "token_file": "f", "concurrency": 8}
OF_ARG = {"base_url": "https://arg.example"}


@pytest.mark.parametrize(
    ("of_file", "environment", "options", "expected"),
    [
        pytest.param({"a": OF_FILE}, {}, {}, {"a": OF_FILE}, id="file-alone"),
        pytest.param(
            {"a": OF_FILE},
            ENV,
            {},
            {"a": OF_FILE, "default": OF_ENV},
            id="environment-is-the-default",
        ),
        pytest.param(
            {"default": OF_FILE},
            ENV,
            {},
            {"default": OF_ENV | {"concurrency": 8}},
            id="environment-wins",
        ),
        pytest.param(
            {"default": OF_FILE},
            {"DES_TOKEN": "t"},
            {},
            {"default": OF_ENV | {"base_url": "https://file.example", "concurrency": 8}},
            id="environment-in-part",
        ),
        pytest.param({"a": OF_FILE}, {"DES_TOKEN": "t"}, {}, {"a": OF_FILE}, id="half-a-default"),
        pytest.param(
            {"a": OF_FILE},
            {"DES_TOKEN": "t"},
            {"base_url": "https://arg.example"},
            {"a": OF_FILE, "default": OF_ENV | OF_ARG},
            id="argument-of-the-default",
        ),
        pytest.param({}, ENV, {"target": "a"}, {"a": OF_ENV}, id="no-file"),
        pytest.param(
            {}, ENV, {**OF_ARG, "target": "a"}, {"a": OF_ENV | OF_ARG}, id="argument-without-a-file"
        ),
        pytest.param(
            {"a": OF_FILE},
            ENV,
            {"base_url": "https://arg.example", "target": "a"},
            {
                "a": OF_FILE | OF_ARG,
                "default": OF_ENV,
            },
            id="argument-of-a-target",
        ),
    ],
)
def test_who_wins(
    of_file: dict[str, Target],
    environment: dict[str, str],
    options: dict[str, str],
    expected: dict[str, Target],
) -> None:
    assert merged(of_file, environment, **options) == expected


def test_a_base_url_of_no_target() -> None:
    with pytest.raises(ConfigurationError, match="target b is not configured"):
        merged({"a": OF_FILE}, {}, base_url="https://arg.example", target="b")


# Clients.


def client(values: Mapping[str, Any], kept: dict[str, Any] | None = None) -> Any:
    return clients_of(Given(values, frozenset(values), before=kept or {}), needs_token=True)


def test_without_a_file_there_is_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DES_TOKEN", "t")

    (found,) = client({"base_url": URL}).values()

    assert (found.home, found.timeout, found.connect_timeout) == (f"{URL}", 60, 10)


def test_a_target_has_slots_of_its_own(tmp_path: Path) -> None:
    config = written(tmp_path, ACME + "concurrency = 3\n")

    found = client({"config": config, "timeout": 7.0}, {"connect_timeout": 2.0})["acme"]

    assert (found.concurrency, found.timeout, found.connect_timeout) == (3, 7, 2)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(
            ACME.replace("https:", "http:"),
            "target acme: the base URL 'http://des.example' would send the token unencrypted",
            id="http",
        ),
        pytest.param(
            ACME.replace("des.ex", "u:s3cret@des.ex"),
            "target acme: the base URL contains a user name or password",
            id="password-in-url",
        ),
        pytest.param(
            BISTRO + 'auth_url = "http://auth.example"',
            "target bistro: the auth server's URL 'http://auth.example' would send the token "
            "unencrypted",
            id="auth-http",
        ),
    ],
)
def test_a_url_that_can_not_be_used(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        client({"config": written(tmp_path, text)})

    assert str(caught.value) == told
    assert caught.value.hint


@pytest.mark.parametrize("host", [pytest.param(True, id="here"), pytest.param(False, id="there")])
def test_the_file_that_a_ledger_keeps_is_read_on_its_machine_alone(
    host: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DES_TOKEN", "t")
    config = written(tmp_path, ACME)
    kept = Given({"config": config}, frozenset({"config"})).kept()
    before = kept if host else kept | {"host": "elsewhere"}

    found = clients_of(Given({"base_url": URL}, frozenset(), before=before), needs_token=False)

    assert set(found) == ({"acme", "default"} if host else {"default"})


@pytest.mark.parametrize(
    ("values", "variables", "told"),
    [
        pytest.param({}, {}, "the base URL of DES is not set", id="no-base-url"),
        pytest.param({"base_url": URL}, {}, "there is no token", id="no-token"),
        pytest.param(
            {"base_url": "http://des.example"}, {"DES_TOKEN": "t"}, "unencrypted", id="http"
        ),
    ],
)
def test_what_a_client_lacks(
    values: dict[str, Any],
    variables: dict[str, str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError, match=told):
        client(values)


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        pytest.param("", "https://des.example", False, id="proxy"),
        pytest.param("", "http://des.example", True, id="no-proxy-of-this-scheme"),
        pytest.param("", "https://127.0.0.1:8080", True, id="loopback"),
        pytest.param("", "https://localhost", True, id="localhost"),
        pytest.param("", "https://[::1]:8080", True, id="loopback-v6"),
        pytest.param("*", "https://des.example", True, id="all"),
        pytest.param("a, des.example", "https://des.example", True, id="name"),
        pytest.param("example", "https://des.example", True, id="below"),
        pytest.param(".example", "https://des.example", True, id="dot"),
        pytest.param("*.example", "https://DES.example", True, id="star"),
        pytest.param("ample", "https://des.example", False, id="end-of-a-name"),
        pytest.param("des.example:443", "https://des.example", True, id="port"),
        pytest.param("des.example:8443", "https://des.example", False, id="other-port"),
        pytest.param("10.0.0.0/8", "https://10.1.2.3", True, id="network"),
        pytest.param("10.0.0.0/8", "https://des.example", False, id="network-and-name"),
        pytest.param("[fd00::1]", "https://[fd00::1]", True, id="v6"),
        pytest.param("[fd00::1]:8443", "https://[fd00::1]", False, id="v6-other-port"),
        pytest.param("fd00::/8", "https://[fd00::1]:8", True, id="v6-network"),
    ],
)
def test_the_environments_proxy(
    no_proxy: str, url: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "no_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)

    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)

    assert proxy_of(url) == (None if is_direct else "http://proxy:3128")


@pytest.mark.parametrize(
    ("environment", "host"),
    [
        pytest.param({"DES_TOKEN": TOKEN}, "des.example", id="DES"),
        pytest.param(
            {**LOGIN, "DES_AUTH_URL": "https://auth.example"}, "auth.example", id="auth server"
        ),
    ],
)
def test_a_command_goes_through_the_environments_proxy(
    environment: dict[str, str], host: str, place: Workplace
) -> None:
    place.manifest(1)

    for name in ("https_proxy", "no_proxy", "NO_PROXY"):
        place.environment.pop(name, None)

    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(20)
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        reached = {"DES_BASE_URL": "https://des.example", "HTTPS_PROXY": url}
        place.environment.update(environment | reached)
        command = place.start("check", "night.jsonl", token=None)

        with proxy.accept()[0] as connection:
            asked = connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            done = ended(command)

    assert asked.startswith(f"CONNECT {host}:443 HTTP/1.1\r\n".encode())
    assert (done.returncode, "the proxy refused to connect" in done.stderr) == (5, True)
