"""Say how far property tests look: the same examples each time in `make test`, new and many more in `make soak`.

A suite that draws its examples by chance fails by chance, on whatever change is at hand; a hunt may, and prints how
to repeat what it found.
"""

import os

from hypothesis import HealthCheck, settings

import orchestrator.cli.init  # a few examples are constants of the modules that are imported, so all are
import orchestrator.cli.serve  # noqa: F401

HUNTING = bool(os.environ.get("NIGHTSHIFT_HUNT"))
FURTHER = 20
"""How many times more examples a hunt tries."""


def try_examples(count: int) -> settings:
    """Return the settings of a property test that tries that many examples, or in a hunt many more."""
    return settings(max_examples=count * (FURTHER if HUNTING else 1))


def load_profile() -> None:
    """Let every property test look as far; no test depends on how fast the machine is."""
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings.register_profile(
        "patient",
        max_examples=100 * (FURTHER if HUNTING else 1),
        derandomize=not HUNTING,
        deadline=None,
        suppress_health_check=slow,
    )
    settings.load_profile("patient")
