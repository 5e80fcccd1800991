/**
 * Keeps a tool server attached to a daemon, over as many streams as it takes.
 *
 * Above: `tools`. Below: `link`, one stream. Guarantees: a stream that breaks is opened again, with full jitter between
 * attempts, for as long as the server lives; each new one first reports every key that the server holds, so that the
 * daemon joins what runs and takes what is done; only a refusal that no repeat can change ends it.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import { type Upload, uploading } from "./artifacts.js";
import { Backoff } from "./calls.js";
import type { Catalog } from "./catalog.js";
import { openChannel, type Security } from "./channel.js";
import type { Log } from "./context.js";
import { type BehestError, brokenStream, ClientClosedError, fromRpc } from "./errors.js";
import { ArtifactService } from "./gen/behest/v1/artifact_service_pb.js";
import { type AttachHello, AttachHelloSchema, RegistryService } from "./gen/behest/v1/registry_service_pb.js";
import { Link, Owed } from "./link.js";
import { duration } from "./order.js";
import type { Calls } from "./tool_calls.js";

const PAUSE_SECONDS = 5;
// How long the first attempts go on while the daemon cannot be reached.
const FIRST_SECONDS = 10;

/** How a server attaches. */
export interface AttachOptions extends Security {
  /** Most calls that it takes at once. Left out: as many as the daemon allows. */
  readonly maxConcurrentCalls?: number;
}

interface Target extends AttachOptions {
  readonly name: string;
  readonly log: Log;
}

/** The attachment of one server to one daemon. Made by `ToolServer.attach`. */
export class Attachment {
  /** Resolves when the daemon has taken the server for the first time; rejects with BehestError when it does not. */
  readonly welcome: Promise<void>;
  /** Resolves when the attachment is over; rejects with BehestError when the daemon ended it for good. */
  readonly ended: Promise<void>;
  readonly #catalog: Catalog;
  readonly #calls: Calls;
  readonly #target: Target;
  readonly #closing = new AbortController();
  readonly #owed = new Owed();
  #leaseId = "";
  #isFinished = false;
  #link: Link | undefined;

  constructor(catalog: Catalog, calls: Calls, address: string, target: Target) {
    this.#catalog = catalog;
    this.#calls = calls;
    this.#target = target;
    let welcomed = () => {};
    const first = new Promise<void>((resolve) => {
      welcomed = resolve;
    });
    this.ended = this.#run(address, () => welcomed());
    this.welcome = Promise.race([first, this.ended]);
    // Whoever awaits them is told; nobody has to.
    this.ended.catch(() => undefined);
    this.welcome.catch(() => undefined);
  }

  /** Whether a stream is open now on which the daemon has taken the server. */
  get isAttached(): boolean {
    return this.#link?.isWelcome ?? false;
  }

  /** Takes no more calls, finishes those that run within the grace and gives their results, and ends. */
  async close(graceSeconds = 0): Promise<void> {
    const over = new AbortController();
    const grace = sleep(graceSeconds * 1e3, undefined, { signal: over.signal }).catch(() => undefined);
    if (graceSeconds > 0) {
      this.#link?.drain();
      await Promise.race([this.#finished().catch(() => undefined), grace]);
    }
    over.abort();
    this.#closing.abort();
    await this.ended.catch(() => undefined);
  }

  async #finished(): Promise<void> {
    await this.#owed.none();
    this.#isFinished = true;
    if (this.#link !== undefined) {
      this.#link.finish();
      await this.ended;
    }
  }

  /** Attaches, and attaches again, until closed or refused. */
  async #run(address: string, welcomed: () => void): Promise<void> {
    const backoff = new Backoff(PAUSE_SECONDS);
    const channel = openChannel(address, this.#target);
    const upload = uploading(createClient(ArtifactService, channel.transport));
    try {
      for (;;) {
        const error = await this.#attach(createClient(RegistryService, channel.transport), upload, backoff, welcomed);
        if (this.#closing.signal.aborted || this.#isFinished) {
          return;
        }
        if (!error.isResumable) {
          throw error;
        }
        await backoff.pause(error, this.#leaseId ? Infinity : FIRST_SECONDS, this.#closing.signal);
      }
    } catch (error) {
      if (!(error instanceof ClientClosedError)) {
        this.#target.log(`server ${this.#target.name} is not attached any more`, error);
        throw error;
      }
    } finally {
      channel.close();
    }
  }

  /** Serves over one stream, and returns why it ended. */
  async #attach(
    stub: ReturnType<typeof createClient<typeof RegistryService>>,
    upload: Upload,
    backoff: Backoff,
    welcomed: () => void,
  ): Promise<BehestError> {
    const link = new Link(this.#calls, this.#owed, upload, (welcome) => {
      this.#leaseId = welcome.leaseId;
      backoff.heard(true);
      welcomed();
    });
    const onClosing = () => link.abort();
    this.#closing.signal.addEventListener("abort", onClosing);
    this.#link = link;
    try {
      const hello = await this.#hello();
      await link.serve(hello, (requests, signal) => stub.attachServer(requests, { signal }));
      return brokenStream("the daemon ended the stream");
    } catch (error) {
      return link.isDead ? brokenStream("the daemon fell silent") : fromRpc(error);
    } finally {
      this.#link = undefined;
      this.#closing.signal.removeEventListener("abort", onClosing);
    }
  }

  async #hello(): Promise<AttachHello> {
    const { dedupe } = this.#calls;
    const hello = create(AttachHelloSchema, {
      serverName: this.#target.name,
      tools: this.#catalog.tools,
      maxConcurrentCalls: this.#target.maxConcurrentCalls ?? 0,
      held: (await this.#calls.held()).map(({ key, isDone }) => ({ idempotencyKey: key, isDone })),
      leaseId: this.#leaseId,
      takesChunkedArguments: true,
    });
    if (dedupe.isDurable) {
      hello.dedupeRetention = duration(dedupe.retentionSeconds);
    }
    return hello;
  }
}
