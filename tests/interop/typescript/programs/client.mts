/**
 * The client of the interop tests. Usage: node client.mjs ADDRESS COMMAND [ARGUMENT …]; prints a JSON object a line.
 *
 *     follow ORDER            every update, then the result
 *     watch RUN AFTER         the sequences of the events after one
 *     cancel ORDER            cancels once the run has started, then asks for the result
 *     twice ORDER             orders the same under one request_id twice
 *     fail ORDER              the error that creating or ending the run throws
 */

import { BehestError, Client, type Run } from "behest";

const [address = "", command = "", first = "", second = ""] = process.argv.slice(2);
using client = new Client(address, { patience: { pauseSeconds: 0.5 } });

function tell(fact: Record<string, unknown>): void {
  process.stdout.write(`${JSON.stringify(fact)}\n`);
}

async function follow(run: Run): Promise<void> {
  for await (const update of run.updates()) {
    switch (update.type) {
      case "event":
        tell({ event: Number(update.event.sequence), kind: update.event.payload.case });
        break;
      case "delta":
        tell({ delta: update.delta.kind.value, attempt: update.delta.attempt });
        break;
      case "discarded":
        tell({ discarded: update.attempt });
        break;
    }
  }
  const output = await run.result();
  tell({ result: output.text, run: run.runId, again: (await run.result()).text, head: Number(run.sequence) });
}

async function end(run: Run): Promise<void> {
  try {
    tell({ result: (await run.result()).text });
  } catch (error) {
    if (!(error instanceof BehestError)) {
      throw error;
    }
    tell({ error: error.name, reason: error.reason, code: error.code, metadata: error.metadata });
  }
}

async function failing(run: Run): Promise<void> {
  try {
    await run.create();
  } catch (error) {
    if (!(error instanceof BehestError)) {
      throw error;
    }
    tell({ error: error.name, reason: error.reason, code: error.code, metadata: error.metadata });
    return;
  }
  await end(run);
}

switch (command) {
  case "follow":
    await follow(client.stream(first));
    break;
  case "watch":
    for await (const event of client.watch(first, { after: Number(second) })) {
      tell({ event: Number(event.sequence) });
    }
    await end(client.watch(first, { after: 1_000_000 }));
    break;
  case "cancel": {
    const run = client.stream(first);
    for await (const { payload } of run) {
      if (payload.case === "modelRequested") {
        break;
      }
    }
    tell({ state: (await run.cancel({ reason: "enough" })).state });
    await end(run);
    break;
  }
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
    await failing(client.stream(first, second ? { model: second } : {}));
    break;
}
