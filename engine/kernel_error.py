"""What is said where there is no kernel for a model on a device."""


class NoKernelError(Exception):
    """There is none for this model here. Its sentence says why."""
