/** What a function may know of its call and tell about it. Above: `tool_calls` and the functions of users. */

import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { digestOf, type Upload } from "./artifacts.js";
import type { Artifact } from "./gen/behest/v1/artifact_pb.js";
import { type Progress, ProgressSchema } from "./gen/behest/v1/tool_pb.js";
import type { CallToolRequest } from "./gen/behest/v1/tool_service_pb.js";
import { ToolError } from "./running.js";

/** Takes what the author of a server should see, and nobody else. */
export type Log = (message: string, error: unknown) => void;

/** Where a call came from: its W3C trace context, and where its artifacts go, which a dialled server does not know. */
export interface Origin {
  readonly traceparent: string;
  readonly upload?: Upload;
}

/** The call that a function serves. */
export class Context {
  /** Aborts when the call was cancelled. A function that does not look goes on, and its result stands. */
  readonly signal: AbortSignal;
  readonly #request: CallToolRequest;
  readonly #show: (progress: Progress) => void;
  readonly #origin: Origin;
  readonly #texts: string[] = [];

  constructor(request: CallToolRequest, signal: AbortSignal, show: (progress: Progress) => void, origin: Origin) {
    this.signal = signal;
    this.#origin = origin;
    this.#request = request;
    this.#show = show;
  }

  /** The idempotency key: equal over all attempts of the call, different for different calls. */
  get idempotencyKey(): string {
    return this.#request.idempotencyKey;
  }

  /** The number of the attempt, from 1. */
  get attempt(): number {
    return this.#request.attempt;
  }

  /** The fencing token: of two attempts, the one with the lower epoch is stale. */
  get epoch(): bigint {
    return this.#request.epoch;
  }

  /** Id of the call. Empty for a direct call. */
  get callId(): string {
    return this.#request.callId;
  }

  /** Id of the run that calls. Empty for a direct call. */
  get runId(): string {
    return this.#request.runId;
  }

  /** Id of the session of the run. Empty for a direct call. */
  get sessionId(): string {
    return this.#request.sessionId;
  }

  /** W3C trace context of the call, to be handed on. Empty when the caller traces nothing. */
  get traceparent(): string {
    return this.#origin.traceparent;
  }

  /** The arguments, byte for byte. For numbers that JavaScript cannot hold. */
  get argumentsJson(): string {
    return this.#request.argumentsJson;
  }

  /** When the result is no longer waited for. */
  get deadline(): Date | undefined {
    return this.#request.deadline && timestampDate(this.#request.deadline);
  }

  /** What was written so far. */
  get written(): string {
    return this.#texts.join("");
  }

  /** Shows how far the work is. It is also the sign of life of a tool with a heartbeat. */
  progress(text = "", { current, total }: { readonly current?: number; readonly total?: number } = {}): void {
    const told = create(ProgressSchema, { text });
    if (current !== undefined) {
      told.current = current;
    }
    if (total !== undefined) {
      told.total = total;
    }
    this.#show(told);
  }

  /**
   * Stores what is too large for a result, up to 2 GiB, in the session of the run, and returns it once it is safe. The same
   * content of the same call is stored once, whatever the attempt. Throws ToolError where the server is not attached, since
   * a dialled one knows no daemon; BehestError when the daemon refuses.
   */
  async artifact(
    content: Uint8Array | string,
    { name = "", mediaType = "" }: { readonly name?: string; readonly mediaType?: string } = {},
  ): Promise<Artifact> {
    const { upload } = this.#origin;
    if (upload === undefined) {
      throw new ToolError("artifacts need a server that is attached to its daemon");
    }
    const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
    const key = this.idempotencyKey;
    const same = digestOf(`${key}\0${name}\0${mediaType}\0`, digestOf(bytes));
    const requestId = key ? Buffer.from(same).toString("hex") : randomUUID();
    return upload(bytes, { requestId, sessionId: this.sessionId, name, mediaType }, this.signal);
  }

  /** Adds to the text of the result, before what the function returns. For results made piece by piece. */
  write(text: string): void {
    this.#texts.push(text);
  }
}
