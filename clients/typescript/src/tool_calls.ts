/**
 * The calls of a tool server: each outlives the streams of those who wait for it.
 *
 * Above: `tools`, and `dialled` and `attached`, which speak the two protocols. Below: `dedupe`, which remembers. A call
 * with a key goes on when its caller is gone, since the caller, or its successor, comes back with the same key; it is
 * stopped by name. A call without a key belongs to its stream.
 */

import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { Context, type Log, type Origin } from "./context.js";
import type { Dedupe, Entry, Held } from "./dedupe.js";
import { type ToolResult, ToolResultSchema } from "./gen/behest/v1/message_pb.js";
import { SideEffect, type Tool } from "./gen/behest/v1/tool_pb.js";
import type { CallToolRequest } from "./gen/behest/v1/tool_service_pb.js";
import { errorResult, misfit, resultOf } from "./results.js";
import { digestOf, Refused, Running, ToolError } from "./running.js";
import { Mismatch, type Read } from "./schema.js";

const HELD_KEYS = 10_000;
const NOTHING = new Uint8Array();
const NOWHERE: Origin = { traceparent: "" };

/** A registered function: the tool that it is, how its arguments are read, and what it does. */
export interface Registered {
  readonly tool: Tool;
  readonly read: Read;
  readonly run: (args: never, context: Context) => unknown;
}

/** Finds the function of a request that may begin now. Throws Refused. */
export type Find = (request: CallToolRequest) => Registered;

/** All calls of a server. */
export class Calls {
  readonly dedupe: Dedupe;
  readonly #find: Find;
  readonly #log: Log;
  readonly #running = new Map<string, Running>();
  readonly #all = new Set<Running>();
  /** Keys that are being buried: a call that comes with one waits until it is. */
  readonly #burials = new Map<string, Promise<unknown>>();
  /** Keys whose result the daemon surely has. At most as many as are ever reported. */
  readonly #taken = new Set<string>();
  #isDraining = false;

  constructor(dedupe: Dedupe, find: Find, log: Log) {
    this.dedupe = dedupe;
    this.#find = find;
    this.#log = log;
  }

  /** Begins no more calls: they are refused, with proof. Those that run go on, and results are still given. */
  drain(): void {
    this.#isDraining = true;
  }

  /** Returns the keys that may still be asked for: at most 10,000 that are done, the latest, and all that run. */
  async held(): Promise<Held[]> {
    const known = (await this.dedupe.held(HELD_KEYS)).filter(({ key }) => !this.#taken.has(key));
    const held = new Map(known.map((each) => [each.key, each]));
    for (const key of this.#running.keys()) {
      held.set(key, { key, isDone: false });
    }
    return [...held.values()];
  }

  /** Notes that the daemon has the result of a key, so that it is not reported any more. */
  taken(key: string): void {
    this.#taken.add(key);
    const [oldest] = this.#taken;
    if (this.#taken.size > HELD_KEYS && oldest !== undefined) {
      this.#taken.delete(oldest);
    }
  }

  /**
   * Begins a call, or joins the one that runs with its key. Throws Refused for a stale epoch, and for a key that runs with
   * other arguments.
   */
  join(request: CallToolRequest, origin: Origin = NOWHERE): Running {
    const joined = this.#running.get(request.idempotencyKey);
    if (joined !== undefined) {
      checkSame(joined, request);
      joined.epoch = request.epoch;
      return joined;
    }
    const running = new Running(request);
    if (running.key) {
      this.#running.set(running.key, running);
    }
    this.#all.add(running);
    void this.#make(running, request, origin);
    return running;
  }

  /** Asks the call of a key to stop: whether it is running and was told. */
  cancelKey(key: string, epoch: bigint): boolean {
    const running = this.#running.get(key);
    if (running === undefined || running.outcome !== undefined || epoch < running.epoch) {
      return false;
    }
    running.cancel();
    return true;
  }

  /** Lets go of all calls, because the server ends. What they did by then is not known. */
  stop(): void {
    for (const running of this.#all) {
      running.cancel();
      running.end(new Refused(Code.Unavailable, "TOOL_UNAVAILABLE", "the server is stopping", { isProof: false }));
    }
  }

  /**
   * What became of a key: it runs, an entry, or undefined when this server cannot tell. A key that was never seen is
   * buried for the epoch and attempt, and all before, ahead of the answer.
   */
  async status(key: string, epoch: bigint, attempt: number, waitMs: number): Promise<Running | Entry | undefined> {
    const running = this.#running.get(key);
    if (running !== undefined) {
      const over = AbortSignal.timeout(waitMs);
      while (running.outcome === undefined && !over.aborted) {
        await running.change(over);
      }
      // One that has an outcome is remembered with it, unless it was refused, or let go of and runs on.
      if (this.#running.get(key) === running) {
        return running;
      }
    }
    return this.#bury(key, epoch, attempt);
  }

  /** Finds the entry of a key that does not run, and buries one that is not there. */
  async #bury(key: string, epoch: bigint, attempt: number): Promise<Entry | undefined> {
    const burial = this.#buried(key, epoch, attempt);
    this.#burials.set(key, burial);
    try {
      return await burial;
    } finally {
      if (this.#burials.get(key) === burial) {
        this.#burials.delete(key);
      }
    }
  }

  async #buried(key: string, epoch: bigint, attempt: number): Promise<Entry | undefined> {
    // Not before an earlier burial of the key is done.
    await this.#burials.get(key)?.catch(() => undefined);
    let entry = await this.dedupe.find(key);
    if (
      entry === undefined ||
      (entry.state === "buried" && !isRefused(entry, { epoch, attempt: attempt || Infinity }))
    ) {
      entry = { state: "buried", epoch, attempt, digest: "", result: NOTHING };
      await this.dedupe.put(key, entry);
    }
    return entry.state === "buried" && !this.dedupe.isDurable ? undefined : entry;
  }

  /** Makes a call from start to end, and remembers what came of it. The outcome is set whatever happens. */
  async #make(running: Running, request: CallToolRequest, origin: Origin): Promise<void> {
    let outcome: ToolResult | Refused;
    try {
      outcome = await this.#outcome(running, request, origin);
    } catch (error) {
      if (error instanceof Refused) {
        outcome = error;
      } else {
        if (running.outcome === undefined) {
          this.#log(`call of tool ${request.toolName} failed`, error);
        }
        outcome = new Refused(Code.Internal, "TOOL_FAILED", "the server failed", { isProof: false });
      }
    }
    if (running.key) {
      this.#running.delete(running.key);
    }
    this.#all.delete(running);
    running.end(outcome);
  }

  async #outcome(running: Running, request: CallToolRequest, origin: Origin): Promise<ToolResult> {
    const { key, digest } = running;
    if (key) {
      await this.#burials.get(key)?.catch(() => undefined);
      const entry = await this.dedupe.find(key);
      const known = entry && remembered(entry, request, this.#find);
      if (known !== undefined) {
        return known;
      }
    }
    if (this.#isDraining) {
      throw new Refused(Code.Unavailable, "RUNTIME_DRAINING", "the server is stopping and begins no more calls");
    }
    const registered = this.#find(request);
    let args: unknown;
    try {
      args = registered.read(request.argumentsJson);
    } catch (error) {
      if (error instanceof Mismatch) {
        return misfit(request, error);
      }
      throw error;
    }
    if (key) {
      await this.dedupe.put(key, { state: "running", epoch: request.epoch, attempt: 0, digest, result: NOTHING });
    }
    running.begin();
    const context = new Context(request, running.signal, (progress) => running.show(progress), origin);
    const result = await this.#execute(registered, args, context, request);
    // What was cut short and may be repeated is not remembered: the next attempt begins anew.
    const isCut = running.signal.aborted && result.isError && isRepeatable(registered, request);
    // A call that was let go of stays as begun: its caller was told that its outcome is not known.
    if (key && !isCut && running.outcome === undefined) {
      const encoded = toBinary(ToolResultSchema, result);
      await this.dedupe.put(key, { state: "done", epoch: running.epoch, attempt: 0, digest, result: encoded });
    }
    return result;
  }

  /** Runs the function; what it throws becomes an error result without a stack. */
  async #execute(made: Registered, args: unknown, context: Context, request: CallToolRequest): Promise<ToolResult> {
    if (context.signal.aborted) {
      return errorResult(request, "the call was cancelled before it began");
    }
    try {
      const value = await made.run(args as never, context);
      return resultOf(request, context.written, value);
    } catch (error) {
      if (context.signal.aborted) {
        return errorResult(request, "the call was cancelled; part of its work may have been done");
      }
      if (error instanceof ToolError) {
        return errorResult(request, error.message);
      }
      this.#log(`tool ${request.toolName} threw`, error);
      return errorResult(request, error instanceof Error ? `${error.name}: ${error.message}` : String(error));
    }
  }
}

/** What a remembered key means for a request: its result, or undefined to execute it. Throws Refused. */
function remembered(entry: Entry, request: CallToolRequest, find: Find): ToolResult | undefined {
  if (entry.state === "buried") {
    if (isRefused(entry, request)) {
      const text = `the key is buried for epoch ${entry.epoch} and lower ones`;
      throw new Refused(Code.FailedPrecondition, "TOOL_START_EXPIRED", text);
    }
    return undefined;
  }
  checkSame(entry, request);
  if (entry.state === "done") {
    return fromBinary(ToolResultSchema, entry.result);
  }
  if (isRepeatable(find(request), request)) {
    return undefined;
  }
  const text = "the server stopped while the call ran; whether it took effect is not known";
  throw new Refused(Code.Aborted, "TOOL_OUTCOME_UNKNOWN", text, { isProof: false });
}

/** Whether a call may be executed again. Where the author says nothing, the operator's word counts. */
function isRepeatable({ tool }: Registered, request: CallToolRequest): boolean {
  const sideEffect = tool.hints?.sideEffect || request.sideEffect;
  return sideEffect === SideEffect.PURE || sideEffect === SideEffect.IDEMPOTENT;
}

/** Whether a tombstone covers an attempt. */
function isRefused(tomb: Entry, { epoch, attempt }: { epoch: bigint; attempt: number }): boolean {
  return epoch < tomb.epoch || (epoch === tomb.epoch && attempt <= (tomb.attempt || Infinity));
}

/** Refuses a key that was used for something else, and an epoch that is over. Throws Refused. */
function checkSame(known: { digest: string; epoch: bigint }, request: CallToolRequest): void {
  if (known.digest !== digestOf(request)) {
    const text = "the key was used with another tool or other arguments";
    throw new Refused(Code.AlreadyExists, "REQUEST_ID_REUSED", text, { isProof: false });
  }
  if (request.epoch < known.epoch) {
    const text = `epoch ${known.epoch} was seen for this key`;
    throw new Refused(Code.Aborted, "TOOL_OUTCOME_UNKNOWN", text, { isProof: false });
  }
}
