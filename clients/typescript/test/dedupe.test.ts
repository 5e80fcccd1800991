import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { type Dedupe, type Entry, MemoryDedupe, SqliteDedupe } from "#dist/dedupe.js";

const entry = (state: Entry["state"], epoch = 1n): Entry => ({
  state,
  epoch,
  attempt: 0,
  digest: "d",
  result: new Uint8Array([0, 255]),
});

async function inFolder(work: (path: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "behest-dedupe-"));
  try {
    await work(join(folder, "calls.sqlite3"));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function remembers(store: Dedupe): Promise<void> {
  assert.equal(await store.find("a"), undefined);
  await store.put("a", entry("running"));
  await Promise.all([store.put("b", entry("buried")), store.put("a", entry("done", 2n ** 64n - 1n))]);
  await store.put("c", entry("running"));
  const found = await store.find("a");
  assert.deepEqual(
    { ...found, result: [...(found?.result ?? [])] },
    { ...entry("done", 2n ** 64n - 1n), result: [0, 255] },
  );
  const held = (await store.held(10)).sort((one, other) => one.key.localeCompare(other.key));
  assert.deepEqual(held, [
    { key: "a", isDone: true },
    { key: "c", isDone: false },
  ]);
  assert.equal((await store.held(1)).length, 1);
}

test("memory remembers until it is closed", async () => {
  const store = new MemoryDedupe();
  await remembers(store);
  await store.close();
  assert.equal(await store.find("a"), undefined);
  assert.equal(store.isDurable, false);
});

test("memory forgets after the retention", async () => {
  let now = 0;
  const store = new MemoryDedupe(1, () => now);
  await store.put("a", entry("done"));
  now = 1_001;
  assert.equal(await store.find("a"), undefined);
});

test("a file remembers over restarts", async () => {
  await inFolder(async (path) => {
    const first = new SqliteDedupe(path);
    await remembers(first);
    await first.close();
    await assert.rejects(first.find("a"));
    const second = new SqliteDedupe(path);
    assert.equal((await second.find("a"))?.state, "done");
    await second.close();
  });
});

test("a file that cannot be opened is told at each use", async () => {
  const store = new SqliteDedupe("/nowhere/at/all");
  await assert.rejects(store.find("a"));
  await assert.rejects(store.put("a", entry("done")));
  await store.close();
});
