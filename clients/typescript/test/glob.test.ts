import assert from "node:assert/strict";
import { test } from "node:test";
import { matches } from "#dist/glob.js";

for (const [glob, name, isMatch] of [
  ["*", "anything", true],
  ["files_*", "files_read", true],
  ["files_*", "file_read", false],
  ["*_r?ad", "files_read", true],
  ["[a-c]1", "b1", true],
  ["[!a-c]1", "b1", false],
  ["a*b*c", "aXbYbZc", true],
  ["a*b*c", "aXbYbZ", false],
  ["", "", true],
  ["a[", "a[", true],
] as const) {
  test(`${glob} ${isMatch ? "matches" : "does not match"} ${name}`, () => {
    assert.equal(matches(glob, name), isMatch);
  });
}

test("many stars take no time that matters", () => {
  assert.equal(matches(`${"a*".repeat(30)}b`, "a".repeat(64)), false);
});
