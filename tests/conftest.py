"""The order of the files: the ones of `tests/models` keep a processor busy longest, so they begin first."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "models" not in item.path.parts)
