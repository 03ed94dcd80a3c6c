"""The command line: ``wal``. Data on stdout, everything else on stderr."""
