"""What all tests share."""

import pytest
from hypothesis import settings

# No deadline for one example: the machine that runs the tests is shared.
settings.register_profile("penstock", deadline=None, max_examples=50)
settings.register_profile("prove", deadline=None, max_examples=1000)
settings.load_profile("penstock")

# Where slow tests only compute: the others have processes of their own, whose timing they judge.
COMPUTING = {"engine", "exactness", "manifests", "models", "simulator"}


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tests = config.rootpath / "tests"
    for item in items:
        folder = item.path.relative_to(tests).parts[0]
        if item.get_closest_marker("slow") and folder not in COMPUTING:
            item.add_marker("alone")
