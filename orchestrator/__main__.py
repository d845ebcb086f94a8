"""`python -m orchestrator`."""

from orchestrator import reading  # noqa: F401 - its commands
from orchestrator.cli import main

main()
