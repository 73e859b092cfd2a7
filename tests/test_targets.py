"""Many organisations: each with its own token and place, and each fails for itself alone."""

from __future__ import annotations

import json
import logging
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import pytest
from authserver import ACCESS, LOGIN, SECRETS, auth_server, granted, http, refused
from commands import Workplace, workplace
from stage import JOB, Place, counts, fault, once, quick, row, rows, runs_of, service

import deslaunch
from deslaunch.client import DesClient
from deslaunch.config import Credentials, Login, Secret, TargetSettings
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    InvalidManifest,
    NotSent,
    SchemaError,
)
from deslaunch.model import Stopped, StopReason, TargetPaused, TokenRenewed
from deslaunch.oauth import OAuthToken
from deslaunch.simulator import Simulator
from deslaunch.targets import Connection, check_targets, client_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from stage import Said

    from deslaunch.model import Event


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def oauth(url: str, **more: Any) -> OAuthToken:
    options: Any = {**LOGIN, "auth_url": url, **more}
    return OAuthToken(**options)


@asynccontextmanager
async def organisations(
    **scripts: Said,
) -> AsyncIterator[tuple[dict[str, Simulator], dict[str, DesClient]]]:
    """Run a simulator that is an auth server too for each target, and a client of each."""
    async with AsyncExitStack() as stack:
        simulators = {
            name: await stack.enter_async_context(Simulator(tokens=(), script=script))
            for name, script in scripts.items()
        }
        clients = {
            name: await stack.enter_async_context(
                DesClient(None, token=oauth(simulator.base_url, org_id=name.upper()))
            )
            for name, simulator in simulators.items()
        }
        yield simulators, clients


def of_both(count: int) -> list[Said]:
    """Return rows of two targets, in turns: odd ones of acme, even ones of bistro."""
    names = ("bistro", "acme")
    return [row(number, target=names[number % 2]) for number in range(1, count + 1)]


ODD: Final = range(1, 41, 2)
EVEN: Final = range(2, 41, 2)


# -- launches ---------------------------------------------------------------------------------


async def test_a_token_that_can_not_be_renewed_stops_its_own_target_alone(place: Place) -> None:
    place.write(of_both(40))
    no_renewal: Said = {
        "tokens": {"expireAfter": 5, "which": "first"},
        "faults": [{"fault": "status", "on": "token", "status": 400, "from": 2, "to": 3}],
    }

    async with organisations(acme={}, bistro=no_renewal) as (simulators, clients):
        summary = await place.launch(clients)

        assert summary.exit_code == 6
        assert counts(summary) == {"started": 25, "pending": 15}
        assert [(stop.target, stop.reason) for stop in summary.stops] == [
            ("bistro", StopReason.CREDENTIALS)
        ]
        assert runs_of(simulators["acme"]) == once(ODD)
        assert len(simulators["bistro"].runs) == 5

        resumed = await place.resume(clients)

    assert (resumed.exit_code, counts(resumed)) == (0, {"started": 40})
    assert runs_of(simulators["acme"]) == once(ODD)
    assert runs_of(simulators["bistro"]) == once(EVEN)


async def test_tokens_that_expire_all_the_time_are_refreshed(place: Place) -> None:
    place.write(rows(40))
    told: list[Event] = []

    async with organisations(default={"tokens": {"expireAfter": 10, "which": "all"}}) as (
        simulators,
        clients,
    ):
        summary = await place.launch(clients, on_event=told.append)

    assert counts(summary) == {"started": 40}
    assert runs_of(simulators["default"]) == once(range(1, 41))
    assert simulators["default"].count("token") == 4
    assert sum(isinstance(event, TokenRenewed) for event in told) == 3


async def test_an_auth_server_that_is_away_pauses_the_target(place: Place) -> None:
    place.write(rows(20))
    told: list[Event] = []
    away: Said = {
        "tokens": {"expireAfter": 10, "which": "first"},
        "faults": [{"fault": "status", "on": "token", "status": 503, "from": 2, "to": 4}],
    }

    async with organisations(default=away) as (simulators, clients):
        summary = await place.launch(clients, on_event=told.append)

    assert counts(summary) == {"started": 20}
    assert runs_of(simulators["default"]) == once(range(1, 21))
    causes = [event.cause for event in told if isinstance(event, TargetPaused)]
    assert causes[0].endswith(" answered 503")


async def test_where_des_moves_between_two_grants_the_rest_goes_to_the_new_place(
    place: Place,
) -> None:
    place.write(rows(12))

    async with (
        Simulator(tokens=[f"{ACCESS}1"], script={"tokens": {"expireAfter": 5}}) as old,
        Simulator(tokens=[f"{ACCESS}2"]) as new,
        auth_server(granted(1, svc=old.base_url), granted(2, svc=new.base_url)) as server,
        DesClient(None, token=oauth(server.url)) as des,
    ):
        summary = await place.launch(des)

    assert counts(summary) == {"started": 12}
    assert (len(old.runs), len(new.runs)) == (5, 7)
    assert runs_of(old) + runs_of(new) == once(range(1, 13))


async def test_the_session_says_where_it_was_and_whose(place: Place) -> None:
    place.write([row(1, target="acme")])

    async with organisations(acme={}, bistro={}) as (simulators, clients):
        await place.launch(clients)

    (session,) = place.records("session")
    assert session["targets"] == {"acme": {"baseUrl": simulators["acme"].base_url, "orgId": "ACME"}}


async def test_the_session_says_where_it_was_although_the_jobs_are_cached(place: Place) -> None:
    place.write(rows(1))

    async with Simulator(tokens=()) as simulator:
        for _ in range(2):
            place.ledger.unlink(missing_ok=True)

            async with DesClient(None, token=oauth(simulator.base_url)) as des:
                await place.launch(des)

        assert simulator.count("queryjobs") == 1

    (session,) = place.records("session")
    assert session["targets"] == {"default": {"baseUrl": simulator.base_url, "orgId": "BISTRO"}}


async def test_no_secret_is_in_the_ledger_or_the_cache(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.write(rows(3))
    caplog.set_level(logging.DEBUG)
    answers = refused(400, error=ACCESS, error_description=LOGIN["password"])

    async with (
        Simulator(tokens=[f"{ACCESS}1"], script={"tokens": {"expireAfter": 1}}) as simulator,
        auth_server(granted(1, svc=simulator.base_url), answers) as server,
        DesClient(None, token=oauth(server.url)) as des,
    ):
        summary = await place.launch(des)

    assert summary.exit_code == 6
    files = [path for path in place.folder.rglob("*") if path.is_file()]
    kept = "".join(path.read_text() for path in files) + caplog.text + repr(summary)
    assert len(files) == 3
    assert not [secret for secret in SECRETS if secret in kept]


async def test_a_target_that_no_row_names_need_not_work(place: Place) -> None:
    place.write([row(1, target="acme")])

    async with (
        Simulator(tokens=["t"]) as simulator,
        DesClient(simulator.base_url, token="t") as acme,
        DesClient(None, token=oauth("http://127.0.0.1:9")) as bistro,
    ):
        summary = await place.launch({"acme": acme, "bistro": bistro})

    assert counts(summary) == {"started": 1}


NO_LOGIN: Final = refused(401, error="invalid_client")


@pytest.mark.parametrize(
    ("answer", "reason", "code"),
    [
        pytest.param(NO_LOGIN, StopReason.CREDENTIALS, 6, id="refused"),
        pytest.param(http(500, b""), StopReason.UNREACHABLE, 5, id="away"),
        pytest.param(http(404, b""), StopReason.CONFIGURATION, 5, id="wrong"),
    ],
)
async def test_a_target_whose_jobs_can_not_be_had_is_left_out(
    answer: bytes, reason: StopReason, code: int, place: Place
) -> None:
    place.write(of_both(10))
    told: list[Event] = []

    async with (
        service(place) as (simulator, acme),
        auth_server(answer) as server,
        DesClient(None, token=oauth(server.url)) as bistro,
    ):
        summary = await place.launch({"acme": acme, "bistro": bistro}, on_event=told.append)

        assert (summary.exit_code, counts(summary)) == (code, {"started": 5, "pending": 5})
        assert [(stop.target, stop.reason) for stop in summary.stops] == [("bistro", reason)]
        assert [event.stop for event in told if isinstance(event, Stopped)] == list(summary.stops)
        assert not summary.stops[0].message.startswith("target")
        assert runs_of(simulator) == once(range(1, 11, 2))
        assert len(server.asked) == 1

        async with DesClient(None, token=oauth(simulator.base_url)) as mended:
            resumed = await place.resume({"acme": acme, "bistro": mended})

        assert (resumed.exit_code, counts(resumed)) == (0, {"started": 10})
        assert runs_of(simulator) == once(range(1, 11))


async def test_a_target_that_is_left_out_of_a_resume_loses_no_row(place: Place) -> None:
    place.write(of_both(10))

    async with service(place, fault("status", 4, status=400)) as (simulator, des):
        await place.launch({"acme": des, "bistro": des}, concurrency=1)
        place.write([*of_both(10), row(11, target="acme"), row(12, target="bistro")])
        (place.folder / "cache").rename(place.folder / "old")

        async with (
            auth_server(NO_LOGIN) as server,
            DesClient(simulator.base_url, token=oauth(server.url)) as bistro,
        ):
            summary = await place.resume({"acme": des, "bistro": bistro})

    assert counts(summary) == {"started": 10, "rejected": 1, "pending": 1}
    assert runs_of(simulator) == once([1, 2, 3, 5, 6, 7, 8, 9, 10, 11])


async def test_rows_of_a_target_that_is_left_out_share_no_keys(place: Place) -> None:
    place.write([row(1, target="acme"), row(2, target="bistro"), row(2, target="bistro")])

    async with (
        service(place) as (simulator, acme),
        auth_server(NO_LOGIN) as server,
        DesClient(None, token=oauth(server.url)) as bistro,
    ):
        with pytest.raises(InvalidManifest) as caught:
            await place.launch({"acme": acme, "bistro": bistro})

        assert "key 'r2' is that of line 2" in caught.value.problems[0].message
        assert simulator.runs == []


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        pytest.param(NO_LOGIN, CredentialsRefused, id="refused"),
        pytest.param(http(500, b""), NotSent, id="away"),
    ],
)
async def test_where_no_target_works_nothing_begins(
    answer: bytes, kind: type[Exception], place: Place
) -> None:
    place.write([row(2, target="bistro")])

    async with (
        service(place) as (_, acme),
        auth_server(answer) as server,
        DesClient(None, token=oauth(server.url)) as bistro,
    ):
        clients = {"acme": acme, "bistro": bistro}

        with pytest.raises(kind, match=r"^target bistro: the auth server "):
            await place.launch(clients)

        with pytest.raises(kind, match=r"^target bistro: the auth server "):
            await deslaunch.check(place.manifest, clients, cache=place.cache)

    assert not place.ledger.exists()


async def test_a_batch_of_rows_from_a_program_goes_to_many_organisations(place: Place) -> None:
    async with organisations(acme={}, bistro={}) as (simulators, clients):
        async with deslaunch.open_batch(
            of_both(10), clients, ledger=place.ledger, cache=place.cache, **quick({})
        ) as batch:
            states = [outcome.state async for outcome in batch]

        assert states == ["started"] * 10
        assert runs_of(simulators["acme"]) == once(range(1, 11, 2))
        assert runs_of(simulators["bistro"]) == once(range(2, 11, 2))


async def test_a_targets_slots_are_its_own(place: Place) -> None:
    place.write(of_both(40))

    async with (
        Simulator(tokens=["t"], script={"latency": 0.01}) as slow,
        Simulator(tokens=["t"], script={"latency": 0.01}) as fast,
        DesClient(slow.base_url, token="t", concurrency=2) as acme,
        DesClient(fast.base_url, token="t", concurrency=99) as bistro,
    ):
        summary = await place.launch({"acme": acme, "bistro": bistro}, concurrency=8)

    assert counts(summary) == {"started": 40}
    assert slow.peak == 2
    assert 2 < fast.peak <= 8


# -- resumes ----------------------------------------------------------------------------------


async def begun(place: Place, des: DesClient) -> None:
    place.write([row(1), row(2)])
    place.write([row(1)])
    await place.launch(des)
    place.write([row(1), row(2)])


async def test_the_same_organisation_may_have_moved(place: Place) -> None:
    async with organisations(default={}) as (_, clients):
        await begun(place, clients["default"])

    async with (
        Simulator(tokens=[f"{ACCESS}1"]) as elsewhere,
        auth_server(granted(1, svc=elsewhere.base_url, org_id="DEFAULT")) as server,
        DesClient(None, token=oauth(server.url, org_id="DEFAULT")) as des,
    ):
        summary = await place.resume(des)

    assert counts(summary) == {"started": 2}
    assert runs_of(elsewhere) == once([2])


async def test_another_organisation_is_refused_wherever_it_is(place: Place) -> None:
    async with organisations(default={}) as (simulators, clients):
        simulator = simulators["default"]
        await begun(place, clients["default"])

        async with DesClient(None, token=oauth(simulator.base_url, org_id="CAFE")) as other:
            for allowed in (False, True):
                with pytest.raises(ConfigurationError, match="organisation DEFAULT in the last"):
                    await place.resume(other, allow_new_origin=allowed)

        assert runs_of(simulator) == once([1])


async def test_a_login_instead_of_a_token_must_lead_to_the_same_place(place: Place) -> None:
    async with Simulator(tokens=["t"]) as simulator:
        async with DesClient(simulator.base_url, token="t") as des:
            await begun(place, des)

        async with (
            Simulator() as elsewhere,
            DesClient(None, token=oauth(elsewhere.base_url)) as other,
        ):
            with pytest.raises(ConfigurationError, match="its jobs may not be the same"):
                await place.resume(other)

        async with DesClient(None, token=oauth(simulator.base_url)) as same:
            summary = await place.resume(same)

    assert counts(summary) == {"started": 2}
    assert runs_of(simulator) == once([1, 2])


async def test_a_target_that_the_last_session_did_not_use_may_be_anywhere(place: Place) -> None:
    place.write([row(1)])

    async with service(place) as (simulator, des):
        await place.launch({"default": des, "acme": des})
        place.write([row(1), row(2)])

        async with DesClient("http://127.0.0.1:9", token="t") as moved:
            summary = await place.resume({"default": des, "acme": moved})

    assert counts(summary) == {"started": 2}
    assert runs_of(simulator) == once([1, 2])


# -- what is found of targets -----------------------------------------------------------------


async def test_each_target_is_told_of_by_itself() -> None:
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(Simulator(tokens=["t"]))
        broken = await stack.enter_async_context(
            Simulator(tokens=["t"], script={"faults": [{"fault": "not-json", "on": "queryjobs"}]})
        )
        forbidden = await stack.enter_async_context(
            Simulator(
                tokens=["t"],
                script={"faults": [{"fault": "status", "status": 403, "on": "queryjobs"}]},
            )
        )
        server = await stack.enter_async_context(auth_server(refused(400, error="invalid_grant")))
        clients = {
            "good": DesClient(simulator.base_url, token="t"),
            "login": DesClient(None, token=oauth(simulator.base_url)),
            "wrong": DesClient(simulator.base_url, token="x"),
            "refused": DesClient(None, token=oauth(server.url)),
            "away": DesClient("http://127.0.0.1:9", token="t"),
            "odd": DesClient(broken.base_url, token="t"),
            "forbidden": DesClient(forbidden.base_url, token="t"),
        }

        for client in clients.values():
            await stack.enter_async_context(client)

        reports = await check_targets(clients)

    assert {report.target: (report.token, report.jobs, report.exit_code) for report in reports} == {
        "good": (True, 2, 0),
        "login": (True, 2, 0),
        "wrong": (False, None, 6),
        "refused": (False, None, 6),
        "away": (None, None, 5),
        "odd": (True, None, 2),
        "forbidden": (True, None, 5),
    }
    assert isinstance(reports[5].error, SchemaError)
    assert all(report.error is None or report.as_dict()["hint"] is not None for report in reports)


@pytest.mark.parametrize(
    ("of_target", "connection", "made"),
    [
        pytest.param({}, Connection(), (60, None), id="defaults"),
        pytest.param({"timeout": 7.0, "concurrency": 2}, Connection(), (7, 2), id="its-own"),
        pytest.param({"timeout": 7.0}, Connection(timeout=9), (9, None), id="an-option-wins"),
    ],
)
def test_a_client_is_made_as_its_target_says(
    of_target: dict[str, Any], connection: Connection, made: tuple[float, int | None]
) -> None:
    des = client_of(TargetSettings("https://des.example", Credentials(), **of_target), connection)

    assert (des.timeout, des.concurrency) == made


@pytest.mark.parametrize(
    ("of_target", "of_all"),
    [
        pytest.param(True, False, id="its-own"),
        pytest.param(False, True, id="by-the-option"),
        pytest.param(False, False, id="nobody"),
    ],
)
def test_http_is_allowed_by_a_target_or_for_all(*, of_target: bool, of_all: bool) -> None:
    settings = TargetSettings("http://des.example", Credentials(), allow_http=of_target)
    allowed = nullcontext() if of_target or of_all else pytest.raises(ConfigurationError)

    with allowed:
        client_of(settings, Connection(allow_http=of_all))


def test_the_auth_server_is_reached_by_its_own_proxy() -> None:
    asked = []
    secret = Secret(variable="S")
    login = Login("B", "c", secret, secret, secret, auth_url="https://auth.example")

    def proxy(url: str) -> None:
        asked.append(url)

    client_of(TargetSettings(None, Credentials(login=login)), Connection(proxy=proxy))

    assert asked == ["https://auth.example"]


# -- the command line -------------------------------------------------------------------------

CONFIG: Final = """
[targets.acme]
base_url = "{url}"
token_env = "ACME_TOKEN"
concurrency = 2

[targets.bistro.oauth]
org_id = "BISTRO"
client_id = "night"
client_secret_env = "BISTRO_SECRET"
username_env = "BISTRO_USER"
password_file = "bistro.password"
auth_url = "{url}"
"""
VARIABLES: Final = {
    "ACME_TOKEN": "s3cret/tok+en==",
    "BISTRO_SECRET": "s3cret-of-the-client",
    "BISTRO_USER": "night",
}


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Workplace]:
    """Give a place with a configuration file of two targets, and nothing in the environment."""
    with workplace(tmp_path) as found:
        url = found.environment.pop("DES_BASE_URL")
        (tmp_path / "targets.toml").write_text(CONFIG.format(url=url))
        (tmp_path / "bistro.password").write_text("p4ss\n")
        yield Workplace(tmp_path, found.environment | VARIABLES, found.processes)


def two_targets(office: Workplace) -> None:
    text = "key,target,jobId,DBGenFrom\n"
    text += "".join(f"k{n},{('bistro', 'acme')[n % 2]},{JOB},{n}\n" for n in range(1, 21))
    (office.folder / "both.csv").write_text(text)


WITH_CONFIG: Final = ("--config", "targets.toml")


@pytest.mark.slow
class TestCommands:
    def test_targets_shows_a_table(self, office: Workplace) -> None:
        url = office.json("targets", *WITH_CONFIG)["targets"][0]["baseUrl"]

        done = office.run("targets", *WITH_CONFIG, token=None)

        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split() for line in done.stdout.splitlines()] == [
            ["target", "base", "URL", "organisation", "token", "jobs"],
            ["acme", url, "-", "ok", "2"],
            ["bistro", url, "BISTRO", "ok", "2"],
        ]

    def test_targets_says_what_is_wrong_with_each(self, office: Workplace) -> None:
        del office.environment["BISTRO_USER"]
        office.environment["ACME_TOKEN"] = "wrong"

        done = office.run("targets", *WITH_CONFIG, "--json", token=None)
        shown = office.run("targets", *WITH_CONFIG, token=None)

        said = json.loads(done.stdout)
        assert (done.returncode, said["exitCode"]) == (6, 6)
        assert [(one["target"], one["token"], one["jobs"]) for one in said["targets"]] == [
            ("acme", False, None),
            ("bistro", False, None),
        ]
        assert "error: target bistro: the variable BISTRO_USER holds nothing" in shown.stderr

    def test_a_manifest_goes_to_two_organisations(self, office: Workplace) -> None:
        two_targets(office)

        checked = office.run("check", "both.csv", *WITH_CONFIG, token=None)
        done = office.run("run", "both.csv", *WITH_CONFIG, token=None)

        assert (checked.returncode, done.returncode) == (0, 0), done.stderr
        assert sorted(office.logged_rows) == list(range(1, 21))
        everything = "".join(
            path.read_text()
            for path in office.folder.rglob("*")
            if path.suffix != ".password"
            if path.is_file()
        )
        assert "p4ss" not in everything + done.stdout + done.stderr

    def test_a_resume_is_told_with_the_same_files(self, office: Workplace) -> None:
        two_targets(office)
        del office.environment["BISTRO_USER"]
        (office.folder / ".env").write_text("export BISTRO_USER='night'\nACME_TOKEN=unused\n")
        args = (*WITH_CONFIG, "--env-file", ".env")
        office.run("check", "both.csv", *args, token=None)

        script = office.run("run", "both.csv", *WITH_CONFIG, token=None)
        mended = office.run("resume", "both.ledger.jsonl", *args, token=None)

        assert script.returncode == 6, script.stderr
        assert "target bistro stopped: the variable BISTRO_USER holds nothing" in script.stderr
        assert (
            "go on with a new token: deslaunch resume both.ledger.jsonl --config targets.toml"
            in script.stderr
        )
        assert mended.returncode == 0, mended.stderr
        assert sorted(office.logged_rows) == list(range(1, 21))

    def test_the_jobs_of_one_target(self, office: Workplace) -> None:
        of_one = office.run("jobs", "--target", "bistro", *WITH_CONFIG, "--json", token=None)
        of_none = office.run("jobs", *WITH_CONFIG, token=None)

        assert len(json.loads(of_one.stdout)["jobs"]) == 2
        assert of_none.returncode == 2
        assert "there is no target default" in of_none.stderr
        assert "pass --target and one of acme, bistro" in of_none.stderr

    def test_the_users_own_file_is_found_and_one_beside_a_manifest_is_not(
        self, office: Workplace
    ) -> None:
        beside = office.folder / "config.toml"
        (office.folder / "targets.toml").rename(beside)
        before = office.run("targets", token=None)
        own = office.folder / "config" / "deslaunch"
        own.mkdir(parents=True)
        beside.rename(own / "config.toml")
        (office.folder / "bistro.password").rename(own / "bistro.password")

        after = office.run("targets", token=None)

        assert (before.returncode, after.returncode) == (2, 0), after.stderr
        assert "there is no base URL" in before.stderr

    def test_a_configuration_folder_that_can_not_be_looked_into_is_none(
        self, office: Workplace
    ) -> None:
        url = office.json("targets", *WITH_CONFIG)["targets"][0]["baseUrl"]
        office.environment.update(DES_BASE_URL=url, XDG_CONFIG_HOME=f"/{300 * 'x'}")

        assert office.run("targets").returncode == 0

    def test_a_mistake_in_the_file_ends_every_command(self, office: Workplace) -> None:
        two_targets(office)
        path = office.folder / "targets.toml"
        path.write_text(path.read_text().replace("concurrency", "concurency"))

        for command in (("targets",), ("jobs",), ("check", "both.csv"), ("run", "both.csv")):
            done = office.run(*command, *WITH_CONFIG, token=None)
            assert done.returncode == 2
            assert "[targets.acme] concurency: is no key of this table" in done.stderr

    def test_a_timeout_of_the_file_yields_to_one_that_is_given(self, office: Workplace) -> None:
        office.manifest(1)
        path = office.folder / "targets.toml"
        path.write_text(path.read_text().replace("concurrency = 2", "timeout = 7"))
        given = ("run", "night.jsonl", *WITH_CONFIG, "--target", "acme")
        office.run(*given, "--ledger", "one", token=None)
        office.run(*given, "--ledger", "two", "--timeout=9", token=None)
        office.environment["DESLAUNCH_TIMEOUT"] = "8"
        office.run(*given, "--ledger", "three", token=None)

        texts = [(office.folder / name).read_text() for name in ("one", "two", "three")]
        sessions = [json.loads(text.splitlines()[1]) for text in texts]
        assert [session["options"]["timeout"] for session in sessions] == [7, 9, 8]
        assert [list(session["targets"]) for session in sessions] == [["acme"]] * 3

    def test_a_file_of_variables_gives_way_to_the_environment(self, office: Workplace) -> None:
        (office.folder / ".env").write_text("ACME_TOKEN=wrong\nBISTRO_USER=night\n")
        del office.environment["BISTRO_USER"]

        without = office.run("targets", *WITH_CONFIG, token=None)
        done = office.run("targets", *WITH_CONFIG, "--env-file", ".env", token=None)

        assert (without.returncode, done.returncode) == (6, 0), done.stderr

    def test_a_login_from_the_environment_alone(self, office: Workplace) -> None:
        url = office.json("targets", *WITH_CONFIG)["targets"][0]["baseUrl"]
        office.environment.update(
            DES_AUTH_URL=url,
            DES_ORG_ID="BISTRO",
            DES_CLIENT_ID="night",
            DES_CLIENT_SECRET="s3cret-of-the-client",
            DES_USERNAME="night",
            DES_PASSWORD="p4ss",
        )
        office.manifest(5)

        shown = office.run("targets", token=None)
        done = office.run("run", "night.jsonl", token=None)

        assert shown.stdout.splitlines()[1].split() == ["default", url, "BISTRO", "ok", "2"]
        assert done.returncode == 0, done.stderr
        assert sorted(office.logged_rows) == [1, 2, 3, 4, 5]
