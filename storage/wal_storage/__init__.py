"""Where bytes come to rest: log segments, fencing, the catalog."""
