/**
 * Serves, by the TypeScript client, a tool for everything that an examination looks for.
 * Usage: node tools.mjs HOST:PORT STORE TOKEN
 */

import { setTimeout as sleep } from "node:timers/promises";
import { ToolError, ToolServer } from "behest";

const [address = "", store = "", token = ""] = process.argv.slice(2);
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

const duration = { type: "object", properties: { seconds: { type: "number" } }, required: ["seconds"] } as const;
server.tool("work", { description: "Takes time.", schema: duration }, async ({ seconds }, context) => {
  for (let step = 0; step < 5; step += 1) {
    context.progress(`step ${step}`, { current: step, total: 4 });
    await sleep(seconds * 200, undefined, { signal: context.signal });
  }
  counted += 1;
  return `worked ${counted}`;
});

process.stdout.write(`ready ${await server.serve(address)}\n`);
