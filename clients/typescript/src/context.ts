/** What a function may know of its call and tell about it. Above: `tool_calls` and the functions of users. */

import { create } from "@bufbuild/protobuf";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { type Progress, ProgressSchema } from "./gen/behest/v1/tool_pb.js";
import type { CallToolRequest } from "./gen/behest/v1/tool_service_pb.js";

/** Takes what the author of a server should see, and nobody else. */
export type Log = (message: string, error: unknown) => void;

/** The call that a function serves. */
export class Context {
  /** Aborts when the call was cancelled. A function that does not look goes on, and its result stands. */
  readonly signal: AbortSignal;
  readonly #request: CallToolRequest;
  readonly #show: (progress: Progress) => void;
  readonly #texts: string[] = [];

  constructor(request: CallToolRequest, signal: AbortSignal, show: (progress: Progress) => void) {
    this.signal = signal;
    this.#request = request;
    this.#show = show;
  }

  /** The idempotency key: equal over all attempts of the call, different for different calls. */
  get key(): string {
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

  /** Adds to the text of the result, before what the function returns. For results made piece by piece. */
  write(text: string): void {
    this.#texts.push(text);
  }
}
