import assert from "node:assert/strict";
import { test } from "node:test";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { WatchOrderError } from "#dist/errors.js";
import { DeltaSchema } from "#dist/gen/behest/v1/delta_pb.js";
import { EventSchema } from "#dist/gen/behest/v1/event_pb.js";
import { Follower, type Frame, Speech, type Update } from "#dist/updates.js";

type Payload = NonNullable<MessageInitShape<typeof EventSchema>["payload"]>;

const requested = (attempt: number): Payload => ({ case: "modelRequested", value: { step: 1, attempt } });
const completed = (text: string): Payload => ({
  case: "modelCompleted",
  value: { step: 1, attempt: 1, message: { parts: [{ kind: { case: "text", value: { text } } }] } },
});

function events(first: number, ...payloads: Payload[]): Frame {
  const made = payloads.map((payload, place) => ({ runId: "run", sequence: BigInt(first + place), payload }));
  return { events: made.map((event) => create(EventSchema, event)), deltas: [] };
}

function texts(attempt: number, ...pieces: string[]): Frame {
  const deltas = pieces.map((value, index) => ({
    step: 1,
    attempt,
    index: BigInt(index),
    kind: { case: "text", value },
  }));
  return {
    events: [],
    deltas: deltas.map((delta) => create(DeltaSchema, delta as MessageInitShape<typeof DeltaSchema>)),
  };
}

/** What a follower tells of frames, in short. */
function told(follower: Follower, ...frames: Frame[]): string[] {
  return frames.flatMap((frame) => [...follower.apply(frame)].map(short));
}

function short(update: Update): string {
  switch (update.type) {
    case "event":
      return `${update.event.sequence}`;
    case "delta":
      return String(update.delta.kind.value);
    case "discarded":
      return `discarded ${update.step}.${update.attempt}`;
  }
}

test("events are told in order, each once", () => {
  assert.deepEqual(told(new Follower("", 0n), events(1, requested(1)), events(2, completed("x"))), ["1", "2"]);
});

for (const [what, first] of [
  ["gap", 3],
  ["repeat", 1],
] as const) {
  test(`a ${what} is an error`, () => {
    const follower = new Follower("run", 0n);
    told(follower, events(1, requested(1)));
    assert.throws(() => told(follower, events(first, requested(1))), WatchOrderError);
  });
}

test("an event after the terminal one is an error", () => {
  const follower = new Follower("run", 0n);
  told(follower, events(1, { case: "runCompleted", value: {} }));
  assert.throws(() => told(follower, events(2, requested(1))), WatchOrderError);
});

test("a new stream repeats the open step, and nothing is told twice", () => {
  const follower = new Follower("run", 0n);
  assert.deepEqual(told(follower, events(1, requested(1)), texts(1, "he", "llo")), ["1", "he", "llo"]);
  follower.reopened();
  assert.deepEqual(told(follower, texts(1, "hell", "o wor", "ld")), [" wor", "ld"]);
  follower.reopened();
  assert.deepEqual(told(follower, texts(1, "hello")), []);
  follower.reopened();
  assert.deepEqual(told(follower, texts(1, "hello world!")), ["!"]);
});

test("deltas of an attempt that is given up are taken back before those of the next", () => {
  const follower = new Follower("run", 0n);
  assert.deepEqual(told(follower, events(1, requested(1)), texts(1, "a"), texts(2, "b")), [
    "1",
    "a",
    "discarded 1.1",
    "b",
  ]);
  assert.deepEqual(told(follower, texts(1, "late")), []);
});

test("another text than the one held takes the held one back", () => {
  const follower = new Follower("run", 0n);
  told(follower, events(1, requested(1)), texts(1, "one"));
  follower.reopened();
  assert.deepEqual(told(follower, texts(1, "two")), ["discarded 1.1", "two"]);
});

/** A frame of text deltas of a step. */
function ofStep(step: number, ...pieces: string[]): Frame {
  const { deltas } = texts(1, ...pieces);
  return { events: [], deltas: deltas.map((delta) => create(DeltaSchema, { ...delta, step })) };
}

const built = (step: number): Payload => ({ case: "contextBuilt", value: { step, visit: step } });
const asked = (step: number): Payload => ({ case: "modelRequested", value: { step, attempt: 1 } });

test("steps side by side are told each to its end", () => {
  const follower = new Follower("run", 0n);
  told(follower, events(1, built(1), built(2), asked(1), asked(2)));
  assert.deepEqual(told(follower, ofStep(2, "b"), ofStep(1, "a"), ofStep(2, "bb")), ["b", "a", "bb"]);
  const stopped: Payload = { case: "nodeSkipped", value: { visit: 2, node: "b" } };
  assert.deepEqual(told(follower, events(5, stopped), ofStep(2, "late"), ofStep(1, "aa")), [
    "discarded 2.1",
    "5",
    "aa",
  ]);
});

test("the text of a graph is that of the node which answers", () => {
  const started = (visit: number, operator: string): Payload => ({
    case: "nodeStarted",
    value: { visit, node: operator, operator },
  });
  const answered: Payload = {
    case: "modelCompleted",
    value: { step: 2, attempt: 1, message: { parts: [{ kind: { case: "text", value: { text: "four" } } }] } },
  };
  const follower = new Follower("run", 0n);
  const speech = new Speech();
  let said = "";
  for (const frame of [
    events(1, started(1, "solve"), started(2, "answer"), built(1), built(2)),
    ofStep(1, "no"),
    ofStep(2, "fo"),
    events(5, completed("nothing"), answered, { case: "runCompleted", value: { output: { text: "four" } } }),
  ]) {
    for (const update of follower.apply(frame)) {
      said += speech.take(update);
    }
  }
  assert.equal(said, "four");
});

test("speech is made whole by the committed message", () => {
  const follower = new Follower("run", 0n);
  const speech = new Speech();
  let said = "";
  for (const frame of [events(1, requested(1)), texts(1, "he"), events(2, completed("hello"))]) {
    for (const update of follower.apply(frame)) {
      said += speech.take(update);
    }
  }
  assert.equal(said, "hello");
});
