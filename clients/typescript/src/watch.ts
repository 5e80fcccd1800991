/**
 * Follows a run to its end over as many streams as it takes.
 *
 * Above: `run`. Below: `updates`, which knows what is new, and `calls`, which makes each stream. Guarantees: every event
 * after the given sequence, in order, each once, then the end; or an error. A stream that breaks, falls silent or ends
 * without the terminal event is opened again after the last sequence seen, until patience is over.
 */

import type { CallOptions } from "@connectrpc/connect";
import { Backoff, type Calls } from "./calls.js";
import type { RunStub } from "./channel.js";
import { BehestError, brokenStream, WatchOrderError } from "./errors.js";
import type { StreamRunRequest } from "./gen/behest/v1/run_service_pb.js";
import { hasEnded } from "./outcome.js";
import { Follower, type Frame, type Update } from "./updates.js";

// After the terminal event there is nothing to wait for but the OK.
const END_SECONDS = 1;

/** What is followed: an order until its run is known, then the run. Shared by the handle and its watches. */
export interface Subject {
  /** Undefined for a run that was found by its id. */
  readonly order: StreamRunRequest | undefined;
  runId: string;
  isReplayed: boolean;
}

/** One following of one run. */
export class Watch {
  readonly #stub: RunStub;
  readonly #calls: Calls;
  readonly #subject: Subject;
  readonly #follower: Follower;
  readonly #backoff: Backoff;

  constructor(stub: RunStub, calls: Calls, subject: Subject, afterSequence: bigint) {
    this.#stub = stub;
    this.#calls = calls;
    this.#subject = subject;
    this.#follower = new Follower(subject.runId, afterSequence);
    this.#backoff = new Backoff(calls.patience.pauseSeconds);
  }

  /** Yields what is new until the run has ended. Throws BehestError. */
  async *updates(): AsyncGenerator<Update, void, undefined> {
    const { patience } = this.#calls;
    for (;;) {
      let error: BehestError = brokenStream("the watch ended without its terminal event");
      try {
        yield* this.#stream();
        if (this.#follower.terminal !== undefined || (await this.#hasNothingLeft())) {
          return;
        }
      } catch (caught) {
        if (!(caught instanceof BehestError)) {
          throw caught;
        }
        if (this.#follower.terminal !== undefined && !(caught instanceof WatchOrderError)) {
          return;
        }
        if (!(this.#subject.runId ? caught.isResumable : caught.isUndecided)) {
          throw caught;
        }
        error = caught;
      }
      const limit = this.#subject.runId ? patience.watchSeconds : patience.repeatSeconds;
      await this.#calls.pause(this.#backoff, error, limit);
    }
  }

  async *#stream(): AsyncGenerator<Update, void, undefined> {
    const follower = this.#follower;
    const subject = this.#subject;
    let isReplayed = false;
    const note = (header: Headers) => {
      isReplayed = header.get("behest-replayed") === "true";
    };
    follower.reopened();
    for await (const frame of this.#calls.stream(
      (options) => this.#open({ ...options, onHeader: note }),
      () => (follower.terminal === undefined ? this.#calls.patience.silenceSeconds : END_SECONDS),
    )) {
      this.#backoff.heard(frame.events.length + frame.deltas.length > 0);
      for (const update of follower.apply(frame)) {
        if (follower.runId && !subject.runId) {
          subject.runId = follower.runId;
          subject.isReplayed = isReplayed;
        }
        yield update;
      }
    }
  }

  #open(options: CallOptions): AsyncIterable<Frame> {
    const { runId, order } = this.#subject;
    if (runId || order === undefined) {
      this.#follower.runId = runId;
      return this.#stub.watchRun({ runId, afterSequence: this.#follower.sequence }, options);
    }
    // The first stream, or one after it broke before its first event: the request_id makes it the same run.
    return this.#stub.streamRun(order, options);
  }

  /** Whether the run ended at or before the sequence that is followed, so that its end is no event to come. */
  async #hasNothingLeft(): Promise<boolean> {
    const { runId } = this.#subject;
    if (!runId) {
      return false;
    }
    const { run } = await this.#calls.unary((options) => this.#stub.getRun({ runId }, options));
    return run !== undefined && hasEnded(run.state) && run.headSequence <= this.#follower.sequence;
  }
}
