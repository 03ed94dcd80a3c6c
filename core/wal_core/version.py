"""The version of walstream, one for all its packages."""

VERSION = "0.1.0"
