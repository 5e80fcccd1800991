/**
 * The tool server of the interop tests. Usage: node tools.mjs dialled|attached ADDRESS LEDGER [DEDUPE [TOKEN]]
 *
 * What it executes it writes into the ledger first, a JSON object a line. It prints `ready` and, dialled, its port, then a
 * line for each call that it begins or that is told to stop. SIGTERM closes it within 10 seconds.
 */

import { closeSync, fsyncSync, openSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { type Context, ToolError, ToolServer } from "behest";

const [mode = "", address = "", path = "", dedupe = "", token = ""] = process.argv.slice(2);
const ledger = openSync(path, "a");
const server = new ToolServer({ ...(dedupe ? { dedupe } : {}), token });

function note(name: string, { idempotencyKey: key, attempt, epoch, runId }: Context): void {
  writeSync(ledger, `${JSON.stringify({ name, key, attempt, epoch: String(epoch), run: runId })}\n`);
  fsyncSync(ledger);
  process.stdout.write(`began ${name}\n`);
}

const text = {
  type: "object",
  properties: { text: { type: "string" } },
  required: ["text"],
  additionalProperties: false,
} as const;
let payments = 0;
server.tool("pay", { description: "Pays.", schema: text, sideEffect: "non_idempotent" }, (args, context) => {
  note("pay", context);
  payments += 1;
  return { payment: payments, for: args.text, key: context.idempotencyKey };
});

server.tool("fail", { description: "Fails." }, () => {
  throw new ToolError("disk is full");
});

server.tool("break", { description: "Breaks." }, () => {
  throw new RangeError("out of range");
});

const waiting = { type: "object", properties: { ms: { type: "integer" } }, required: ["ms"] } as const;
server.tool("wait", { description: "Waits.", schema: waiting }, async ({ ms }, context) => {
  note("wait", context);
  context.progress("waiting", { current: 0, total: ms });
  try {
    await sleep(ms, undefined, { signal: context.signal });
  } catch (error) {
    process.stdout.write("stopped wait\n");
    throw error;
  }
  context.write("waited ");
  return `${ms} ms`;
});

const sized = { type: "object", properties: { size: { type: "integer" } }, required: ["size"] } as const;
server.tool("long", { description: "Answers at length.", schema: sized }, ({ size }) => "漢字🙂".repeat(size));

server.tool("count", { description: "Counts the arguments.", schema: { type: "object" } }, (_, { argumentsJson }) => {
  return argumentsJson.length;
});

if (mode === "dialled") {
  process.stdout.write(`ready ${await server.serve(address)}\n`);
} else {
  await server.attach(address, "typescript", token ? { token } : {});
  process.stdout.write("ready\n");
}
process.once("SIGTERM", async () => {
  await server.close(10);
  closeSync(ledger);
});
