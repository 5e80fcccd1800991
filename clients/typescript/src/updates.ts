/**
 * The client's rules of a watch: what is new in each frame, whatever broke in between.
 *
 * Pure: no I/O, no clock. Above: `watch`, which brings the frames. Guarantees: events come out in sequence, each once,
 * and anything else is an error; a piece of the open step comes out once, however often a new stream sends the step from
 * its start; pieces of an attempt that counts no more are taken back before anything of the next one comes.
 */

import { clone } from "@bufbuild/protobuf";
import { WatchOrderError } from "./errors.js";
import { type Delta, DeltaSchema } from "./gen/behest/v1/delta_pb.js";
import type { Event } from "./gen/behest/v1/event_pb.js";

/** One frame of a watch. */
export interface Frame {
  readonly events: readonly Event[];
  readonly deltas: readonly Delta[];
}

/**
 * What a watch tells: a committed event, a volatile piece of the open step, or that everything which deltas have shown
 * of a model attempt counts no more.
 */
export type Update =
  | { readonly type: "event"; readonly event: Event }
  | { readonly type: "delta"; readonly delta: Delta }
  | { readonly type: "discarded"; readonly step: number; readonly attempt: number };

type Attempt = readonly [step: number, attempt: number];

const TERMINAL: ReadonlySet<string | undefined> = new Set(["runCompleted", "runFailed", "runCancelled", "runTimedOut"]);

/** Whether an event is the last of its run. */
export function isTerminal(event: Event): boolean {
  return TERMINAL.has(event.payload.case);
}

/** One growing text of the open attempt, and how much of it the present stream has repeated. */
class Growth {
  #held = "";
  #grown = "";
  #repeated = 0;

  /** Expects the text from its start again. */
  rewind(): void {
    this.#held = this.#grown;
    this.#repeated = 0;
  }

  /** Returns what is new in a piece; undefined when the text is not the one that was held. */
  grow(piece: string): string | undefined {
    const known = this.#held.slice(this.#repeated, this.#repeated + piece.length);
    if (!piece.startsWith(known)) {
      return undefined;
    }
    this.#repeated += known.length;
    const fresh = piece.slice(known.length);
    this.#grown += fresh;
    return fresh;
  }
}

/** Turns frames into updates, from one sequence of one run on. */
export class Follower {
  runId: string;
  sequence: bigint;
  terminal: Event | undefined;
  /** The model attempt that is open or was last, and whether it is over. */
  #attempt: Attempt = [0, 0];
  #isOver = false;
  readonly #growths = new Map<string, Growth>();
  /** The latest progress told of each call. */
  readonly #progress = new Map<string, readonly [attempt: number, index: bigint]>();

  constructor(runId: string, afterSequence: bigint) {
    this.runId = runId;
    this.sequence = afterSequence;
  }

  /** Notes that frames come from a new stream, which sends the open step from its start. */
  reopened(): void {
    for (const growth of this.#growths.values()) {
      growth.rewind();
    }
  }

  /** Yields what is new in a frame. Throws WatchOrderError on a gap, a repeat, another run, or after the end. */
  *apply(frame: Frame): Generator<Update, void, undefined> {
    for (const event of frame.events) {
      this.runId ||= event.runId;
      const next = this.sequence + 1n;
      if (event.sequence !== next || this.terminal !== undefined || event.runId !== this.runId) {
        throw new WatchOrderError(this.runId, next, event.sequence);
      }
      yield* this.#before(event);
      this.sequence = next;
      if (isTerminal(event)) {
        this.terminal = event;
      }
      yield { type: "event", event };
    }
    for (const delta of frame.deltas) {
      yield* this.#grown(delta);
    }
  }

  *#before({ payload }: Event): Generator<Update> {
    switch (payload.case) {
      case "modelRequested":
        yield* this.#begin([payload.value.step, payload.value.attempt]);
        break;
      case "modelCompleted":
        // It repeats what deltas have shown: nothing is taken back.
        this.#growths.clear();
        this.#attempt = [payload.value.step, payload.value.attempt];
        this.#isOver = true;
        break;
      case "modelFailed":
      case "modelSuperseded":
        yield* this.#void([payload.value.step, payload.value.attempt]);
        break;
      case "toolCompleted":
      case "toolFailed":
      case "toolDenied":
      case "toolOutcomeUnknown":
        this.#progress.delete(payload.value.callId);
        break;
    }
  }

  *#begin(attempt: Attempt): Generator<Update> {
    if (order(attempt, this.#attempt) > 0) {
      yield* this.#discard();
      this.#attempt = attempt;
      this.#isOver = false;
    }
  }

  *#void(attempt: Attempt): Generator<Update> {
    if (order(attempt, this.#attempt) >= 0) {
      yield* this.#discard();
      this.#attempt = attempt;
      this.#isOver = true;
    }
  }

  *#discard(): Generator<Update> {
    if (this.#growths.size > 0) {
      this.#growths.clear();
      yield { type: "discarded", step: this.#attempt[0], attempt: this.#attempt[1] };
    }
  }

  *#grown(delta: Delta): Generator<Update> {
    const { kind } = delta;
    if (kind.case === "toolProgress") {
      const [attempt, index] = this.#progress.get(delta.callId) ?? [0, -1n];
      if (delta.attempt > attempt || (delta.attempt === attempt && delta.index > index)) {
        this.#progress.set(delta.callId, [delta.attempt, delta.index]);
        yield { type: "delta", delta };
      }
      return;
    }
    const attempt: Attempt = [delta.step, delta.attempt];
    yield* this.#begin(attempt);
    if (order(attempt, this.#attempt) !== 0 || this.#isOver || kind.case === undefined) {
      return;
    }
    const piece = kind.case === "toolCall" ? kind.value.argumentsJson : kind.value;
    const key = `${delta.part} ${kind.case}`;
    const isFirst = !this.#growths.has(key);
    let fresh = this.#growth(key).grow(piece);
    if (fresh === undefined) {
      // Not what was held: another process goes on with the attempt. The committed message has it all.
      yield* this.#discard();
      fresh = this.#growth(key).grow(piece) ?? piece;
    }
    if (fresh === piece && (piece || isFirst)) {
      yield { type: "delta", delta };
    } else if (fresh) {
      yield { type: "delta", delta: shortened(delta, fresh) };
    }
  }

  #growth(key: string): Growth {
    const growth = this.#growths.get(key) ?? new Growth();
    this.#growths.set(key, growth);
    return growth;
  }
}

/** The text of the answers, in pieces, made whole by the committed messages. */
export class Speech {
  readonly #said = new Map<number, string>();

  /** Returns the text that an update adds; empty when it adds none. */
  take(update: Update): string {
    if (update.type === "discarded") {
      this.#said.clear();
    } else if (update.type === "delta") {
      const { kind, part } = update.delta;
      if (kind.case === "text") {
        this.#said.set(part, (this.#said.get(part) ?? "") + kind.value);
        return kind.value;
      }
    } else if (update.event.payload.case === "modelCompleted") {
      return this.#rest(update.event.payload.value.message?.parts ?? []);
    }
    return "";
  }

  #rest(
    parts: NonNullable<Extract<Event["payload"], { case: "modelCompleted" }>["value"]["message"]>["parts"],
  ): string {
    let rest = "";
    for (const [number, { kind }] of parts.entries()) {
      if (kind.case === "text") {
        const said = this.#said.get(number) ?? "";
        rest += kind.value.text.startsWith(said) ? kind.value.text.slice(said.length) : kind.value.text;
      }
    }
    this.#said.clear();
    return rest;
  }
}

function order([step, attempt]: Attempt, [otherStep, otherAttempt]: Attempt): number {
  return step - otherStep || attempt - otherAttempt;
}

/** Returns the delta with only the end of its piece. */
function shortened(delta: Delta, piece: string): Delta {
  const copy = clone(DeltaSchema, delta);
  if (copy.kind.case === "toolCall") {
    copy.kind.value.argumentsJson = piece;
  } else if (copy.kind.case === "text" || copy.kind.case === "reasoning") {
    copy.kind.value = piece;
  }
  return copy;
}
