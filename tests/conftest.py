"""Begin with the files that take longest, so that no worker is left alone with one at the end."""

LONG = ("test_trial", "test_three_agents", "test_interruptions", "test_cli", "test_output", "test_train", "test_tape")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
