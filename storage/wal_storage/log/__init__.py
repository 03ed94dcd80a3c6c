"""One PChannel's log as files: the format, its writer, reader, index and repair."""
