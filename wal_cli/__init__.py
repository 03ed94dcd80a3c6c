"""The command line: what `wal` and `walctl` run."""
