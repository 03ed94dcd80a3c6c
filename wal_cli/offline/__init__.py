"""Read a data directory without a daemon. Nothing else of the command line knows storage."""
