"""TLS of both front doors: certificates in files, as they change."""
