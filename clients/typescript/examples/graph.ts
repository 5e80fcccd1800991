/**
 * Runs a graph of three nodes, or a strategy of the daemon, and prints what becomes of the nodes, then the answer.
 * Usage: node graph.js "a question" [ADDRESS] [STRATEGY]
 */

import { Client, NodeState, type Order } from "behest";

const [said = "say hello", address, strategy] = process.argv.slice(2);
// Ten rounds at most, or until the goal is achieved.
const graph = {
  id: "three",
  nodes: ["plan", "solve", "answer"].map((name) => ({ id: name, work: { case: "operator" as const, value: name } })),
  edges: [
    { from: "plan", to: "solve", kind: { case: "pipeline" as const, value: {} } },
    { from: "solve", to: "answer", kind: { case: "pipeline" as const, value: {} } },
  ],
  termination: { maxIterations: 10, onGoalAchieved: true },
};
const order: Order = strategy ? { strategy: { name: strategy } } : { graph };

using client = new Client(address);
const run = client.stream(said, order);
for await (const { visit, node, state } of run.nodes()) {
  process.stdout.write(`${visit} ${node} ${NodeState[state].toLowerCase()}\n`);
}
process.stdout.write(`${(await run.result()).text}\n`);
