"""The order in which processes take the files."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # xdist would begin with the files that hold most tests, and end with those that take minutes for a few.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of `tests/models` keep a processor busy longest; the others follow as they are collected."""
    items.sort(key=lambda item: "models" not in item.path.parts)
