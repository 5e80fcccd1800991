"""A small client and tool server for behestd, pure Python: grpclib for the transport, betterproto2 for the messages.

It imports nothing: name what you need, from `client`, `tools` or the generated `contract.behest.v1`.
"""
