/**
 * How each call to the daemon is made: with a deadline, our errors, and repeats where a repeat is safe.
 *
 * Above: the services and the watch. Below: the transport. Guarantees: only a BehestError leaves a call, no call is left
 * open, and nothing is sent twice unless the second sending has the effect of the first.
 */

import { setTimeout as sleep } from "node:timers/promises";
import type { CallOptions } from "@connectrpc/connect";
import { type BehestError, brokenStream, ClientClosedError, fromRpc } from "./errors.js";

/** How long a client waits and tries again. All in seconds. */
export interface Patience {
  /** Deadline of one attempt of a call that answers once. */
  readonly callSeconds: number;
  /** How long a repeatable call is repeated while the daemon cannot be reached. */
  readonly repeatSeconds: number;
  /** How long a watch is resumed without one frame from the daemon. */
  readonly watchSeconds: number;
  /** The longest silence of an open watch: three heartbeats. */
  readonly silenceSeconds: number;
  /** The longest pause between two attempts; the first ones are shorter. */
  readonly pauseSeconds: number;
}

export const PATIENCE: Patience = {
  callSeconds: 30,
  repeatSeconds: 10,
  watchSeconds: 60,
  silenceSeconds: 45,
  pauseSeconds: 5,
};

/** How long a daemon may drain and count as heard. */
const DRAIN_SECONDS = 60;

/** Pauses between attempts, with full jitter, until patience is over. */
export class Backoff {
  readonly #pauseSeconds: number;
  #attempts = 0;
  #failingSince: number | undefined;
  #drainingSince = 0;

  constructor(pauseSeconds: number) {
    this.#pauseSeconds = pauseSeconds;
  }

  /** Notes that the other side is there; with progress, pauses are short again. */
  heard(hasProgress: boolean): void {
    this.#failingSince = undefined;
    if (hasProgress) {
      this.#attempts = 0;
    }
  }

  /** Waits before the next attempt. Throws the error when the daemon was not heard for longer than is bearable. */
  async pause(error: BehestError, giveUpSeconds: number, signal?: AbortSignal): Promise<void> {
    const now = performance.now() / 1e3;
    if (this.#failingSince === undefined) {
      this.#failingSince = this.#drainingSince = now;
    }
    // A daemon that drains says so: it was heard, and is about to be started again.
    if (error.reason === "RUNTIME_DRAINING" && now < this.#drainingSince + DRAIN_SECONDS) {
      this.#failingSince = now;
    }
    let delay = Math.random() * Math.min(this.#pauseSeconds, 0.1 * 2 ** Math.min(this.#attempts, 16));
    delay += Math.min(error.retrySeconds ?? 0, this.#pauseSeconds);
    this.#attempts += 1;
    if (now + delay > this.#failingSince + giveUpSeconds) {
      throw error;
    }
    try {
      await sleep(delay * 1e3, undefined, signal && { signal });
    } catch {
      throw new ClientClosedError();
    }
  }
}

/** Makes the calls of one client. */
export class Calls {
  readonly patience: Patience;
  readonly #closed = new AbortController();
  /** What is open, each with what ends it. A signal that all calls share would keep a trace of every one of them. */
  readonly #open = new Set<AbortController>();

  constructor(patience: Patience) {
    this.patience = patience;
  }

  /** Ends what is open with ClientClosedError, and lets no further attempt be made. Idempotent. */
  close(): void {
    this.#closed.abort();
    for (const call of this.#open) {
      call.abort();
    }
  }

  /** Waits before the next attempt, at most until `close`. Throws the error when patience is over. */
  async pause(backoff: Backoff, error: BehestError, giveUpSeconds: number): Promise<void> {
    await backoff.pause(error, giveUpSeconds, this.#closed.signal);
  }

  /**
   * Makes a call that answers once. Throws BehestError. A repeatable call has no effect, or one that a repeat does not
   * double: it is sent again while the daemon cannot be reached or does not answer.
   */
  async unary<T>(attempt: (options: CallOptions) => Promise<T>, isRepeatable = true): Promise<T> {
    const backoff = new Backoff(this.patience.pauseSeconds);
    for (;;) {
      const call = this.#begin();
      try {
        return await attempt({ signal: call.signal, timeoutMs: this.patience.callSeconds * 1e3 });
      } catch (caught) {
        this.#ensureOpen();
        const error = fromRpc(caught);
        if (!(isRepeatable && error.isUndecided)) {
          throw error;
        }
        await this.pause(backoff, error, this.patience.repeatSeconds);
      } finally {
        this.#open.delete(call);
      }
    }
  }

  /** Yields the frames of one stream, and cancels it when the caller leaves or it is silent for too long. */
  async *stream<T>(
    open: (options: CallOptions) => AsyncIterable<T>,
    silenceSeconds: () => number,
  ): AsyncGenerator<T, void, undefined> {
    const call = this.#begin();
    const frames = open({ signal: call.signal })[Symbol.asyncIterator]();
    try {
      for (;;) {
        const frame = await this.#frame(frames, call, silenceSeconds());
        if (frame.done) {
          return;
        }
        yield frame.value;
      }
    } finally {
      call.abort();
      this.#open.delete(call);
    }
  }

  async #frame<T>(frames: AsyncIterator<T>, call: AbortController, seconds: number): Promise<IteratorResult<T>> {
    const timer = setTimeout(() => call.abort(), seconds * 1e3);
    try {
      return await frames.next();
    } catch (caught) {
      this.#ensureOpen();
      throw call.signal.aborted ? brokenStream("the daemon fell silent") : fromRpc(caught);
    } finally {
      clearTimeout(timer);
    }
  }

  #begin(): AbortController {
    this.#ensureOpen();
    const call = new AbortController();
    this.#open.add(call);
    return call;
  }

  #ensureOpen(): void {
    if (this.#closed.signal.aborted) {
      throw new ClientClosedError();
    }
  }
}
