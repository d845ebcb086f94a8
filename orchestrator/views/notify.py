"""Word to the user's phone or chat: at a new best, when the models make us wait, at the end.

The URL holds a secret: it is never logged, printed or stored. Nothing here blocks a night, or ends one.
"""

import logging
import queue
import threading
from collections.abc import Callable

from orchestrator.core.events import Ended, Promoted, Record, Waiting
from orchestrator.session.store import EventLog
from orchestrator.views.experiments import find_row, list_rows
from orchestrator.views.report.page import describe_headline
from orchestrator.views.usage import list_runs

Send = Callable[[str, str], bool]
"""Sends a title and a text; says whether they arrived."""
PATIENCE = 15.0
"""Seconds that the last words may take; Apprise's own limit is 4 for connecting and 4 for an answer."""
QUIET = 600.0
"""Seconds: a pause that begins so soon after another is the same pause."""


class NotifyError(Exception):
    """No word can be sent to this URL; the message is one line that does not repeat it."""


def send_nothing(_title: str, _text: str) -> bool:
    """Sends nothing to nobody."""
    return True


def make_sender(url: str) -> Send:
    """What sends to an Apprise URL; to nobody where there is none. Raises NoticeError."""
    if not url:
        return send_nothing
    try:
        import apprise
    except ImportError as error:
        raise NotifyError("--notify needs Apprise: pip install -e '.[notify]' in this folder") from error
    logging.getLogger("apprise").disabled = True  # its complaints repeat the URL
    there = apprise.Apprise(asset=apprise.AppriseAsset(storage_mode="memory"))
    if not there.add(url):
        raise NotifyError("--notify: Apprise knows no such URL; its wiki lists them, such as ntfy://TOPIC")
    return lambda title, text: bool(there.notify(body=text, title=title))


class Notifier:
    """Watches a session from now on, and sends from a thread of its own."""

    def __init__(self, log: EventLog, send: Send, say: Callable[[str], None]) -> None:
        self.log, self.send, self.say = log, send, say
        self.seen = len(log.records)
        self.paused_until = 0.0
        self.due: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self.post = threading.Thread(target=self._deliver, name="notice", daemon=True)
        self.post.start()

    def update(self) -> None:
        """Have sent what is worth a word, of all that happened since the last time."""
        fresh, self.seen = self.log.records[self.seen :], len(self.log.records)
        for record in fresh:
            self._look(record)

    def close(self, error: BaseException | None = None) -> None:
        """The night ends, by itself or by this error; wait a little until the last word is out."""
        if isinstance(error, Exception):
            self._tell("stopped by a fault", f"Nothing is lost: python -m orchestrator resume {self._name}")
        self.due.put(None)
        self.post.join(PATIENCE)

    def _look(self, record: Record) -> None:
        match record.event:
            case Promoted(experiment=number) if number:
                found = find_row(self.log.state, number)
                title = found.proposal.title if found else ""
                self._tell("a new best", f"{number}. {title}\n{write_headlines(self.log)}")
            case Waiting(until=until, reason=reason):
                if record.at > self.paused_until + QUIET:
                    self._tell("a pause", f"{reason}. What is training goes on.\n{write_headlines(self.log)}")
                self.paused_until = max(self.paused_until, until)
            case Ended(reason=reason):
                self._tell("the night is over", f"{reason}\n{write_headlines(self.log)}")
            case _:
                pass

    @property
    def _name(self) -> str:
        return self.log.state.session.name

    def _tell(self, what: str, text: str) -> None:
        self.due.put((f"{self._name}: {what}", text))

    def _deliver(self) -> None:
        silent = False
        while told := self.due.get():
            if not self.send(*told) and not silent:
                silent = True
                self.say("A notice did not arrive; the night goes on without.")


def write_headlines(log: EventLog) -> str:
    """The report's headline in a line or two."""
    told = describe_headline(log, list_rows(log.state), list_runs(log.records))
    if told["best"] is None:
        return "The baseline is being measured."
    cost = ", cost unknown" if told["unpriced"] else "" if not told["usd"] else f", ${told['usd']:.2f}"
    change = f"{told['fall']:.4f} better, {told['sigmas']:.1f} times σ" if told["fall"] > 0 else "nothing better yet"
    return (
        f"val_bpb {told['baseline']:.4f} → {told['best']:.4f} ({change})\n"
        f"{told['judged']} experiments, {told['kept']} kept, {told['hours']:.2g} hours{cost}"
    )
