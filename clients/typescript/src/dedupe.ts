/**
 * What a tool server remembers of its calls, so that a key is executed once.
 *
 * Above: `tool_calls`. `MemoryDedupe` forgets everything when the process ends, and says so: it answers for the keys that
 * it knows, and never promises that an unknown one was not executed. `SqliteDedupe` keeps its word over restarts: each
 * change is on the disk before it is acted on. Entries live for the retention, counted from their last change.
 */

import { Worker } from "node:worker_threads";
import type { Answer, Question } from "./dedupe_worker.js";

export const RETENTION_SECONDS = 72 * 3600;
const MAX_ENTRIES = 100_000;

/** What is remembered of a key. */
export interface Entry {
  /**
   * "running": it was begun; of a call that this process does not run, nobody knows how far it came. "done": it has a
   * result. "buried": it was never begun, and must not be with the entry's epoch and attempt or earlier ones.
   */
  readonly state: "running" | "done" | "buried";
  readonly epoch: bigint;
  /** Of a buried key: the last attempt of its epoch that is refused; 0 refuses all of them. */
  readonly attempt: number;
  /** Tells one request from another. */
  readonly digest: string;
  /** The encoded result of a key that is done. */
  readonly result: Uint8Array;
}

/** A key that is remembered as begun or done. */
export interface Held {
  readonly key: string;
  readonly isDone: boolean;
}

/** Remembers calls by key. One server uses it at a time. */
export interface Dedupe {
  /** Whether a key that is not here was never executed within the retention. */
  readonly isDurable: boolean;
  readonly retentionSeconds: number;
  /** What is known of a key. */
  find(key: string): Promise<Entry | undefined>;
  /** Remembers. When it resolves, the entry outlives the process, if the store is durable. */
  put(key: string, entry: Entry): Promise<void>;
  /** The keys that were begun or done, the latest first, at most `limit`. */
  held(limit: number): Promise<Held[]>;
  /** Lets go of files and threads. */
  close(): Promise<void>;
}

/** Remembers at most 100,000 calls for the retention, and nothing beyond the process. */
export class MemoryDedupe implements Dedupe {
  readonly isDurable: boolean = false;
  readonly retentionSeconds: number;
  readonly #now: () => number;
  readonly #entries = new Map<string, { readonly changed: number; readonly entry: Entry }>();

  /** `now` tells the time in milliseconds. */
  constructor(retentionSeconds = RETENTION_SECONDS, now: () => number = Date.now) {
    this.retentionSeconds = retentionSeconds;
    this.#now = now;
  }

  async find(key: string): Promise<Entry | undefined> {
    this.#forget();
    return this.#entries.get(key)?.entry;
  }

  async put(key: string, entry: Entry): Promise<void> {
    this.#entries.delete(key);
    this.#entries.set(key, { changed: this.#now(), entry });
    this.#forget();
  }

  async held(limit: number): Promise<Held[]> {
    this.#forget();
    return [...this.#entries]
      .filter(([, { entry }]) => entry.state !== "buried")
      .slice(-limit)
      .reverse()
      .map(([key, { entry }]) => ({ key, isDone: entry.state === "done" }));
  }

  async close(): Promise<void> {
    this.#entries.clear();
  }

  /** Entries stand in the order of their changes, so the oldest come first. */
  #forget(): void {
    const oldest = this.#now() - this.retentionSeconds * 1e3;
    for (const [key, { changed }] of this.#entries) {
      if (changed >= oldest && this.#entries.size <= MAX_ENTRIES) {
        break;
      }
      this.#entries.delete(key);
    }
  }
}

/** Remembers calls in an SQLite file, by one thread; what waits together is synced to the disk together. */
export class SqliteDedupe implements Dedupe {
  readonly isDurable: boolean = true;
  readonly retentionSeconds: number;
  readonly #worker: Worker;
  readonly #waiting = new Map<number, (answer: Answer) => void>();
  #count = 0;
  #failure: Error | undefined;

  /** Opens or makes the file. When that fails, every use throws why. */
  constructor(path: string, retentionSeconds = RETENTION_SECONDS) {
    this.retentionSeconds = retentionSeconds;
    this.#worker = new Worker(new URL("./dedupe_worker.js", import.meta.url), {
      workerData: { path, retentionSeconds },
    });
    this.#worker.on("message", (answers: Answer[]) => {
      for (const answer of answers) {
        this.#waiting.get(answer.id)?.(answer);
        this.#waiting.delete(answer.id);
      }
    });
    this.#worker.on("error", (error) => this.#fail(error));
    this.#worker.on("exit", () => this.#fail(new Error("the dedupe store is closed")));
    // It lives as long as the server that uses it, and keeps no process alive by itself.
    this.#worker.unref();
  }

  async find(key: string): Promise<Entry | undefined> {
    return (await this.#ask({ kind: "find", key })).entry;
  }

  async put(key: string, entry: Entry): Promise<void> {
    await this.#ask({ kind: "put", key, entry });
  }

  async held(limit: number): Promise<Held[]> {
    return (await this.#ask({ kind: "held", limit })).held ?? [];
  }

  async close(): Promise<void> {
    if (this.#failure === undefined) {
      await this.#ask({ kind: "close" });
      await this.#worker.terminate();
    }
  }

  async #ask(question: Question["what"]): Promise<Answer> {
    if (this.#failure !== undefined) {
      throw this.#failure;
    }
    const id = ++this.#count;
    this.#worker.ref();
    const answer = await new Promise<Answer>((resolve) => {
      this.#waiting.set(id, resolve);
      this.#worker.postMessage({ id, what: question } satisfies Question);
    });
    if (this.#waiting.size === 0) {
      this.#worker.unref();
    }
    if (answer.error !== undefined) {
      throw new Error(answer.error);
    }
    return answer;
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    for (const [id, resolve] of this.#waiting) {
      resolve({ id, error: this.#failure.message });
    }
    this.#waiting.clear();
  }
}
