"""Tools: what a model can call. The port is `tool`; `catalog` knows which there are; adapters make one attempt each."""
