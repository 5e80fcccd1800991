/** A tool server that attaches to a daemon. Usage: node attached.js ADDRESS [DEDUPE-FILE] */

import { setTimeout as sleep } from "node:timers/promises";
import { ToolServer } from "behest";

const [address = "127.0.0.1:7717", dedupe = "calls.sqlite3"] = process.argv.slice(2);
const server = new ToolServer({ dedupe });
const schema = { type: "object", properties: { seconds: { type: "integer" } }, required: ["seconds"] } as const;

server.tool("wait", { description: "Wait some seconds.", schema, sideEffect: "pure" }, async ({ seconds }, context) => {
  for (let second = 0; second < seconds && !context.signal.aborted; second += 1) {
    context.progress(`${seconds - second} s left`, { current: second, total: seconds });
    await sleep(1_000);
  }
  return "done";
});

await server.attach(address, "waiting-room");
process.stdout.write("attached\n");
process.once("SIGTERM", () => void server.close(10));
