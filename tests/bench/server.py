"""nginx with Lua: one worker that responds to starts at once, or later, and counts them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .ground import JOBS, BenchFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

_MODULES: Final = ("ndk_http_module.so", "ngx_http_lua_module.so")
_FOLDERS: Final = tuple(map(Path, ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules")))
_BINARIES: Final = ("/usr/sbin", "/usr/local/sbin")
_LIMIT: Final = 10.0  # seconds to begin or to end
_DIRECTLY: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_CONFIG: Final = """\
%(modules)s
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log warn;

events {
    worker_connections 4096;
}

http {
    access_log off;
    log_format starts '$status $row';
    default_type application/json;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    client_body_buffer_size 16k;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    lua_shared_dict counters 64k;

    init_by_lua_block {
        local counters = ngx.shared.counters
        local batch = os.time()

        function start_job(latency)
            ngx.req.read_body()
            local body = ngx.req.get_body_data() or ""
            local job = string.match(body, '"jobId" *: *"(%%x[%%x-]+)"')

            if not job then
                return ngx.exit(400)
            end

            local number = counters:incr("starts", 1, 0)

            if latency then
                ngx.sleep(latency)
            end

            local answer = string.format(
                '{"jobId":"%%s","jobRunId":"%%08x-0000-4000-8000-%%012x"}', job, batch, number)
            ngx.header.content_length = #answer
            ngx.print(answer)
        end
    }

    server {
        listen 127.0.0.1:%(port)d backlog=4096;

        location = /api/v1/startjob { content_by_lua_block { start_job() } }
        location ~ "^/slow/([0-9]+)/api/v1/startjob$" {
            content_by_lua_block { start_job(tonumber(ngx.var[1]) / 1000) }
        }
        location = /soak/api/v1/startjob {
            access_log starts.log starts buffer=64k;
            set $row "";
            content_by_lua_block {
                ngx.req.read_body()
                local body = ngx.req.get_body_data() or ""
                ngx.var.row = string.match(body, '"valueStringEncoded" *: *"(%%d+)"')

                if ngx.shared.counters:incr("soak", 1, 0) %% 100 == 0 then
                    return ngx.exit(503)
                end

                start_job(0.02)
            }
        }
        location ~ /api/v1/queryjobs$ { return 200 '%(jobs)s'; }
        location = /starts {
            content_by_lua_block { ngx.print(ngx.shared.counters:get("starts") or 0) }
        }
    }
}
"""


class Server:
    """A service that is at work.

    Attributes:
        url: its base URL; with ``/slow/20`` behind it, that of the same service, 20 ms slower; with
            ``/soak``, one that takes 20 ms, responds 503 to each hundredth start, and logs all of
            them in ``starts.log``: status, and the first number that the row says.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def starts(self) -> int:
        """Return how many starts it has seen."""
        with _DIRECTLY.open(f"{self.url}/starts", timeout=_LIMIT) as answer:
            return int(answer.read())


def missing() -> str:
    """Return what is missing to run the server, with the way to get it; "" for nothing."""
    if _binary() and _modules():
        return ""

    return (
        "the bench's server is nginx with its Lua module, and at least one of them is not here: "
        "apt-get install nginx libnginx-mod-http-lua"
    )


def config(port: int, modules: tuple[Path, ...]) -> str:
    """Return nginx's configuration."""
    return _CONFIG % {
        "modules": "\n".join(f"load_module {module};" for module in modules),
        "port": port,
        "jobs": JOBS,
    }


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Run the server for the time of a block, with its files in ``folder``.

    Raises:
        BenchFailed: nginx or its module is missing, or it does not begin.
    """
    if reason := missing():
        raise BenchFailed(reason)

    folder.mkdir()
    port = _free_port()
    path = folder / "nginx.conf"
    path.write_text(config(port, _modules()), encoding="utf-8")
    nginx = subprocess.Popen(
        [_binary() or "nginx", "-p", str(folder), "-e", "error.log", "-c", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    try:
        yield _begun(Server(port), nginx, folder)
    finally:
        nginx.terminate()
        nginx.wait(_LIMIT)


def _begun(server: Server, nginx: subprocess.Popen[bytes], folder: Path) -> Server:
    """Wait until the server answers."""
    until = time.monotonic() + _LIMIT

    while time.monotonic() < until and nginx.poll() is None:
        with suppress(OSError):
            server.starts()
            return server

        time.sleep(0.02)

    log = folder / "error.log"
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else "nothing"
    raise BenchFailed(f"nginx does not begin; it said: {said.strip()[-500:]}")


def _binary() -> str | None:
    return shutil.which("nginx") or next(
        (found for folder in _BINARIES if (found := shutil.which("nginx", path=folder))), None
    )


def _modules() -> tuple[Path, ...]:
    for folder in _FOLDERS:
        found = tuple(folder / name for name in _MODULES)

        if all(module.exists() for module in found):
            return found

    return ()


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port
