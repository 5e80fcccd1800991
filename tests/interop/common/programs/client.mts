/**
 * Does by the TypeScript client what its arguments say, and prints what it sees as lines of JSON.
 *
 *     node client.mjs ADDRESS follow TEXT        orders a run and follows it
 *     node client.mjs ADDRESS watch RUN AFTER    follows a run from behind an event on
 *     node client.mjs ADDRESS cancel TEXT        orders a run and cancels it
 *     node client.mjs ADDRESS watches RUN COUNT  follows a run by many watches at once
 *
 * A line is an event's sequence, a piece of text or that the text was taken back; the last one is how the run ended. Of
 * many watches a line is the number of the watch and a sequence.
 */

import { readFileSync } from "node:fs";
import { BehestError, Client, type Run, RunCancelledError, RunFailedError } from "behest";

const [address = "", order = "", subject = "", after = "0"] = process.argv.slice(2);
const { TOKEN: token, CA_FILE: ca } = process.env;
const tls = ca ? { tls: { ca: readFileSync(ca) } } : {};
using client = new Client(address, { patience: { pauseSeconds: 0.5 }, ...(token ? { token } : {}), ...tls });

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

async function followByMany(count: number): Promise<void> {
  const watches = Array.from({ length: count }, async (_, watch) => {
    for await (const event of client.watch(subject).events()) {
      tell({ watch, sequence: Number(event.sequence) });
    }
  });
  await Promise.all(watches);
}

function failure(run: Run, error: unknown): Record<string, unknown> {
  if (!(error instanceof BehestError)) {
    throw error;
  }
  const end = error instanceof RunCancelledError ? "cancelled" : error instanceof RunFailedError ? "failed" : "";
  return { end, run: run.runId, output: "", reason: error.reason };
}

const isOld = order.startsWith("watch");
const run = isOld ? client.watch(subject, { after: order === "watch" ? Number(after) : 0 }) : client.stream(subject);
try {
  if (order === "watches") {
    await followByMany(Number(after));
  } else {
    await follow(run, order === "cancel");
  }
  tell({ end: "completed", run: run.runId, output: (await run.result()).text, reason: "" });
} catch (error) {
  tell(failure(run, error));
}
