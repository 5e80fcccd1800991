/**
 * The client of the interop tests. Usage: node client.mjs ADDRESS COMMAND [ARGUMENT …]; prints a JSON object a line.
 *
 *     twice ORDER             orders the same under one request_id twice
 *     fail ORDER MODEL        the error that creating the run throws
 */

import { BehestError, Client, type Run } from "behest";

const [address = "", command = "", first = "", model = ""] = process.argv.slice(2);
using client = new Client(address, { patience: { pauseSeconds: 0.5 } });

function tell(fact: Record<string, unknown>): void {
  process.stdout.write(`${JSON.stringify(fact)}\n`);
}

async function failing(run: Run): Promise<void> {
  try {
    await run.create();
  } catch (error) {
    if (!(error instanceof BehestError)) {
      throw error;
    }
    tell({ error: error.name, reason: error.reason, code: error.code, metadata: error.metadata });
  }
}

switch (command) {
  case "twice": {
    const order = { requestId: "the-same", labels: { of: "interop" } };
    const [one, other] = [await client.run(first, order), await client.run(first, order)];
    tell({ same: one.runId === other.runId, replayed: [one.isReplayed, other.isReplayed] });
    const followed = client.stream(first, order);
    await followed.result();
    tell({ same: one.runId === followed.runId, replayed: [followed.isReplayed] });
    break;
  }
  case "fail":
    await failing(client.stream(first, { model }));
    break;
}
