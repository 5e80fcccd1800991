/** Runs an order and prints the answer as it comes. Usage: node run.js "say hello" [ADDRESS] */

import { Client, RunEndedError } from "behest";

const client = new Client(process.argv[3]);
const run = client.stream(process.argv[2] ?? "say hello");
try {
  for await (const piece of run.text()) {
    process.stdout.write(piece);
  }
  const { finishReason } = await run.result();
  process.stdout.write(`\nrun ${run.runId} completed, finish reason ${finishReason}\n`);
} catch (error) {
  if (!(error instanceof RunEndedError)) {
    throw error;
  }
  process.stdout.write(`\nrun ${run.runId} ended: ${error.reason}\n`);
} finally {
  client.close();
}
