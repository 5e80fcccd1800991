/**
 * The client's rules of a watch: what is new in each frame, whatever broke in between.
 *
 * Pure: no I/O, no clock. Above: `watch`, which brings the frames. Guarantees: events come out in sequence, each once,
 * and anything else is an error; a piece of an open step comes out once, however often a new stream sends the step from
 * its start; pieces of an attempt that counts no more are taken back before anything of the next one comes.
 */

import { clone } from "@bufbuild/protobuf";
import { WatchOrderError } from "./errors.js";
import { type Delta, DeltaSchema } from "./gen/behest/v1/delta_pb.js";
import type { Event } from "./gen/behest/v1/event_pb.js";
import type { Part } from "./gen/behest/v1/message_pb.js";

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

/** More steps than can be open, so that what comes late of one that is over is known as that. */
const STEPS = 256;
/** The operator whose text is the answer of a graph. */
const ANSWER = "answer";

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

/** The model attempt of a step that is open or was last: its number, whether it is over, and what it has shown. */
class Step {
  /** The visit of a graph's node that the step belongs to; 0 when it is none's, or not known. */
  visit = 0;
  attempt = 0;
  isOver = false;
  readonly growths = new Map<string, Growth>();

  growth(key: string): Growth {
    const growth = this.growths.get(key) ?? new Growth();
    this.growths.set(key, growth);
    return growth;
  }
}

/** Turns frames into updates, from one sequence of one run on. Nodes of a graph have steps beside each other. */
export class Follower {
  runId: string;
  sequence: bigint;
  terminal: Event | undefined;
  /** The steps that are open, and of those that are over the latest ones. */
  readonly #steps = new Map<number, Step>();
  /** The latest progress told of each call. */
  readonly #progress = new Map<string, readonly [attempt: number, index: bigint]>();

  constructor(runId: string, afterSequence: bigint) {
    this.runId = runId;
    this.sequence = afterSequence;
  }

  /** Notes that frames come from a new stream, which sends the open steps from their start. */
  reopened(): void {
    for (const step of this.#steps.values()) {
      for (const growth of step.growths.values()) {
        growth.rewind();
      }
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
      case "contextBuilt":
        this.#step(payload.value.step).visit = payload.value.visit;
        break;
      case "modelRequested":
        yield* this.#begin(payload.value.step, payload.value.attempt);
        break;
      case "modelCompleted": {
        // It repeats what deltas have shown: nothing is taken back.
        const step = this.#step(payload.value.step);
        step.growths.clear();
        step.attempt = payload.value.attempt;
        step.isOver = true;
        break;
      }
      case "modelFailed":
      case "modelSuperseded":
        yield* this.#void(payload.value.step, payload.value.attempt);
        break;
      case "nodeCompleted":
      case "nodeFailed":
      case "nodeSkipped":
        yield* this.#left(payload.value.visit);
        break;
      case "toolCompleted":
      case "toolFailed":
      case "toolDenied":
      case "toolOutcomeUnknown":
        this.#progress.delete(payload.value.callId);
        break;
    }
  }

  #step(number: number): Step {
    const known = this.#steps.get(number);
    if (known !== undefined) {
      return known;
    }
    if (this.#steps.size >= STEPS) {
      const over = [...this.#steps].filter(([, { isOver }]) => isOver).slice(0, STEPS / 2);
      for (const [each] of over) {
        this.#steps.delete(each);
      }
    }
    const step = new Step();
    this.#steps.set(number, step);
    return step;
  }

  *#begin(number: number, attempt: number): Generator<Update> {
    const step = this.#step(number);
    if (attempt > step.attempt) {
      yield* discarded(number, step);
      step.attempt = attempt;
      step.isOver = false;
    }
  }

  *#void(number: number, attempt: number): Generator<Update> {
    const step = this.#step(number);
    if (attempt >= step.attempt) {
      yield* discarded(number, step);
      step.attempt = attempt;
      step.isOver = true;
    }
  }

  /** Ends the steps of a visit of a node. */
  *#left(visit: number): Generator<Update> {
    for (const [number, step] of this.#steps) {
      if (visit && step.visit === visit) {
        yield* this.#void(number, step.attempt);
      }
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
    yield* this.#begin(delta.step, delta.attempt);
    const step = this.#step(delta.step);
    if (delta.attempt !== step.attempt || step.isOver || kind.case === undefined) {
      return;
    }
    const piece = kind.case === "toolCall" ? kind.value.argumentsJson : kind.value;
    const key = `${delta.part} ${kind.case}`;
    const isFirst = !step.growths.has(key);
    let fresh = step.growth(key).grow(piece);
    if (fresh === undefined) {
      // Not what was held: another process goes on with the attempt. The committed message has it all.
      yield* discarded(delta.step, step);
      fresh = step.growth(key).grow(piece) ?? piece;
    }
    if (fresh === piece && (piece || isFirst)) {
      yield { type: "delta", delta };
    } else if (fresh) {
      yield { type: "delta", delta: shortened(delta, fresh) };
    }
  }
}

/**
 * The text of the answers, in pieces, made whole by the committed messages. Of a run that follows a graph it is the answer
 * alone, told by one node at a time and made whole by the run's output.
 */
export class Speech {
  readonly #said = new Map<number, string>();
  /** Of a graph: the visits that answer, their steps, the step that is being told, and the last that was. */
  #isGraph = false;
  readonly #visits = new Set<number>();
  readonly #steps = new Set<number>();
  #teller = 0;
  #answer = "";

  /** Returns the text that an update adds; empty when it adds none. */
  take(update: Update): string {
    if (update.type === "discarded") {
      if (this.#tells(update.step)) {
        this.#forget();
      }
    } else if (update.type === "delta") {
      const { kind, part, step } = update.delta;
      if (kind.case === "text" && this.#begins(step)) {
        this.#said.set(part, (this.#said.get(part) ?? "") + kind.value);
        return kind.value;
      }
    } else {
      return this.#told(update.event);
    }
    return "";
  }

  #told({ payload }: Event): string {
    switch (payload.case) {
      case "modelCompleted":
        return this.#begins(payload.value.step) ? this.#rest(payload.value.message?.parts ?? []) : "";
      case "nodeStarted":
        if (payload.value.operator === ANSWER && payload.value.scope === 0) {
          this.#visits.add(payload.value.visit);
        }
        break;
      case "contextBuilt":
        this.#isGraph ||= payload.value.visit !== 0;
        if (this.#visits.has(payload.value.visit)) {
          this.#steps.add(payload.value.step);
        }
        break;
      case "runCompleted": {
        const output = payload.value.output?.text ?? "";
        return this.#isGraph && output.trim() !== this.#answer.trim() ? output : "";
      }
    }
    return "";
  }

  /** Whether the text of a step is what is being told. */
  #tells(step: number): boolean {
    return !this.#isGraph || step === this.#teller;
  }

  /** Whether a step is the one that is told, or becomes it. */
  #begins(step: number): boolean {
    if (this.#teller === 0 && this.#steps.has(step)) {
      this.#teller = step;
    }
    return this.#tells(step);
  }

  #rest(parts: readonly Part[]): string {
    let rest = "";
    let whole = "";
    for (const [number, { kind }] of parts.entries()) {
      if (kind.case === "text") {
        const said = this.#said.get(number) ?? "";
        whole += kind.value.text;
        rest += kind.value.text.startsWith(said) ? kind.value.text.slice(said.length) : kind.value.text;
      }
    }
    this.#answer = whole;
    this.#forget();
    return rest;
  }

  #forget(): void {
    this.#said.clear();
    this.#teller = 0;
  }
}

/** Takes back what a step has shown. */
function* discarded(number: number, step: Step): Generator<Update> {
  if (step.growths.size > 0) {
    step.growths.clear();
    yield { type: "discarded", step: number, attempt: step.attempt };
  }
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
