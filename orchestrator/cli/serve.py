"""The command `serve`: it listens, and tells which link to open."""

import logging
import os
import re
import secrets
import socket
from ipaddress import ip_address
from typing import Annotated

import typer

from orchestrator.cli.options import UsageError

LOCAL = "127.0.0.1"


def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="address to listen on; other than loopback, it needs a token")] = LOCAL,
    port: Annotated[int, typer.Option(min=0, max=65535, help="the port; 0 takes a free one")] = 8000,
    token: Annotated[str, typer.Option(envvar="NIGHTSHIFT_TOKEN", help="let only those in who have this token")] = "",
) -> None:
    """Show and steer the sessions in a browser.

    All sessions, each as it happens, its report, events and conversations; comparison, musings, guidance.md; and
    pause, stop and veto. Without --host only this machine is served; with it, the printed link holds a token.
    """
    if not re.fullmatch(r"[\w.~-]*", token, re.ASCII):
        raise UsageError("a token is of letters, digits, and - . _ ~ only: it becomes part of a link")
    if not token and "NIGHTSHIFT_TOKEN" in os.environ:  # as of a command that failed
        raise UsageError("NIGHTSHIFT_TOKEN is empty: unset it, or give it a value")
    try:
        import uvicorn

        from orchestrator.cli.pages import Site
    except ImportError as error:
        raise UsageError(
            f"serve needs {str(error.name).partition('.')[0]}: pip install -e '.[serve]' in Nightshift's folder"
        ) from error

    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError, TypeError) as error:  # the latter two of what cannot be a host's name
        reason = str(getattr(error, "strerror", "no host has such a name")).partition(" (")[0]
        raise UsageError(f"{host}, port {port}, cannot be served ({reason}): --host or --port names another") from error
    address, port, *_ = listener.getsockname()
    bound = ip_address(address)
    token = token or ("" if bound.is_loopback else secrets.token_urlsafe(24))
    name = socket.gethostname() if bound.is_unspecified else f"[{host}]" if ":" in host else host
    print(f"http://{name}:{port}/{f'?token={token}' if token else ''}  (Ctrl-C ends it; nights go on)", flush=True)
    config = uvicorn.Config(
        Site(context.obj).build(name, token),
        lifespan="off",
        ws="none",
        log_level="error",  # warnings are about requests of strangers
        access_log=False,  # it would show the token
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)  # it is about what Ctrl-C cuts off
    with listener:
        server.run(sockets=[listener])
