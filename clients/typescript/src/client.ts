/**
 * The client of a daemon.
 *
 *     const client = new Client("127.0.0.1:7717");
 *     const run = client.stream("say hello");
 *     for await (const piece of run.text()) process.stdout.write(piece);
 *     console.log(await run.result());
 *     client.close();
 *
 * Above: programs. Below: one connection, the stubs, and `run`.
 */

import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { Calls, PATIENCE, type Patience } from "./calls.js";
import { type Channel, DEFAULT_ADDRESS, openChannel, type Security, type Stubs, stubsOn } from "./channel.js";
import { StreamRunRequestSchema } from "./gen/behest/v1/run_service_pb.js";
import { type Input, type Order, runSpec } from "./order.js";
import { Run } from "./run.js";

/** How a client connects, and how long it waits. */
export interface ClientOptions extends Security {
  readonly patience?: Partial<Patience>;
}

/**
 * A connection to a daemon, with the raw stubs as `stubs`. The address is HOST:PORT or unix:PATH; without one it is what
 * BEHEST_ADDRESS says, else 127.0.0.1:7717, and the token is what BEHEST_TOKEN says. Nothing is connected before the
 * first call. Throws RangeError for a token that would leave this machine in the clear.
 */
export class Client {
  readonly address: string;
  readonly stubs: Stubs;
  readonly #channel: Channel;
  readonly #calls: Calls;

  constructor(address?: string, { patience, ...security }: ClientOptions = {}) {
    this.address = address || process.env.BEHEST_ADDRESS || DEFAULT_ADDRESS;
    const token = security.token || (address ? "" : (process.env.BEHEST_TOKEN ?? ""));
    this.#channel = openChannel(this.address, { ...security, token });
    this.#calls = new Calls({ ...PATIENCE, ...patience });
    this.stubs = stubsOn(this.#channel.transport);
  }

  /** Closes the connection. What is still open ends with ClientClosedError. Idempotent. */
  close(): void {
    this.#calls.close();
    this.#channel.close();
  }

  /** Closes the connection at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** Orders a run that is created and followed in one call, made when the handle is first used. */
  stream(said: Input, order: Order = {}): Run {
    const request = { spec: runSpec(said, order), requestId: order.requestId || randomUUID() };
    const subject = { order: create(StreamRunRequestSchema, request), runId: "", isReplayed: false };
    return new Run(this.stubs.runs, this.#calls, subject);
  }

  /** Creates a run, and returns once it is durable. Throws BehestError when it is refused. */
  async run(said: Input, order: Order = {}): Promise<Run> {
    const run = this.stream(said, order);
    await run.create();
    return run;
  }

  /** Returns the handle of a run that exists; its events begin after the given sequence. */
  watch(runId: string, { after = 0n }: { readonly after?: bigint | number } = {}): Run {
    const subject = { order: undefined, runId, isReplayed: false };
    return new Run(this.stubs.runs, this.#calls, subject, BigInt(after));
  }
}
