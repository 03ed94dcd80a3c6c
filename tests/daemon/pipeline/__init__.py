"""The interceptors of the append path, one by one and together."""
