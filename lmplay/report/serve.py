"""Serve the page that follows runs to this machine alone: no other machine and no other site gets at it."""

import errno
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from lmplay.crashes import one_line
from lmplay.errors import UserError
from lmplay.report.live import Live
from lmplay.report.page import fill, plotly_source
from lmplay.text import escaped

HERE = "127.0.0.1"
SHARE = 0.1
# A browser shows where it believes to be. A site of others that leads its name to this machine is told by that.
OWN_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageServer(ThreadingHTTPServer):
    """Answers with the page of `live`, and with what has changed since. Runs are read when somebody asks."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere two programs could then have one port

    def __init__(self, port: int, live: Live) -> None:
        super().__init__((HERE, port), Handler)
        self.live, self.lock = live, threading.Lock()
        self._next, self._said = 0.0, ""

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        return f"http://{HERE}:{self.server_port}/"

    def page(self) -> str:
        """Return the whole page as it is now."""
        with self.lock:
            self._look()
            return fill(self.live.parts(), self.live.content(), self.live.state)

    def since(self, state: str) -> str:
        """Return as JSON what changed since a page had `state`."""
        with self.lock:
            self._look()
            return self.live.since(state)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say in one line what went wrong with an answer; nothing of a browser that has left."""
        error = sys.exception()
        said = escaped(one_line(error)) if error and not isinstance(error, (ConnectionError, TimeoutError)) else ""
        if said and said != self._said:  # a page asks every few seconds
            print(f"lmp_plotstats: --serve could not answer: {said}", file=sys.stderr)
            self._said = said

    def _look(self) -> None:
        """Look at the runs, if that leaves the machine to them: it takes SHARE of the time of one core at most."""
        begun = time.monotonic()
        if begun >= self._next:
            self.live.look()
            self._next = time.monotonic() + (time.monotonic() - begun) / SHARE


class Handler(BaseHTTPRequestHandler):
    """Answers GET of / and of /state."""

    server: PageServer
    server_version, sys_version = "lmplay", ""
    timeout = 60.0

    def do_GET(self) -> None:
        """Answer one request."""
        if not OWN_HOST.fullmatch(self.headers.get("Host", "")):
            self._answer(403, "text/plain", "this page is for this machine alone: open it as 127.0.0.1 or localhost\n")
            return
        asked = urlsplit(self.path)
        if asked.path == "/":
            self._answer(200, "text/html", self.server.page())
        elif asked.path == "/state":
            self._answer(200, "application/json", self.server.since(parse_qs(asked.query).get("since", [""])[0]))
        else:
            self._answer(404, "text/plain", "there is nothing here\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode("utf-8", errors="replace")
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def start(live: Live, ports: Sequence[int]) -> PageServer:
    """Return a server that listens at the first of these ports of this machine that is free (0: any).

    Raises UserError if none is, and if plotly is missing.
    """
    plotly_source()
    why = ""
    for port in ports:
        try:
            return PageServer(port, live)
        except OSError as error:
            why = "is taken" if error.errno == errno.EADDRINUSE else f"can't be used ({error.strerror})"
    named = f"port {ports[0]}" if len(ports) == 1 else f"each port from {ports[0]} to {ports[-1]}"
    raise UserError(f"{named} {why}: name another with --serve=PORT (0: a free one)")
