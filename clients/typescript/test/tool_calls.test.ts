import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import type { Context } from "#dist/context.js";
import { MemoryDedupe } from "#dist/dedupe.js";
import { SideEffect, ToolSchema } from "#dist/gen/behest/v1/tool_pb.js";
import { type CallToolRequest, CallToolRequestSchema } from "#dist/gen/behest/v1/tool_service_pb.js";
import { Refused, Running } from "#dist/running.js";
import { Calls } from "#dist/tool_calls.js";

/** Promises what a file would, for as long as a test lasts. */
class Durable extends MemoryDedupe {
  override readonly isDurable: boolean = true;
}

/** The calls of a server with one tool, which waits until it is let go on. */
function scene() {
  let began = 0;
  let goOn = () => {};
  const gate = new Promise<void>((resolve) => {
    goOn = resolve;
  });
  const run = async () => {
    began += 1;
    await gate;
    return "done";
  };
  const store = new Durable();
  const registered = { tool: create(ToolSchema, { name: "t" }), read: () => ({}), run };
  const calls = new Calls(
    store,
    () => registered,
    () => {},
  );
  return { calls, store, goOn, began: () => began };
}

function call(attempt = 1, epoch = 1n): CallToolRequest {
  return create(CallToolRequestSchema, { toolName: "t", idempotencyKey: "key", epoch, attempt });
}

async function outcome(running: Running): Promise<Running["outcome"]> {
  const forever = new AbortController();
  while (running.outcome === undefined) {
    await running.change(forever.signal);
  }
  return running.outcome;
}

test("a call that comes while its key is being buried is not executed", async () => {
  const { calls, began } = scene();
  const asked = calls.status("key", 1n, 1, 0);
  const running = calls.join(call());
  const entry = await asked;
  assert.ok(!(entry instanceof Running) && entry?.state === "buried");
  const refused = await outcome(running);
  assert.ok(refused instanceof Refused && refused.isProof && refused.reason === "TOOL_START_EXPIRED");
  assert.equal(began(), 0);
});

test("a key whose call has just come is not buried", async () => {
  const { calls, goOn, began } = scene();
  const running = calls.join(call());
  assert.equal(await calls.status("key", 1n, 1, 0), running);
  goOn();
  assert.ok(!((await outcome(running)) instanceof Refused));
  const entry = await calls.status("key", 1n, 1, 0);
  assert.ok(!(entry instanceof Running) && entry?.state === "done");
  assert.equal(began(), 1);
});

test("several who ask at once bury a key once, for the latest attempt", async () => {
  const { calls, store } = scene();
  await Promise.all([calls.status("key", 2n, 3, 0), calls.status("key", 1n, 9, 0), calls.status("key", 2n, 1, 0)]);
  const entry = await store.find("key");
  assert.deepEqual([entry?.epoch, entry?.attempt], [2n, 3]);
});

test("a call that is let go of stays as begun", async () => {
  const { calls, store, goOn } = scene();
  const running = calls.join(call());
  while ((await store.find("key")) === undefined) {
    await new Promise(setImmediate);
  }
  calls.stop();
  goOn();
  const refused = await outcome(running);
  assert.ok(refused instanceof Refused && !refused.isProof);
  await new Promise(setImmediate);
  assert.equal((await store.find("key"))?.state, "running");
});

test("a call that was cut short is executed again if it may be", async () => {
  const cases: [SideEffect, number][] = [
    [SideEffect.PURE, 2],
    [SideEffect.IDEMPOTENT, 2],
    [SideEffect.NON_IDEMPOTENT, 1],
    [SideEffect.UNSPECIFIED, 1],
  ];
  for (const [sideEffect, executed] of cases) {
    for (const claims of [true, false]) {
      let began = 0;
      const run = async (_: never, { signal }: Context) => {
        began += 1;
        if (began === 1) {
          await once(signal, "abort");
          throw signal.reason;
        }
        return "done";
      };
      const hints = claims ? { sideEffect } : undefined;
      const registered = { tool: create(ToolSchema, { name: "t", hints }), read: () => ({}), run };
      const calls = new Calls(
        new Durable(),
        () => registered,
        () => {},
      );
      const request = { ...call(), sideEffect: claims ? SideEffect.UNSPECIFIED : sideEffect };
      const first = calls.join(request);
      while (began === 0) {
        await new Promise(setImmediate);
      }
      assert.ok(calls.cancelKey("key", 1n));
      const cut = await outcome(first);
      assert.ok(!(cut instanceof Refused) && cut?.isError);
      const again = await outcome(calls.join({ ...request, attempt: 2 }));
      assert.ok(!(again instanceof Refused));
      assert.deepEqual([began, again?.isError], [executed, executed === 1]);
    }
  }
});

test("a server that drains begins nothing, and still gives results", async () => {
  const { calls, goOn } = scene();
  const running = calls.join(call());
  goOn();
  const result = await outcome(running);
  calls.drain();
  assert.deepEqual(await outcome(calls.join(call(2))), result);
  const refused = await outcome(calls.join(create(CallToolRequestSchema, { toolName: "t", idempotencyKey: "other" })));
  assert.ok(refused instanceof Refused && refused.isProof && refused.reason === "RUNTIME_DRAINING");
});

test("keys are reported as held until the daemon has their results", async () => {
  const { calls, goOn } = scene();
  const running = calls.join(call());
  assert.deepEqual(await calls.held(), [{ key: "key", isDone: false }]);
  goOn();
  await outcome(running);
  assert.deepEqual(await calls.held(), [{ key: "key", isDone: true }]);
  calls.taken("key");
  assert.deepEqual(await calls.held(), []);
});
