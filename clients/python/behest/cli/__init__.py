"""`behest`, the command line of the client: one file a noun, each loaded when it is named.

Above: people and scripts. Below: `behest.client`. Guarantees: exit codes mean what `command.py` says; with
`--output json` stdout holds JSON of the contract with its own field names, one document or one a line, nothing else.
"""

from __future__ import annotations

from behest.cli.lazy import LazyGroup, Place

PLACES = {
    "run": Place("behest.cli.run", "run", "Order a run and follow it to its end."),
    "watch": Place("behest.cli.run", "watch", "Follow a run that exists."),
    "cancel": Place("behest.cli.cancel", "cancel", "Cancel a run, or all of a session, an agent, or the namespace."),
    "retry": Place("behest.cli.run", "retry", "Run again what failed, from where it stood."),
    "explain": Place("behest.cli.explain", "explain", "Say why a run is not moving."),
    "runs": Place("behest.cli.runs", "runs", "List, show, explain and delete runs."),
    "sessions": Place("behest.cli.sessions", "sessions", "Keep conversations."),
    "agents": Place("behest.cli.agents", "agents", "Keep definitions of how runs are executed."),
    "graphs": Place("behest.cli.graphs", "graphs", "Check, run, draw and keep ways of reasoning."),
    "approvals": Place("behest.cli.approvals", "approvals", "Decide about tool calls that wait for a word."),
    "tools": Place("behest.cli.tools", "tools", "Show tools and their calls; settle unknown outcomes."),
    "servers": Place("behest.cli.servers", "servers", "Register remote processes."),
    "models": Place("behest.cli.models", "models", "Show what models there are."),
    "context": Place("behest.cli.context", "context", "Show what models see beside an order."),
    "embed": Place("behest.cli.embed", "embed", "Print vectors for texts."),
    "usage": Place("behest.cli.usage", "usage", "Sum up what calls of models used and cost."),
    "artifacts": Place("behest.cli.artifacts", "artifacts", "Send and fetch files."),
    "conformance": Place("behest.cli.conformance", "conformance", "Examine a server through the contract."),
    "mcp-bridge": Place("behest.cli.mcp", "mcp_bridge", "Serve the tools of an MCP server to a daemon."),
    "mcp-serve": Place("behest.cli.mcp", "mcp_serve", "Offer tools and runs of a daemon over MCP."),
    "status": Place("behest.cli.status", "status", "Show how the daemon does."),
    "top": Place("behest.cli.top", "top", "Watch runs, models, tools and commits."),
    "doctor": Place("behest.cli.doctor", "doctor", "Check a set-up, and say what to mend."),
    "pause": Place("behest.cli.pause", "pause", "Stop a tool, a model, an agent, a namespace or all."),
    "unpause": Place("behest.cli.pause", "unpause", "Lift a pause."),
    "reload": Place("behest.cli.daemon", "reload", "Have the daemon read its configuration again."),
    "drain": Place("behest.cli.daemon", "drain", "Stop the daemon when its runs had their time."),
}
HELP = """Talk to a behestd.

Every command takes --address (HOST:PORT or unix:PATH; BEHEST_ADDRESS is the default), --token-file (or BEHEST_TOKEN),
--ca, --cert and --key for TLS, and --output.
"""
EPILOG = "Exit: 0 done, 1 failed, 2 wrong usage, 3 run cancelled or timed out, 4 daemon unreachable."


def main() -> None:
    """Run the command that the arguments name, and exit."""
    LazyGroup(PLACES, name="behest", help=HELP, epilog=EPILOG).main(prog_name="behest")
