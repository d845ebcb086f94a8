"""Name why a run has no score: the candidate's failure, the machine's failure, or pruning."""

import re
import signal

from orchestrator.core.events import FailureKind
from orchestrator.lab.log import parse_progress

MAX_MESSAGE, SEARCHED = 300, 200
"""Characters of a failure's message, and lines at the end of a log that are searched for it."""

_ERROR = re.compile(
    r"[A-Za-z_]?[\w.]*(?:Error|Exception|Interrupt|Iteration|Exit|\.exc\.\w+)(?::|$)|Fatal Python error|error: "
)
_PATTERNS: dict[FailureKind, str] = {
    "out of device memory": r"OutOfMemoryError|(?:CUDA|HIP|MPS)\b.*out of memory|CUBLAS_STATUS_ALLOC_FAILED",
    "disk full": r"No space left on device|Disk quota exceeded|Errno 28\b|Errno 122\b",
    "out of host memory": r"MemoryError|bad_alloc|[Cc]an(?:no|')t allocate memory|not enough memory: you tried",
    "import": r"(?:ModuleNotFound|Import)Error",
    "syntax": r"(?:Syntax|Indentation|Tab)Error",
    "NaN": r"^FAIL\b|\b[Ll]oss\b.*\b(?:nan|NaN|inf|exploded|diverged|not finite)\b",
}
DEVICE_FAULT = re.compile(
    r"ECC error|fallen off the bus|GPU is lost|busy or unavailable|driver initialization failed|not yet initialized|"
    r"[Nn]o CUDA(?:-capable device| GPUs)|CUDA.* unknown error|NVML|is in use by|"
    r"cuda.is_available\(\) is False"
)
"""A message about the GPU itself rather than about the program on it."""


class Fault(Exception):  # noqa: N818 - a finding, not a defect
    """A failure that is the candidate's own."""

    def __init__(self, kind: FailureKind, message: str, excuse: str = "") -> None:
        """`excuse` says what the machine may have done instead; empty if it cannot be its fault."""
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message, self.excuse = message, excuse


class MachineError(Exception):
    """A failure that is not the candidate's fault."""


class Prune(Exception):  # noqa: N818 - a finding, not a defect
    """An early end by pruning: the run was too far behind the incumbent."""

    def __init__(self, reason: str, deficit: float | None = None) -> None:
        """`deficit` is by how much it would have ended behind, in bits per byte; None if that is not predicted."""
        super().__init__(reason)
        self.deficit = deficit


def find_message(log: str) -> str:
    """Return the last line of a log that tells an error, or else its last; empty where nothing was printed."""
    lines = [line.strip().removeprefix("| ").lstrip() for line in log.splitlines()[-SEARCHED:]]  # as of ExceptionGroup
    lines = [line for line in lines if line and not parse_progress(line)]
    return next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1] if lines else "")[:MAX_MESSAGE]


def classify_failure(status: int, log: str) -> Fault:
    """Name the failure of a run that ended by itself, from its exit code (negative: a signal) and its log.

    Behind a shell or bubblewrap a signal is 128 more than its number.
    """
    message = find_message(log)
    for kind, pattern in _PATTERNS.items():
        if re.search(pattern, message):
            return Fault(kind, message)
    number = -status if status < 0 else status - 128
    if status < 0 or number in set(signal.Signals):
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return Fault("other", f"it was ended by {name}" + f": {message}" * bool(message))
    return Fault("other", message or f"it ended with exit code {status} and printed nothing")
