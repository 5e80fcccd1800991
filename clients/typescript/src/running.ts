/**
 * One call of a tool server while it runs: what was told of it, and who waits for more. No I/O. Above: `tool_calls`.
 */

import { createHash } from "node:crypto";
import type { Code } from "@connectrpc/connect";
import type { ToolResult } from "./gen/behest/v1/message_pb.js";
import type { Progress } from "./gen/behest/v1/tool_pb.js";
import type { CallToolRequest } from "./gen/behest/v1/tool_service_pb.js";

const PROGRESS_KEPT = 256;

/** Thrown by a tool to fail with a text of its own, which the model is told. */
export class ToolError extends Error {
  override readonly name = "ToolError";
}

/** Thrown when a call is not made. `isProof` promises that nothing was executed. */
export class Refused extends Error {
  override readonly name = "Refused";
  readonly code: Code;
  readonly reason: string;
  readonly isProof: boolean;

  constructor(code: Code, reason: string, message: string, { isProof = true } = {}) {
    super(message);
    this.code = code;
    this.reason = reason;
    this.isProof = isProof;
  }
}

/** What is told of a call before its outcome: that it is being executed, once, and its progress. */
export type Sign = { readonly type: "accepted" } | { readonly type: "progress"; readonly progress: Progress };

/** A call in progress: its latest progress, its outcome when it has one, and who waits for either. */
export class Running {
  readonly key: string;
  readonly digest: string;
  epoch: bigint;
  outcome: ToolResult | Refused | undefined;
  readonly #cancelled = new AbortController();
  #shown: Progress[] = [];
  #count = 0;
  #hasBegun = false;
  #waiting = new Set<() => void>();

  constructor(request: CallToolRequest) {
    this.key = request.idempotencyKey;
    this.digest = digestOf(request);
    this.epoch = request.epoch;
  }

  /** Tells the function that it is to stop. */
  get signal(): AbortSignal {
    return this.#cancelled.signal;
  }

  /** Asks the function to stop. */
  cancel(): void {
    this.#cancelled.abort();
  }

  /** Shows progress to all who wait; the oldest of more than 256 is dropped for those who have not read it. */
  show(progress: Progress): void {
    if (this.outcome === undefined) {
      this.#shown = [...this.#shown.slice(1 - PROGRESS_KEPT), progress];
      this.#count += 1;
      this.#wake();
    }
  }

  /** Notes that it is being executed. */
  begin(): void {
    this.#hasBegun = true;
    this.#wake();
  }

  /** Sets the outcome. The first one counts. */
  end(outcome: ToolResult | Refused): void {
    this.outcome ??= outcome;
    this.#hasBegun ||= !(this.outcome instanceof Refused);
    this.#wake();
  }

  /** Yields what was told so far and what follows, until there is an outcome or the caller is gone. */
  async *signs(gone: AbortSignal): AsyncGenerator<Sign, void, undefined> {
    let position = 0;
    let isAccepted = false;
    while (!gone.aborted) {
      if (this.#hasBegun && !isAccepted) {
        isAccepted = true;
        yield { type: "accepted" };
      }
      const missed = Math.min(this.#count - position, this.#shown.length);
      const fresh = this.#shown.slice(this.#shown.length - missed);
      position = this.#count;
      for (const progress of fresh) {
        yield { type: "progress", progress };
      }
      if (this.#count > position || (this.#hasBegun && !isAccepted)) {
        continue;
      }
      if (this.outcome !== undefined) {
        return;
      }
      await this.change(gone);
    }
  }

  /** Waits for progress, the outcome or the signal. */
  async change(signal: AbortSignal): Promise<void> {
    if (signal.aborted) {
      return;
    }
    await new Promise<void>((resolve) => {
      const wake = () => {
        signal.removeEventListener("abort", wake);
        this.#waiting.delete(wake);
        resolve();
      };
      signal.addEventListener("abort", wake);
      this.#waiting.add(wake);
    });
  }

  #wake(): void {
    for (const wake of this.#waiting) {
      wake();
    }
  }
}

/** Tells one request from another with the same key. */
export function digestOf(request: CallToolRequest): string {
  return createHash("sha256").update(`${request.toolName}\0${request.argumentsJson}`).digest("hex");
}
