"""wald: the streaming node. One process that owns PChannels and serves them on a Unix socket."""
