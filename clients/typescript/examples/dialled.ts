/** A tool server that daemons dial. Usage: node dialled.js HOST:PORT [DEDUPE-FILE] */

import { ToolError, ToolServer } from "behest";

const [address = "127.0.0.1:7801", dedupe = "calls.sqlite3"] = process.argv.slice(2);
const server = new ToolServer({ dedupe });
const schema = {
  type: "object",
  properties: { dividend: { type: "integer" }, divisor: { type: "integer" } },
  required: ["dividend", "divisor"],
} as const;

server.tool("divide", { description: "Divide integers.", schema, sideEffect: "pure" }, ({ dividend, divisor }) => {
  if (divisor === 0) {
    throw new ToolError("nothing can be divided by 0");
  }
  return { quotient: Math.trunc(dividend / divisor), remainder: dividend % divisor };
});

const port = await server.serve(address);
process.stdout.write(`ready ${port}\n`);
process.once("SIGTERM", () => void server.close(10));
