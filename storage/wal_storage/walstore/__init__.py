"""WAL storages: what a PChannel is written to."""
