/**
 * One stream of an attached server: calls come down, answers go up, until it ends.
 *
 * Above: `attached`, which opens the next stream when this one is over. Below: `tool_calls`. Guarantees: each call ends by
 * one `end`, and both sides hear each other at least every heartbeat or the stream is dead. What runs when the stream
 * breaks goes on, and keeps its result, if it has a key.
 */

import { setMaxListeners } from "node:events";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { progressFrame, resultFrames, statusOf } from "./answers.js";
import type { Upload } from "./artifacts.js";
import {
  type AttachArguments,
  type AttachCall,
  type AttachHello,
  type AttachReplySchema,
  type AttachServerRequest,
  AttachServerRequestSchema,
  type AttachServerResponse,
  type AttachWelcome,
  AttachWelcomeSchema,
} from "./gen/behest/v1/registry_service_pb.js";
import type { CallToolRequest } from "./gen/behest/v1/tool_service_pb.js";
import { Outbox } from "./outbox.js";
import { asEnd } from "./refusals.js";
import { CHUNK_BYTES } from "./results.js";
import { Refused, type Running } from "./running.js";
import type { Calls } from "./tool_calls.js";

const WELCOME_MS = 30_000;
/** The longest silence between two frames where the daemon names none. */
const HEARTBEAT_MS = 15_000;
const SILENT_HEARTBEATS = 3;
const SILENT = new Error("the daemon fell silent");
const ARGUMENTS_LIMIT_BYTES = 16 * 1024 * 1024;
/** What a frame holds beside the chunk of a result. */
const FRAME_ROOM_BYTES = 1024;

type Reply = NonNullable<MessageInitShape<typeof AttachReplySchema>["response"]>;

/** Opens the stream. */
export type Open = (
  requests: AsyncIterable<AttachServerRequest>,
  signal: AbortSignal,
) => AsyncIterable<AttachServerResponse>;

/** A call of a tool that has not ended on this stream: its arguments so far, then what runs. */
interface Opened {
  readonly call: AttachCall;
  readonly chunks: Uint8Array[];
  size: number;
  running?: Running;
}

/** The keys whose call was sent to the server, and whose end was not sent back. */
export class Owed {
  readonly #keys = new Set<string>();
  readonly #waiting = new Set<() => void>();

  add(key: string): void {
    this.#keys.add(key);
  }

  delete(key: string): void {
    this.#keys.delete(key);
    if (this.#keys.size === 0) {
      for (const wake of this.#waiting) {
        wake();
      }
      this.#waiting.clear();
    }
  }

  /** Waits until there is none. */
  async none(): Promise<void> {
    if (this.#keys.size > 0) {
      await new Promise<void>((resolve) => this.#waiting.add(resolve));
    }
  }
}

/** One stream, from hello to end. What is owed outlives it. */
export class Link {
  readonly #calls: Calls;
  readonly #owed: Owed;
  readonly #upload: Upload;
  readonly #onWelcome: (welcome: AttachWelcome) => void;
  readonly #outbox = new Outbox<AttachServerRequest>();
  readonly #over = new AbortController();
  readonly #opened = new Map<bigint, Opened>();
  /** Keys whose result was sent or offered, and when: the daemon has it, unless the stream is dead already. */
  readonly #offered: { readonly at: number; readonly key: string }[] = [];
  #welcome: AttachWelcome | undefined;
  #heart: NodeJS.Timeout | undefined;
  #isFinishing = false;

  constructor(calls: Calls, owed: Owed, upload: Upload, onWelcome: (welcome: AttachWelcome) => void) {
    this.#calls = calls;
    this.#owed = owed;
    this.#upload = upload;
    this.#onWelcome = onWelcome;
    // Each open call listens.
    setMaxListeners(0, this.#over.signal);
  }

  /** Whether the daemon has taken the server. */
  get isWelcome(): boolean {
    return this.#welcome !== undefined && !this.#over.signal.aborted;
  }

  /** Whether the stream was given up because the daemon was silent for too long. */
  get isDead(): boolean {
    return this.#over.signal.reason === SILENT;
  }

  /** Serves until the stream ends; returns when it ended well, and throws what it broke with. */
  async serve(hello: AttachHello, open: Open): Promise<void> {
    this.#offer(hello.held.filter(({ isDone }) => isDone).map(({ idempotencyKey }) => idempotencyKey));
    void this.#send({ case: "hello", value: hello });
    let silence = this.#watch(WELCOME_MS);
    this.#beat();
    try {
      for await (const { frame } of open(this.#outbox, this.#over.signal)) {
        clearTimeout(silence);
        if (frame.case === "welcome") {
          this.#welcome = frame.value;
          this.#beat();
          this.#onWelcome(frame.value);
        }
        silence = this.#watch(this.#heartbeatMs * SILENT_HEARTBEATS);
        this.#take(frame);
      }
    } finally {
      clearTimeout(silence);
      clearTimeout(this.#heart);
      this.abort();
    }
  }

  /** Tells the daemon that no more calls are wanted. It may still send those that are held, to join them. */
  drain(): void {
    void this.#send({ case: "drain", value: { $typeName: "behest.v1.AttachDrain" } });
  }

  /** Ends the stream once no call is open on it. */
  finish(): void {
    this.#isFinishing = true;
    if (this.#opened.size === 0) {
      this.#outbox.end();
    }
  }

  /** Ends the stream at once. Calls with a key go on. */
  abort(reason?: Error): void {
    this.#over.abort(reason);
    this.#outbox.break();
  }

  get #heartbeatMs(): number {
    const { heartbeat } = this.#welcome ?? create(AttachWelcomeSchema);
    return (heartbeat && durationMs(heartbeat)) || HEARTBEAT_MS;
  }

  #watch(ms: number): NodeJS.Timeout {
    return setTimeout(() => this.abort(SILENT), ms);
  }

  /** Is heard twice in each heartbeat, the period of which is only known after the welcome. */
  #beat(): void {
    clearTimeout(this.#heart);
    this.#heart = setTimeout(() => {
      void this.#send({ case: undefined });
      this.#beat();
    }, this.#heartbeatMs / 2);
  }

  #take(frame: AttachServerResponse["frame"]): void {
    this.#settle();
    switch (frame.case) {
      case "call":
        void this.#takeCall(frame.value);
        break;
      case "arguments":
        void this.#takeArguments(frame.value);
        break;
      case "cancel":
        void this.#cancel(frame.value.callNumber);
        break;
      case "drain":
        this.finish();
        break;
    }
  }

  async #takeCall(call: AttachCall): Promise<void> {
    switch (call.request.case) {
      case "callTool": {
        const limit = this.#welcome?.maxConcurrentCalls ?? 0;
        if (limit > 0 && this.#opened.size >= limit) {
          const text = `more calls at once than the ${limit} that were agreed`;
          await this.#end(call.callNumber, new Refused(Code.ResourceExhausted, "RUNTIME_OVERLOADED", text));
          break;
        }
        const opened: Opened = { call, chunks: [], size: 0 };
        this.#opened.set(call.callNumber, opened);
        if (!call.more) {
          await this.#answer(opened, call.request.value);
        }
        break;
      }
      case "getCallStatus": {
        const request = call.request.value;
        await this.#ending(call.callNumber, async () => {
          await this.#reply(call.callNumber, { case: "getCallStatus", value: await statusOf(this.#calls, request) });
        });
        break;
      }
      default: {
        const text = `this server serves tools, not ${call.request.case ?? "nothing"}`;
        await this.#end(call.callNumber, new Refused(Code.Unimplemented, "REQUEST_UNSUPPORTED", text));
      }
    }
  }

  async #takeArguments({ callNumber, chunk, more }: AttachArguments): Promise<void> {
    const opened = this.#opened.get(callNumber);
    if (opened === undefined || opened.running !== undefined || opened.call.request.case !== "callTool") {
      return;
    }
    opened.chunks.push(chunk);
    opened.size += chunk.length;
    if (opened.size > ARGUMENTS_LIMIT_BYTES) {
      const text = `arguments exceed the limit of ${ARGUMENTS_LIMIT_BYTES} bytes`;
      await this.#end(callNumber, new Refused(Code.ResourceExhausted, "REQUEST_TOO_LARGE", text));
    } else if (!more) {
      const argumentsJson = new TextDecoder().decode(Buffer.concat(opened.chunks));
      await this.#answer(opened, { ...opened.call.request.value, argumentsJson });
    }
  }

  async #cancel(callNumber: bigint): Promise<void> {
    const opened = this.#opened.get(callNumber);
    if (opened?.running !== undefined) {
      opened.running.cancel();
    } else if (opened !== undefined) {
      const text = "the call was cancelled before it began";
      await this.#end(callNumber, new Refused(Code.Canceled, "TOOL_CANCELLED", text));
    }
  }

  /** Answers a call of a tool, as far as the stream and the deadline let. */
  async #answer(opened: Opened, request: CallToolRequest): Promise<void> {
    const { callNumber } = opened.call;
    const key = request.idempotencyKey;
    if (key) {
      this.#owed.add(key);
    }
    let isGiven = false;
    const isEnded = await this.#ending(callNumber, async () => {
      const running = this.#calls.join(request, { traceparent: opened.call.traceparent, upload: this.#upload });
      opened.running = running;
      await this.#follow(opened.call, running);
      if (running.outcome instanceof Refused) {
        throw running.outcome;
      }
      if (running.outcome !== undefined) {
        const room = (this.#welcome?.maxFrameBytes || 2 * CHUNK_BYTES) - FRAME_ROOM_BYTES;
        for (const frame of resultFrames(running.outcome, Math.min(CHUNK_BYTES, room))) {
          isGiven = await this.#reply(callNumber, { case: "callTool", value: frame });
        }
      }
    });
    if (isEnded) {
      this.#owed.delete(key);
      this.#offer(isGiven ? [key] : []);
    }
  }

  /** Sends what is told of a call until it has an outcome or the stream is over. Throws Refused at the deadline. */
  async #follow({ callNumber, deadline }: AttachCall, running: Running): Promise<void> {
    const gone = new AbortController();
    const leave = () => gone.abort();
    this.#over.signal.addEventListener("abort", leave);
    const late = deadline && setTimeout(leave, Math.min(Math.max(timestampMs(deadline) - Date.now(), 0), 2 ** 31 - 1));
    try {
      for await (const sign of running.signs(gone.signal)) {
        const part: Reply =
          sign.type === "accepted"
            ? { case: "accepted", value: {} }
            : { case: "callTool", value: progressFrame(sign.progress) };
        await this.#reply(callNumber, part);
      }
    } finally {
      clearTimeout(late);
      this.#over.signal.removeEventListener("abort", leave);
      if (!running.key && running.outcome === undefined) {
        running.cancel();
      }
    }
    if (running.outcome === undefined) {
      const text = "the deadline of the call is over";
      throw new Refused(Code.DeadlineExceeded, "TOOL_TIMEOUT", text, { isProof: false });
    }
  }

  /** Does work that answers a call, and ends the call: whether the daemon can know. */
  async #ending(callNumber: bigint, work: () => Promise<void>): Promise<boolean> {
    try {
      await work();
    } catch (error) {
      const failed = new Refused(Code.Internal, "TOOL_FAILED", "the server failed", { isProof: false });
      return this.#end(callNumber, error instanceof Refused ? error : failed);
    }
    return this.#end(callNumber);
  }

  /** Ends a call, and the stream if that was the last one it waits for: whether the daemon can know. */
  async #end(callNumber: bigint, refused?: Refused): Promise<boolean> {
    const isSent = await this.#reply(callNumber, { case: "end", value: refused === undefined ? {} : asEnd(refused) });
    this.#opened.delete(callNumber);
    if (this.#isFinishing) {
      this.finish();
    }
    return isSent;
  }

  async #reply(callNumber: bigint, response: Reply): Promise<boolean> {
    return this.#send({ case: "reply", value: { callNumber, response } });
  }

  async #send(frame: NonNullable<MessageInitShape<typeof AttachServerRequestSchema>["frame"]>): Promise<boolean> {
    return this.#outbox.send(create(AttachServerRequestSchema, { frame }));
  }

  #offer(keys: readonly string[]): void {
    const at = performance.now();
    this.#offered.push(...keys.filter((key) => key !== "").map((key) => ({ at, key })));
  }

  /** Notes which results the daemon has, since the stream lived on for so long. */
  #settle(): void {
    const settled = performance.now() - this.#heartbeatMs * SILENT_HEARTBEATS;
    while (this.#offered[0] !== undefined && this.#offered[0].at < settled) {
      this.#calls.taken(this.#offered.shift()?.key ?? "");
    }
  }
}
