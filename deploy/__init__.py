"""Places the processes of a cluster. Nothing imports it but the command line."""
