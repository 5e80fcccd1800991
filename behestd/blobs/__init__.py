"""Blobs: bytes too large for the log. The port is `blob`; each adapter is a file."""
