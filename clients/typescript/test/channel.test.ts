/** A token leaves this machine over TLS only. S3 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { openChannel } from "#dist/channel.js";

for (const address of ["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/run/behestd.sock"]) {
  test(`a token is sent to ${address} in the clear`, () => {
    openChannel(address, { token: "secret" }).close();
  });
}

for (const address of ["192.0.2.1:1", "example.com:1", "127.0.0.1.example.com:1", "[2001:db8::1]:1"]) {
  test(`a token is sent to ${address} over TLS only`, () => {
    assert.throws(() => openChannel(address, { token: "secret" }), RangeError);
    openChannel(address, { token: "secret", tls: {} }).close();
  });
}
