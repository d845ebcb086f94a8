"""The pages of `serve`. They show hostile text: Jinja escapes it, no script but ours runs, and no name becomes a path.

A session is read as far as it has grown. What a night is asked goes into its inbox.
"""

import ipaddress
import secrets
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.cli.inspect import describe_session, find_copy, find_process, list_sessions
from orchestrator.cli.options import Paths, read_session
from orchestrator.core.source import compute_digest
from orchestrator.policy.limits import estimate_run_seconds
from orchestrator.repo import write_git
from orchestrator.session.inbox import Control, send_control
from orchestrator.session.store import Session
from orchestrator.supervisor import GUIDANCE_CHARACTERS
from orchestrator.views import comparison, event_text
from orchestrator.views.charts import draw_progress
from orchestrator.views.experiments import list_rows
from orchestrator.views.musings import search
from orchestrator.views.render import render_template
from orchestrator.views.report import render_report
from prepare.command import UserError
from prepare.files import read_written, write_atomically

MAX_FORM = 256 << 10  # bytes of a form: guidance.md as far as it is read, in any script, percent-encoded
SHOWN = 100  # experiments on a page that follows its night
CACHED = 32  # sessions that stay in memory
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@cache
def permit_charts() -> dict[str, str]:
    """Return the policy of a page with charts: its two scripts run, and no other, in an origin of its own."""
    from plotly.offline import get_plotlyjs

    scripts = (f"\n{render_template('page.js')}", get_plotlyjs())
    hashes = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    allowed = f"script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; frame-ancestors 'none'"
    return {"Content-Security-Policy": f"sandbox allow-scripts allow-downloads; default-src 'none'; {allowed}"}


class Guard:
    """Turns away strangers and the forms of foreign pages, and hardens every answer."""

    def __init__(self, app: ASGIApp, *, host: str, token: str) -> None:
        self.app, self.host, self.token = app, host, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                for name, value in HEADERS.items():
                    MutableHeaders(scope=message).setdefault(name, value)
            await send(message)

        await (self.judge(HTTPConnection(scope)) or self.app)(scope, receive, send_hardened)

    def judge(self, request: HTTPConnection) -> Response | None:
        """Return the answer to a request that may not pass; None if it may."""
        headers, cookie = request.headers, f"nightshift-{request.url.port}"
        if not is_own_name(headers.get("host", ""), self.host):
            return _answer(421, "This server has another name.")
        if self.token and self._is_token(request.query_params.get("token", "")):
            welcome = RedirectResponse(f"/{request.url.path.lstrip('/')}", 303)
            welcome.set_cookie(cookie, self.token, httponly=True, samesite="lax")
            return welcome
        if self.token and not self._is_token(request.cookies.get(cookie, "")):
            return _answer(401, "Open the link that `nightshift serve` printed: it holds the token.")
        if request.scope["method"] == "POST":
            if headers.get("origin", "").partition("://")[2] != headers.get("host"):
                return _answer(403, "The form was not sent by a page of this server.")
            if not 0 <= int(headers.get("content-length", "-1")) <= MAX_FORM:
                return _answer(413, "The form is too long.")
        return None

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self.token.encode())


def is_own_name(header: str, host: str) -> bool:
    """Return whether a Host header names this server: by an address, or by no name that could be led here by DNS."""
    try:
        name = urlsplit(f"//{header}").hostname or ""
        return name in ("localhost", host.lower()) or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _answer(status: int, text: str) -> HTMLResponse:
    return HTMLResponse(render_template("serve_text.html", title=str(status), text=text), status)


async def _tell(request: Request, error: Exception) -> Response:  # noqa: ARG001 - as Starlette calls it
    return _answer(*(error.status_code, error.detail) if isinstance(error, HTTPException) else (422, str(error)))


def _tell_time(session: Session) -> float:
    """Return the time by the clock of the night, which does not run while the machine sleeps."""
    files = session.path, session.path.with_name("session.db-wal")
    written = max(file.stat().st_mtime for file in files if file.exists())
    return session.state.now + max(0.0, time.time() - written)


class Site:
    """All pages; the folders are those of `paths`."""

    def __init__(self, paths: Paths) -> None:
        self.paths, self.guidance = paths, paths.script.parent / "guidance.md"
        self.secret = secrets.token_urlsafe()
        """Stands in every form: a foreign page, which cannot read it, cannot send one."""
        self.known: dict[tuple[str, int], Session] = {}
        self.saving = Lock()

    def build(self, host: str, token: str) -> Starlette:
        """Return the application; with a token, only who has it is let in."""
        routes = [
            Route("/", self.list_sessions),
            Route("/compare", self.compare),
            Route("/musings", self.search_musings),
            Route("/guidance", self.show_guidance),
            Route("/guidance", self._read_form(self.save_guidance), methods=["POST"]),
            Route("/sessions/{name}", self.show_session),
            Route("/sessions/{name}/live", self.follow_session),
            Route("/sessions/{name}/report", self.show_report),
            Route("/sessions/{name}/events/{number}", self.show_event),
            Route("/sessions/{name}/control", self._read_form(self.steer), methods=["POST"]),
            Route("/assets/{file}", self.show_asset),
        ]
        told = dict.fromkeys((UserError, HTTPException, OSError, ClientDisconnect), _tell)
        return Starlette(routes=routes, middleware=[Middleware(Guard, host=host, token=token)], exception_handlers=told)

    def _read_form(self, act: Callable[..., str]) -> Callable[[Request], Any]:
        """Return what takes a form of ours and acts by its fields, then shows the page that it names."""

        async def take(request: Request) -> Response:
            fields = dict(parse_qsl((await request.body()).decode(errors="replace"), keep_blank_values=True))
            if not secrets.compare_digest(fields.pop("secret", "").encode(), self.secret.encode()):
                raise HTTPException(403, "The page is out of date: load it again.")
            return RedirectResponse(await run_in_threadpool(act, fields, **request.path_params), 303)

        return take

    def find(self, name: str) -> Path:
        """Return a session's file by comparing the name with those that there are. Raises HTTPException."""
        for path in self.paths.sessions.glob("[!.]*/session.db"):
            if path.parent.name == name:
                return path
        raise HTTPException(404, "No session has that name.")

    @contextmanager
    def read(self, name: str, *, listed: bool = False) -> Generator[Session]:
        """Open a session as far as it has come. Raises HTTPException, UserError.

        One that is only listed puts no other out of memory: all are read in turn, so each would be read anew.
        """
        path = self.find(name)
        key = name, path.stat().st_ino
        with read_session(self.paths, str(path), known=self.known.get(key)) as session:
            others = [pair for pair in self.known.items() if pair[0] != key]
            if not listed or len(others) < CACHED:
                self.known = dict([*others, (key, session)][-CACHED:])
            yield session

    def render(self, template: str, /, **facts: Any) -> HTMLResponse:
        """Return a page of ours."""
        return HTMLResponse(render_template(template, secret=self.secret, **facts))

    def list_sessions(self, request: Request) -> Response:  # noqa: ARG002 - every page takes it
        return self.render("serve_sessions.html", sessions=list_sessions(self.paths, partial(self.read, listed=True)))

    def write_live(self, request: Request) -> str:
        """Return the part of a session's page that follows the night, with its latest experiments, or `?all`."""
        name, shown = request.path_params["name"], sys.maxsize if "all" in request.query_params else SHOWN
        with self.read(name) as session:
            rows, facts = list_rows(session.state), describe_session(self.paths, session)
            places = {"experiment": {row.experiment: row.experiment for row in rows}}
            facts |= {"rows": rows[-shown:], "earlier": len(rows[:-shown]), "count": len(session.records)}
            facts |= {"figure": draw_progress(rows, places, facts["summary"]), "secret": self.secret}
            talks, usual = event_text.list_conversations(session.records), estimate_run_seconds(session.state)
            return render_template("serve_live.html", **facts, talks=talks, usual=usual, now=_tell_time(session))

    def show_session(self, request: Request) -> Response:
        name, whole = request.path_params["name"], "all" in request.query_params
        return self.render("serve_session.html", name=name, live=self.write_live(request), whole=whole)

    def follow_session(self, request: Request) -> Response:
        """Return the live part of a session's page unless it is as `seen`: nothing new, and the same process runs it.

        The page asks each second. A stream would hold one of the six connections that a browser has for all its pages,
        and be as silent when it is dead as when nothing happens. The files change before the session has more events.
        """
        with self.read(name := request.path_params["name"]) as session:
            seen = f"{self.secret} {len(session.records)} {find_process(self.paths, name, time.time())}"
        if (seen := compute_digest(seen)) == request.query_params.get("seen"):
            return JSONResponse(None)
        return JSONResponse({"seen": seen, "html": self.write_live(request)})

    def show_report(self, request: Request) -> Response:
        with self.read(name := request.path_params["name"]) as session:
            file, process = find_copy(session), find_process(self.paths, name, session.state.now)
            how = {"command": self.paths.write_command, "git": write_git(self.paths.script), "file": file}
            page = render_report(session, **how, runs=process is not None and not file)
        return HTMLResponse(page, headers=permit_charts())

    def compare(self, request: Request) -> Response:
        rows: list[comparison.SessionFigures] = []
        for name in dict.fromkeys(request.query_params.getlist("session")):
            with self.read(name) as session:
                rows.append(comparison.summarize_session(session.state, session.records))
        if not rows:
            raise HTTPException(400, "Choose the sessions to compare: tick the boxes before their names.")
        return HTMLResponse(comparison.render_comparison(comparison.drop_copies(rows)), headers=permit_charts())

    def show_event(self, request: Request) -> Response:
        name, number = request.path_params["name"], request.path_params["number"]
        with self.read(name) as session:
            count = len(session.records)
            if number not in map(str, range(count)):
                raise UserError(f"{name} has events 0 to {count - 1}")
            text = event_text.write_page(session, int(number))
        return self.render("serve_event.html", name=name, number=int(number), count=count, text=text)

    def search_musings(self, request: Request) -> Response:
        query = request.query_params.get("q", "")
        return self.render("serve_musings.html", query=query, hits=search(self.paths.musings, query, limit=30))

    def show_asset(self, request: Request) -> Response:
        kinds = {"serve.css": "text/css", "serve.js": "text/javascript"}
        if (file := request.path_params["file"]) not in kinds:
            raise HTTPException(404, "No file has that name.")
        return Response(render_template(file), media_type=kinds[file])

    def steer(self, fields: dict[str, str], name: str) -> str:
        """Put what the user asks into the inbox of a night that runs. Raises HTTPException."""
        path = self.find(name)
        if find_process(self.paths, name, time.time()) is None:
            raise HTTPException(409, "This night is not running.")
        try:
            send_control(path.parent, Control.model_validate(fields))
        except ValidationError:
            raise HTTPException(400, "This cannot be asked of a night.") from None
        return f"/sessions/{name}"

    def read_guidance(self) -> str:
        """Return guidance.md as it will be saved again. Raises HTTPException."""
        try:
            return read_written(self.guidance) if self.guidance.is_file() else ""
        except UnicodeDecodeError:
            raise HTTPException(422, f"{self.guidance} is not UTF-8, so it cannot be edited here.") from None

    def show_guidance(self, request: Request) -> Response:  # noqa: ARG002 - every page takes it
        text = self.read_guidance()
        facts = {"path": self.guidance.resolve(), "before": compute_digest(text), "limit": GUIDANCE_CHARACTERS}
        return self.render("serve_guidance.html", text=text, **facts)

    def save_guidance(self, fields: dict[str, str]) -> str:
        """Replace guidance.md, unless another has changed it meanwhile. Raises HTTPException."""
        text = fields.get("text", "").replace("\r\n", "\n")
        with self.saving:
            before = self.read_guidance()
            if text != before and fields.get("before") != compute_digest(before):  # a second click finds it saved
                why = "guidance.md has changed meanwhile: go back, keep your text, and load it again."
                raise HTTPException(409, why)
            write_atomically(self.guidance.resolve(), text)
        return "/guidance"
