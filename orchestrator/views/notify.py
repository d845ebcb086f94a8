"""Send messages to the user's phone or chat: about a new best, a pause, and the end.

The URL holds a secret, so it is never logged, printed or stored. Sending never delays or ends a night.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread

from orchestrator.core.events import Promoted, Record, Waiting
from orchestrator.core.text import make_printable, shorten
from orchestrator.ports import Log
from orchestrator.views.experiments import list_rows
from orchestrator.views.render import render_template
from orchestrator.views.summary import summarize
from prepare.command import UserError

Send = Callable[[str, str], Awaitable[bool]]  # sends a title and a text, and returns whether they arrived
PATIENCE = 15.0  # seconds allowed to send a message
QUIET = 600.0  # seconds after a pause in which another one counts as the same
LONGEST = 1_500  # characters of a message; most services reject longer ones


def make_sender(url: str) -> Send:
    """Return a function that sends to an Apprise URL. Raises UserError, without the URL."""
    try:
        import apprise
    except ImportError as error:
        raise UserError("--notify needs Apprise: pip install -e '.[notify]' in this folder") from error
    logging.getLogger("apprise").disabled = True  # its messages repeat the URL
    service = apprise.Apprise(asset=apprise.AppriseAsset(storage_mode="memory"))
    if not service.add(url) or any(getattr(each, "topics", None) == [] for each in service):
        raise UserError("--notify: Apprise does not support this URL; its wiki lists others, such as ntfy://TOPIC")

    async def send(title: str, text: str) -> bool:
        answer = Future[bool]()

        def post() -> None:
            answer.set_running_or_notify_cancel()
            arrived = [False]
            with suppress(Exception):  # its words may hold the URL
                arrived = [each.notify(body=text, title=title) for each in service]
            answer.set_result(all(arrived))

        Thread(target=post, daemon=True).start()  # Python, when it ends, would wait for that of an executor
        return await asyncio.wrap_future(answer)

    return send


class Notifier:
    """Watches a session from now on, and sends messages about it."""

    def __init__(self, log: Log, send: Send | None, say: Callable[[str], None], resume: str = "resume it") -> None:
        """Watch the log; `resume` is the command that continues the session. Without `send` nothing is sent."""
        self.log, self.send, self.say, self.resume = log, send, say, resume
        self.seen, self.was_over = len(log.records), bool(log.state.ended)
        self.has_failed = False
        self.paused_until = 0.0
        self.sending: set[asyncio.Task[None]] = set()

    def update(self) -> None:
        """Start sending messages about new events; needs a running loop."""
        fresh, self.seen = self.log.records[self.seen :], len(self.log.records)
        for record in fresh:
            if message := self._choose_message(record):
                task = asyncio.get_running_loop().create_task(self._deliver(message[0], self._add_standing(message[1])))
                self.sending.add(task)
                task.add_done_callback(self.sending.discard)

    def close(self, error: BaseException | None = None) -> None:
        """Send that the night is over, or what ended it unless a user did at once; wait at most PATIENCE seconds."""
        if isinstance(error, Exception):
            asyncio.run(self._deliver("stopped by a fault", f"Nothing is lost: {self.resume}"))
        elif self.log.state.ended and not self.was_over:
            asyncio.run(self._deliver("the night is over", self._add_standing(self.log.state.ended)))
        elif isinstance(error, KeyboardInterrupt) and error.args:
            asyncio.run(self._deliver("stopped", f"{error}. Nothing is lost: {self.resume}"))

    def _choose_message(self, record: Record) -> tuple[str, str] | None:
        match record.event:
            case Promoted(experiment=number) if number:
                title = next(row.title for row in list_rows(self.log.state) if row.experiment == number)
                return "a new best", f"{number}. {title}"
            case Waiting(until=until, reason=reason):
                is_new = record.at > self.paused_until + QUIET
                self.paused_until = max(self.paused_until, until)
                return ("a pause", f"{shorten(reason, 300)}.") if is_new else None
            case _:  # `close` sends the end, since the loop ends right after it
                return None

    def _add_standing(self, text: str) -> str:
        return render_template("message.txt", text=text, summary=summarize(self.log.state)).rstrip()

    async def _deliver(self, what: str, text: str) -> None:
        if not self.send:
            return
        title = f"{self.log.state.session.name}: {what}"
        sent = asyncio.wait_for(self.send(title, make_printable(text, LONGEST)), PATIENCE)
        (arrived,) = await asyncio.gather(sent, return_exceptions=True)  # an error may repeat the URL: it is not shown
        if arrived is not True and not self.has_failed:
            self.has_failed = True
            self.say("A notification did not arrive.")
