"""A PostgreSQL of the tests' own: a cluster in a temporary folder, on a free port of loopback.

It is a child of the test process and goes with it, however that ends. Times in seconds.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

Mode = Literal["smart", "fast", "immediate"]

PASSWORD: Final = "s3cret/post+gres=="
"""Of every role, over TCP."""

SUPERUSER: Final = "postgres"
LAUNCHER: Final = "launcher"
"""A role without privileges, which owns the databases that tests use."""

PROGRAMS_MISSING: Final = "PostgreSQL is not installed"
DRIVER_MISSING: Final = "psycopg is not installed"
REMEDIES: Final = {
    PROGRAMS_MISSING: "install Debian's package postgresql",
    DRIVER_MISSING: "pip install 'deslaunch[postgres]'",
}

LIMIT: Final = 60.0
"""Seconds in which a server has started or stopped; far more than any needs."""

SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "fsync": "on",  # deslaunch refuses a server without it
    "shared_buffers": "16MB",
    "max_connections": "60",
    "log_line_prefix": "%m [%p] %a ",
}

ACCESS: Final = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"

# Waits for the end of its input, which the test process alone can write to: so it comes too when
# that process is killed. A frozen server sees a signal once it is continued. One that has ended
# removes its file; its number may stay for ever, where nobody waits for orphans.
GUARD: Final = """
read -r _
file=$1/data/postmaster.pid
if [ -e "$file" ] && pid=$(head -n 1 "$file") && kill -QUIT "$pid" && kill -CONT "$pid"; then
    while [ -e "$file" ] && kill -0 "$pid"; do sleep 0.02; done
fi
rm -rf "$1"
"""


def programs() -> Path | None:
    """Return the folder with initdb and postgres, the newest of Debian's first, or None."""
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = sorted(debian, key=lambda path: float(path.parts[-3]))

    if found:
        return found[-1].parent

    if shutil.which("pg_config"):
        command = ["pg_config", "--bindir"]
        told = subprocess.run(command, check=False, capture_output=True, text=True)
        folder = Path(told.stdout.strip())

        if (folder / "initdb").exists():
            return folder

    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


def missing() -> str | None:
    """Return what a test of PostgreSQL lacks here, a key of REMEDIES, or None."""
    if programs() is None:
        return PROGRAMS_MISSING

    return None if find_spec("psycopg") else DRIVER_MISSING


class Server:
    """One cluster and its server, which keeps its port over every restart.

    PostgreSQL refuses to run as root: where the tests do, the folder and the processes belong to
    ``postgres`` or ``nobody``.

    Args:
        folder: the cluster's, made new, removed in the end; by default in the system's temporary
            folder, since pytest's own are closed to other users, and a socket's path is short.

    Attributes:
        port: of 127.0.0.1.
        process: the server, or the last one where it is stopped.
    """

    def __init__(self, folder: Path | None = None) -> None:
        found = programs()
        assert found is not None, PROGRAMS_MISSING
        self._programs = found
        self.folder = folder or Path(tempfile.mkdtemp(prefix="deslaunch-postgres-"))
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._user = _unprivileged_user()

        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)

        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._changed: dict[str, str] = {}
        self._databases: list[str] = []
        self._guard = self._spawn("sh", "-c", GUARD, "sh", self.folder, stdin=subprocess.PIPE)
        self._make_cluster()

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<Server {state} port={self.port} folder={str(self.folder)!r}>"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def url(self) -> str:
        """The database ``postgres`` for the launcher, who may create nothing there."""
        return self.url_of("postgres")

    @property
    def superuser_url(self) -> str:
        return self.url_of("postgres", SUPERUSER)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs for every URL of this server, none of which has the password."""
        return {"PGPASSWORD": PASSWORD}

    def url_of(self, database: str, user: str = LAUNCHER) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Return once it accepts connections; one that is running goes on, if a test froze it."""
        if self.process is not None and self.running:
            self.process.send_signal(signal.SIGCONT)
            return

        self._write_settings()
        ready = self.folder / "data" / "postmaster.pid"
        command = (self._programs / "postgres", "-D", self.folder / "data")
        self.process = process = self._spawn(*command)

        def is_ready() -> bool:
            assert process.poll() is None, self.log()
            lines = ready.read_text().splitlines() if ready.exists() else []
            # One that was killed leaves its file to the next.
            return lines[:1] == [str(process.pid)] and lines[7:] == ["ready   "]

        wait_until(is_ready)

    def stop(self, mode: Mode = "fast") -> None:
        """Return once it has ended: *smart* waits for clients, *immediate* is a crash."""
        if self.process is None or not self.running:
            return

        signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        self.process.send_signal(signals[mode])
        self.process.send_signal(signal.SIGCONT)
        self.process.wait(LIMIT)

    def restart(self, mode: Mode = "fast") -> None:
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Crash the server and remove the folder, as happens too where nobody calls this."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()

        if self.process is not None:
            self.process.wait(LIMIT)

        self._guard.wait(LIMIT)

    def sql(self, statement: str, *params: Any, database: str = "postgres") -> list[Any]:
        """Run one statement as superuser, in a transaction of its own; return its rows.

        Args:
            database: a name, or a URL that leads to it.
        """
        import psycopg  # noqa: PLC0415  # the tests of all else run without it

        name = urlsplit(database).path.lstrip("/")

        with psycopg.connect(
            host=str(self.folder), port=self.port, user=SUPERUSER, dbname=name, autocommit=True
        ) as connection:
            cursor = connection.execute(statement.encode(), params or None)
            return cursor.fetchall() if cursor.description else []

    def new_database(self) -> str:
        """Return the URL of an empty database, which belongs to the launcher."""
        name = f"test_{secrets.token_hex(4)}"
        self.sql(f"CREATE DATABASE {name} OWNER {LAUNCHER}")
        self._databases.append(name)
        return self.url_of(name)

    def reset(self) -> None:
        """Make it a running primary again, as it was begun, without databases of tests."""
        self.start()
        self.set(**dict.fromkeys(list(self._changed)))

        if self.sql("SELECT pg_is_in_recovery()") == [(True,)]:
            self.promote()

        while self._databases:
            self.sql(f"DROP DATABASE IF EXISTS {self._databases[-1]} WITH (FORCE)")
            self._databases.pop()

    def set(self, **parameters: object) -> None:
        """Change settings of the whole server; None takes one back.

        It is restarted, fast, where one of them needs that. Else new sessions have it when this
        returns, and others before their next statement.
        """
        for name, value in parameters.items():
            if value is None:
                self._changed.pop(name, None)
            else:
                self._changed[name] = str(value)

        self._write_settings()

        if not parameters or not self.running:
            return

        query = "SELECT context FROM pg_settings WHERE name = ANY(%s)"
        contexts = self.sql(query, list(parameters))
        assert len(contexts) == len(parameters), f"one of these is no setting: {parameters}"

        if ("postmaster",) in contexts:
            self.restart()
            return

        before = self.sql("SELECT pg_conf_load_time()")
        self.sql("SELECT pg_reload_conf()")
        wait_until(lambda: self.sql("SELECT pg_conf_load_time()") != before)

    def kill_backends(self, application_name: str = "") -> int:
        """End the clients' sessions whose application's name begins so; return how many."""
        query = (
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE backend_type ="
            " 'client backend' AND pid <> pg_backend_pid() AND starts_with(application_name, %s)"
        )
        return sum(ended for (ended,) in self.sql(query, application_name))

    def base_backup(self, name: str) -> None:
        """Keep a copy of the whole cluster under this name, at the cost of a fast restart."""
        was_running = self.running
        self.stop()
        self._run("rm", "-rf", self.folder / name)
        self._run("cp", "-Rp", self.folder / "data", self.folder / name)

        if was_running:
            self.start()

    def restore(self, name: str) -> None:
        """Start again from such a copy: whatever was committed since is lost."""
        self.stop("immediate")
        self._run("rm", "-rf", self.folder / "data")
        self._run("cp", "-Rp", self.folder / name, self.folder / "data")
        self.start()

    def stand_by(self) -> None:
        """Restart as a standby, which is read-only and follows nobody."""
        self.stop()
        self._run("touch", self.folder / "data" / "standby.signal")
        self.start()

    def promote(self) -> None:
        """Make a standby the primary, with a timeline of its own, as after a failover."""
        self.sql("SELECT pg_promote()")

    def log(self) -> str:
        """Return what all servers of this cluster have logged."""
        return (self.folder / "log").read_text(errors="replace")

    def _make_cluster(self) -> None:
        options = ("--encoding=UTF8", "--locale=C", "--auth=trust", f"--username={SUPERUSER}")
        self._run(self._programs / "initdb", "--no-sync", *options, self.folder / "data")
        (self.folder / "data" / "pg_hba.conf").write_text(ACCESS)
        self.start()
        self.sql(f"ALTER ROLE {SUPERUSER} PASSWORD '{PASSWORD}'")
        self.sql(f"CREATE ROLE {LAUNCHER} LOGIN PASSWORD '{PASSWORD}'")

    def _write_settings(self) -> None:
        own = {"port": str(self.port), "unix_socket_directories": str(self.folder)}
        settings = {**SETTINGS, **own, **self._changed}
        quoted = {name: value.replace("'", "''") for name, value in settings.items()}
        lines = [f"{name} = '{value}'\n" for name, value in quoted.items()]
        (self.folder / "data" / "postgresql.conf").write_text("".join(lines))

    def _run(self, *command: str | Path) -> None:
        process = self._spawn(*command)
        assert process.wait(LIMIT) == 0, self.log()

    def _spawn(
        self, *command: str | Path, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in a terminal is for pytest, and reaches its whole group.
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(part) for part in command],
                cwd=self.folder,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                stdin=stdin,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self._user and self._user.pw_uid,
                group=self._user and self._user.pw_gid,
                extra_groups=None if self._user is None else [],
            )


def _unprivileged_user() -> pwd.struct_passwd | None:
    if os.geteuid():
        return None

    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _free_port() -> int:
    """Return a port below those that clients get.

    From among theirs, a client that reconnects could get the port itself, be connected to itself,
    and keep the server from coming back.
    """
    while True:
        port = 15_000 + secrets.randbelow(15_000)

        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue

            return port


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once it is true: of a server's files, which tell nobody that they have changed."""
    deadline = time.monotonic() + LIMIT

    while not condition():
        assert time.monotonic() < deadline, "PostgreSQL took too long"
        time.sleep(0.01)
