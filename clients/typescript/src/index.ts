/** The client of behestd: `Client` to run agents, `ToolServer` to serve tools. The contract is at `behest/v1/*`. */

export type { Attachment, AttachOptions } from "./attached.js";
export type { Patience } from "./calls.js";
export type { Security, Stubs } from "./channel.js";
export { Client, type ClientOptions } from "./client.js";
export type { Context, Log } from "./context.js";
export { type Dedupe, type Entry, type Held, MemoryDedupe, SqliteDedupe } from "./dedupe.js";
export {
  BehestError,
  ClientClosedError,
  type ErrorFields,
  fromRpc,
  RunCancelledError,
  RunEndedError,
  RunFailedError,
  RunTimedOutError,
  UnreachableError,
  type Violation,
  WatchOrderError,
} from "./errors.js";
export { NodeState } from "./gen/behest/v1/run_pb.js";
export type { NodeChange } from "./nodes.js";
export type { Input, Order } from "./order.js";
export { Run } from "./run.js";
export { ToolError } from "./running.js";
export type { Infer, Schema } from "./schema.js";
export { type ToolOptions, ToolServer, type ToolServerOptions } from "./tools.js";
export type { Update } from "./updates.js";
