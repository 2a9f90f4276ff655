"""What separate processes must agree on. No torch."""
