"""Begin with the files that take longest, and let no test depend on how fast the machine is."""

from tests.hunting import load_profile

LONG = (
    *("test_cli", "test_interruptions", "test_train", "test_output", "test_enemies", "test_loop"),
    *("test_trial", "test_tape", "test_three_agents", "test_pasted", "test_runner"),
)

load_profile()


def pytest_collection_modifyitems(items):
    """So no worker is left alone with a long one at the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
