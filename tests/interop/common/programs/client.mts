/**
 * Does by the TypeScript client what its arguments say, and prints what it sees as lines of JSON.
 *
 *     node client.mjs ADDRESS follow TEXT        orders a run and follows it
 *     node client.mjs ADDRESS watch RUN AFTER    follows a run from behind an event on
 *     node client.mjs ADDRESS cancel TEXT        orders a run and cancels it
 *
 * A line is an event's sequence, a piece of text or that the text was taken back; the last one is how the run ended.
 */

import { BehestError, Client, type Run, RunCancelledError, RunFailedError } from "behest";

const [address = "", order = "", subject = "", after = "0"] = process.argv.slice(2);
using client = new Client(address, { patience: { pauseSeconds: 0.5 } });

function tell(seen: Record<string, unknown>): void {
  process.stdout.write(`${JSON.stringify(seen)}\n`);
}

async function follow(run: Run, isCancelled: boolean): Promise<void> {
  let isDue = isCancelled;
  for await (const update of run.updates()) {
    if (update.type === "discarded") {
      tell({ discarded: true });
    } else if (update.type === "delta" && update.delta.kind.case === "text") {
      tell({ text: update.delta.kind.value });
    } else if (update.type === "event") {
      tell({ sequence: Number(update.event.sequence) });
      if (isDue) {
        isDue = false;
        await run.cancel();
      }
    }
  }
}

function failure(run: Run, error: unknown): Record<string, unknown> {
  if (!(error instanceof BehestError)) {
    throw error;
  }
  const end = error instanceof RunCancelledError ? "cancelled" : error instanceof RunFailedError ? "failed" : "";
  return { end, run: run.runId, output: "", reason: error.reason };
}

const run = order === "watch" ? client.watch(subject, { after: Number(after) }) : client.stream(subject);
try {
  await follow(run, order === "cancel");
  tell({ end: "completed", run: run.runId, output: (await run.result()).text, reason: "" });
} catch (error) {
  tell(failure(run, error));
}
