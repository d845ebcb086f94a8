"""`python -m orchestrator`."""

from orchestrator.reading import main

main()
