/**
 * Serves, by the TypeScript client, the tools that the suites of all languages call, dialled or attached.
 * Usage: node tools.mjs serve|attach HOST:PORT STORE TOKEN
 */

import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { ToolError, ToolServer } from "behest";

const [how = "", address = "", store = "", token = ""] = process.argv.slice(2);
const server = new ToolServer({ ...(store ? { dedupe: store } : {}), token });
let counted = 0;

const number = { type: "object", properties: { n: { type: "integer" } }, required: ["n"] } as const;
server.tool("count", { description: "Counts on.", outputSchema: number }, () => {
  counted += 1;
  return { n: counted };
});

const phrase = {
  type: "object",
  properties: { text: { type: "string" }, times: { type: "integer", minimum: 1 } },
  required: ["text"],
  additionalProperties: false,
} as const;
server.tool("echo", { description: "Repeats a text.", schema: phrase, sideEffect: "pure" }, ({ text, times }) => {
  return text.repeat(times ?? 1);
});

const reason = { type: "object", properties: { why: { type: "string" } }, required: ["why"] } as const;
server.tool("fail", { description: "Fails.", schema: reason }, ({ why }) => {
  throw new ToolError(why);
});

const size = { type: "object", properties: { bytes: { type: "integer" } }, required: ["bytes"] } as const;
server.tool("large", { description: "Is large.", schema: size }, ({ bytes }) => "ä".repeat(bytes / 2));

const values = {
  type: "object",
  properties: {
    text: { type: "string" },
    whole: { type: "integer" },
    ratio: { type: "number" },
    yes: { type: "boolean" },
    words: { type: "array", items: { type: "string" } },
  },
  required: ["text", "whole", "ratio", "yes", "words"],
} as const;
const mirror = { description: "Gives back values of every kind.", schema: values, sideEffect: "pure" } as const;
server.tool("mirror", mirror, (given) => given);

server.tool("keep", { description: "Keeps a text.", schema: phrase }, async ({ text }, context) => {
  const { id } = await context.artifact(text, { name: "kept.txt", mediaType: "text/plain" });
  return { id, trace: context.traceparent };
});

const duration = { type: "object", properties: { seconds: { type: "number" } }, required: ["seconds"] } as const;
server.tool("work", { description: "Takes time.", schema: duration }, async ({ seconds }, context) => {
  process.stdout.write(`began work ${context.idempotencyKey}\n`);
  for (let step = 0; step < 5; step += 1) {
    context.progress(`step ${step}`, { current: step, total: 4 });
    await sleep(seconds * 200, undefined, { signal: context.signal });
  }
  counted += 1;
  return `worked ${counted}`;
});

if (how === "attach") {
  const { CA_FILE: ca } = process.env;
  const tls = ca ? { tls: { ca: readFileSync(ca) } } : {};
  await server.attach(address, "common", { ...(token ? { token } : {}), ...tls });
  process.stdout.write("ready\n");
} else {
  process.stdout.write(`ready 127.0.0.1:${await server.serve(address)}\n`);
}
process.once("SIGTERM", () => server.close(10));
