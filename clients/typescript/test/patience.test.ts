import assert from "node:assert/strict";
import { test } from "node:test";

import { Code } from "@connectrpc/connect";
import { Backoff } from "#dist/calls.js";
import { BehestError } from "#dist/errors.js";

test("a daemon that drains was heard, and is waited for", async () => {
  const draining = new BehestError(Code.Unavailable, "RUNTIME_DRAINING", "", { retrySeconds: 1 });
  const backoff = new Backoff(0.005);
  for (const end = performance.now() + 200; performance.now() < end; ) {
    await backoff.pause(draining, 0.05);
  }
  const gone = new BehestError(Code.Unavailable, "TRANSPORT_UNAVAILABLE", "");
  await assert.rejects(async () => {
    for (;;) {
      await backoff.pause(gone, 0.05);
    }
  }, gone);
});
