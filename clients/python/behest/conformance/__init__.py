"""Checks that a server keeps the contract, by the contract alone: whatever language it is written in.

Above: `behest conformance` and tests. Below: grpc.aio and the messages of the contract. `tools` examines a ToolService,
`models` a ChatService and an EmbeddingService. Nothing here knows how a server is made; what it finds is what another
client, or the daemon, would run into.
"""
