"""Names of attributes, after the semantic conventions of OpenTelemetry where they have one.

All of them, in one place: those for generative AI still move. Above: `metrics`, `spans`. Below: nothing.
"""

from __future__ import annotations

SERVICE = "behestd"

# Generative AI.
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
MODEL = "gen_ai.request.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
TOKEN_TYPE = "gen_ai.token.type"
CONVERSATION = "gen_ai.conversation.id"
AGENT = "gen_ai.agent.id"
TOOL = "gen_ai.tool.name"
TOOL_CALL = "gen_ai.tool.call.id"

OPERATION_RUN = "invoke_agent"
OPERATION_CHAT = "chat"
OPERATION_EMBEDDINGS = "embeddings"
OPERATION_TOOL = "execute_tool"
SUBGRAPH = "subgraph"
"""In the place of an operator's name, of a node that is a graph of its own."""

# Everything.
ERROR = "error.type"
RPC_METHOD = "rpc.method"
RPC_CODE = "rpc.response.status_code"

# Ours.
NAMESPACE = "behest.namespace"
RUN = "behest.run.id"
STATE = "behest.run.state"
STEP = "behest.step"
ATTEMPT = "behest.attempt"
REASON = "behest.reason"
NODE = "behest.node"
OPERATOR = "behest.operator"
VISIT = "behest.visit"
OUTCOME = "behest.outcome"
RESUMED = "behest.resumed"
"""On what an earlier owner of the run began."""
