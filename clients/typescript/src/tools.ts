/**
 * A tool server in a few lines: register functions, then serve them to daemons that dial, or attach to a daemon.
 *
 *     const server = new ToolServer();
 *     const schema = { type: "object", properties: { a: { type: "integer" } }, required: ["a"] } as const;
 *     server.tool("double", { description: "Double a number.", schema }, ({ a }) => 2 * a);
 *     await server.serve("127.0.0.1:7801");
 *
 * Calls are remembered by key (`dedupe: PATH` keeps them over restarts), so that a repeated attempt is not executed again.
 * What a function throws is an error result for the model. Below: `tool_calls`, `dialled` and `attached`.
 */

import type { SecureServerOptions } from "node:http2";
import { create } from "@bufbuild/protobuf";
import { Attachment, type AttachOptions } from "./attached.js";
import { Catalog } from "./catalog.js";
import type { Context, Log } from "./context.js";
import { type Dedupe, MemoryDedupe, SqliteDedupe } from "./dedupe.js";
import { Listener } from "./dialled.js";
import { SideEffect, type Tool, ToolSchema } from "./gen/behest/v1/tool_pb.js";
import { type Infer, reader, type Schema } from "./schema.js";
import { Calls } from "./tool_calls.js";

const NO_ARGUMENTS = { type: "object", properties: {}, additionalProperties: false } as const;
const EFFECTS = {
  pure: SideEffect.PURE,
  idempotent: SideEffect.IDEMPOTENT,
  non_idempotent_queryable: SideEffect.NON_IDEMPOTENT_QUERYABLE,
  non_idempotent: SideEffect.NON_IDEMPOTENT,
} as const;

/** How a server is set up. */
export interface ToolServerOptions {
  /**
   * A file that remembers calls over restarts, or a store of one's own. Left out, they are remembered in memory, which is
   * enough for pure tools: the server then never promises that an unknown call was not executed.
   */
  readonly dedupe?: string | Dedupe;
  /** The bearer token that callers who dial must bring. */
  readonly token?: string;
  /** Certificate and key, as Node's `http2.createSecureServer` takes them. Left out, connections are plain. */
  readonly tls?: SecureServerOptions;
  /** Gets what tools throw, with the stack that the model is not told. Default: it is written to stderr. */
  readonly log?: Log;
}

/** What a tool is. */
export interface ToolOptions<S extends Schema> {
  /** What it does, for the model. */
  readonly description: string;
  /** The JSON Schema of the arguments, an object schema. Left out: the tool takes none. */
  readonly schema?: S;
  /** The JSON Schema of a structured result. Left out: any. */
  readonly outputSchema?: Schema;
  /**
   * A hint for the operator of the daemon; here it decides whether a call that a crash of this server interrupted is
   * executed again when it is repeated.
   */
  readonly sideEffect?: keyof typeof EFFECTS;
  /** The title to show. */
  readonly title?: string;
}

/** Serves functions as tools until it is closed. Register tools before `serve` and `attach`. */
export class ToolServer {
  readonly #catalog = new Catalog();
  readonly #calls: Calls;
  readonly #token: string;
  readonly #tls: SecureServerOptions | undefined;
  readonly #log: Log;
  readonly #listeners = new Set<Listener>();
  readonly #attachments = new Set<Attachment>();

  constructor({ dedupe, token = "", tls, log = toStderr }: ToolServerOptions = {}) {
    const store = typeof dedupe === "string" ? new SqliteDedupe(dedupe) : (dedupe ?? new MemoryDedupe());
    this.#token = token;
    this.#tls = tls;
    this.#log = log;
    this.#calls = new Calls(store, (request) => this.#catalog.find(request), log);
  }

  /** The tools, by ascending name. */
  get tools(): Tool[] {
    return this.#catalog.tools;
  }

  /**
   * Registers a function. What it returns is the result: a string is text, a Part or a ToolResult is itself, everything
   * else JSON. Throws TypeError for a schema that is none, and for a name that is taken or not allowed.
   */
  tool<const S extends Schema = typeof NO_ARGUMENTS>(
    name: string,
    { description, schema, outputSchema, sideEffect, title }: ToolOptions<S>,
    run: (args: Infer<S>, context: Context) => unknown,
  ): this {
    const input: Schema = schema ?? NO_ARGUMENTS;
    const tool = create(ToolSchema, {
      name,
      description,
      inputSchemaJson: JSON.stringify(input),
      outputSchemaJson: outputSchema === undefined ? "" : JSON.stringify(outputSchema),
    });
    if (sideEffect !== undefined || title !== undefined) {
      const effect = sideEffect === undefined ? SideEffect.UNSPECIFIED : EFFECTS[sideEffect];
      tool.hints = { $typeName: "behest.v1.ToolHints", sideEffect: effect, title: title ?? "" };
    }
    this.#catalog.add({ tool, read: reader(input), run });
    return this;
  }

  /**
   * Listens on `HOST:PORT` or `unix:PATH` for daemons that dial, and returns the port; port 0 takes a free one. Throws
   * when the address cannot be taken.
   */
  async serve(address: string): Promise<number> {
    const listener = new Listener(this.#catalog, this.#calls, this.#token, this.#tls);
    const port = await listener.listen(address);
    this.#listeners.add(listener);
    return port;
  }

  /**
   * Attaches to the daemon at `HOST:PORT` or `unix:PATH` under a name, and returns once it is welcome. It stays attached
   * over broken connections and restarts of the daemon until it is closed. Throws BehestError when it is refused, or the
   * daemon cannot be reached.
   */
  async attach(address: string, name: string, options: AttachOptions = {}): Promise<Attachment> {
    const attachment = new Attachment(this.#catalog, this.#calls, address, { ...options, name, log: this.#log });
    await attachment.welcome;
    this.#attachments.add(attachment);
    return attachment;
  }

  /** Takes no more calls, lets those that run end within the grace, and lets go of the rest. */
  async close(graceSeconds = 0): Promise<void> {
    this.#calls.drain();
    const served = [...this.#listeners, ...this.#attachments];
    this.#listeners.clear();
    this.#attachments.clear();
    await Promise.all(served.map((each) => each.close(graceSeconds)));
    this.#calls.stop();
    await this.#calls.dedupe.close();
  }
}

function toStderr(message: string, error: unknown): void {
  process.stderr.write(`${message}: ${error instanceof Error ? error.stack : error}\n`);
}
