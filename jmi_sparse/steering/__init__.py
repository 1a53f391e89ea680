"""Features written into the stream, and what comes of it."""
