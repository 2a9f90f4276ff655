"""What all tests share."""

import signal

from hypothesis import settings

# No deadline for one example: the machine that runs the tests is shared.
settings.register_profile("penstock", deadline=None, max_examples=50)
settings.register_profile("prove", deadline=None, max_examples=1000)
settings.load_profile("penstock")

# A shell's `&` starts us with SIGINT ignored, and commands that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
