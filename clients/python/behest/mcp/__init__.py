"""The Model Context Protocol both ways: its servers as tool servers, and tools and runs as a server of it.

Needs the extra `mcp`. The daemon knows nothing of it: what is here is a tool server and a client like any other.
"""
