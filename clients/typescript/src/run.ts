/**
 * A run as its caller holds it: order it, follow it, cancel it, take its result.
 *
 * Above: users of the client. Below: `watch`. Guarantees: one handle is one run, however often its creation is asked for,
 * since each asking carries the same request_id; every following of it sees every event once and in order, across broken
 * connections and restarts of the daemon.
 */

import { randomUUID } from "node:crypto";
import type { Calls } from "./calls.js";
import type { RunStub } from "./channel.js";
import type { Event } from "./gen/behest/v1/event_pb.js";
import type { Run as RunRecord } from "./gen/behest/v1/run_pb.js";
import { CancelMode, type RunOutput } from "./gen/behest/v1/run_state_pb.js";
import { changeOf, type NodeChange } from "./nodes.js";
import { type Input, parts } from "./order.js";
import { outcomeOfEvent, outcomeOfRun } from "./outcome.js";
import { isTerminal, Speech, type Update } from "./updates.js";
import { type Subject, Watch } from "./watch.js";

/** A run, known by its id or ordered under a request_id. Nothing is sent before the first method is awaited. */
export class Run implements AsyncIterable<Event> {
  readonly #stub: RunStub;
  readonly #calls: Calls;
  readonly #subject: Subject;
  readonly #start: bigint;
  #sequence: bigint;
  #terminal: Event | undefined;

  constructor(stub: RunStub, calls: Calls, subject: Subject, afterSequence = 0n) {
    this.#stub = stub;
    this.#calls = calls;
    this.#subject = subject;
    this.#start = afterSequence;
    this.#sequence = afterSequence;
  }

  /** The run's id; empty until the daemon has told it: await `create()` to be sure. */
  get runId(): string {
    return this.#subject.runId;
  }

  /** The request_id that the run was ordered under; empty for a run that was found by its id. */
  get requestId(): string {
    return this.#subject.order?.requestId ?? "";
  }

  /** Whether the run existed already, made by an earlier request with the same request_id. */
  get isReplayed(): boolean {
    return this.#subject.isReplayed;
  }

  /** The sequence of the last event that was seen. */
  get sequence(): bigint {
    return this.#sequence;
  }

  /** Makes sure that the run exists, and returns its id. Idempotent. Throws BehestError when it is refused. */
  async create(): Promise<string> {
    const subject = this.#subject;
    const { order } = subject;
    if (!subject.runId && order?.spec !== undefined) {
      const { spec, requestId } = order;
      const response = await this.#calls.unary((options) => this.#stub.createRun({ spec, requestId }, options));
      subject.runId = response.run?.id ?? "";
      subject.isReplayed = response.replayed;
    }
    return subject.runId;
  }

  /**
   * Yields everything, as it happens, until the run has ended. A delta is shown once; "discarded" takes back those of an
   * attempt that counts no more, and the event modelCompleted repeats the whole. Throws BehestError.
   */
  async *updates(): AsyncGenerator<Update, void, undefined> {
    yield* this.#follow(this.#start);
  }

  /** Yields the committed events, in order, each once, until the run has ended. Throws BehestError. */
  async *events(): AsyncGenerator<Event, void, undefined> {
    for await (const update of this.#follow(this.#start)) {
      if (update.type === "event") {
        yield update.event;
      }
    }
  }

  /** Yields how the nodes of the run's graph fare, in order, until the run has ended. Throws BehestError. */
  async *nodes(): AsyncGenerator<NodeChange, void, undefined> {
    for await (const event of this.events()) {
      const change = changeOf(event);
      if (change !== undefined) {
        yield change;
      }
    }
  }

  /** Iterates over `events()`. */
  [Symbol.asyncIterator](): AsyncGenerator<Event, void, undefined> {
    return this.events();
  }

  /**
   * Yields the text of the model's answers as it comes, whole once the run has ended. When an attempt is given up after
   * some of its text was shown, the text of the next one follows from its start; where that matters, read `updates()`.
   * Of a run of a graph it is the answer alone. Throws BehestError, but does not judge how the run ended: ask `result()`.
   */
  async *text(): AsyncGenerator<string, void, undefined> {
    const speech = new Speech();
    for await (const update of this.#follow(this.#start)) {
      const piece = speech.take(update);
      if (piece) {
        yield piece;
      }
    }
  }

  /**
   * Waits for the end of the run and returns its output. Throws RunFailedError, RunCancelledError or RunTimedOutError when
   * the run ended so, BehestError when it cannot be known. May be called again, and beside or after any following.
   */
  async result(): Promise<RunOutput> {
    if (this.#terminal === undefined) {
      for await (const _ of this.#follow(this.#sequence)) {
        // Only the end counts, and the following notes it.
      }
    }
    // Undefined still: the run had ended before the sequence that is followed.
    return this.#terminal === undefined ? outcomeOfRun(await this.get()) : outcomeOfEvent(this.#terminal);
  }

  /** Returns the run as it is now, with messages and pending approvals. Throws BehestError. */
  async get(): Promise<RunRecord> {
    const runId = await this.create();
    const { run } = await this.#calls.unary((options) => this.#stub.getRun({ runId }, options));
    return present(run);
  }

  /**
   * Cancels the run, and returns it once that is durable: a promise that it will end, not that it has. Waits for the run's
   * own creation first, so that a run whose creation is in doubt is found and cancelled. Idempotent, and no error when the
   * run has ended. Throws BehestError.
   */
  async cancel({ force = false, reason = "" } = {}): Promise<RunRecord> {
    const runId = await this.create();
    const mode = force ? CancelMode.FORCE : CancelMode.GRACEFUL;
    const { run } = await this.#calls.unary((options) => this.#stub.cancelRun({ runId, mode, reason }, options));
    return present(run);
  }

  /** Says something to the run, and returns the sequence of its event. Throws BehestError, such as RUN_ENDING. */
  async send(said: Input, requestId: string = randomUUID()): Promise<bigint> {
    const request = { runId: await this.create(), input: parts(said), requestId };
    return (await this.#calls.unary((options) => this.#stub.sendInput(request, options))).sequence;
  }

  async *#follow(afterSequence: bigint): AsyncGenerator<Update, void, undefined> {
    const watch = new Watch(this.#stub, this.#calls, this.#subject, afterSequence);
    for await (const update of watch.updates()) {
      if (update.type === "event") {
        if (update.event.sequence > this.#sequence) {
          this.#sequence = update.event.sequence;
        }
        if (isTerminal(update.event)) {
          this.#terminal = update.event;
        }
      }
      yield update;
    }
  }
}

function present(run: RunRecord | undefined): RunRecord {
  if (run === undefined) {
    throw new TypeError("the daemon answered without a run");
  }
  return run;
}
