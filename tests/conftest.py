"""What all tests share."""

from hypothesis import settings

# No deadline for one example: the machine that runs the tests is shared.
settings.register_profile("penstock", deadline=None)
settings.load_profile("penstock")
