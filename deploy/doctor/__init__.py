"""Examines whether a running cluster can do its work: asks every process, moves bytes between every
pair, and says what to mend."""
