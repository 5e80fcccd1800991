/**
 * The thread that owns the SQLite file of a dedupe store, so that a sync to the disk stops no call.
 *
 * Above: `dedupe`. Questions are answered in order; those that wait together are one transaction, and are answered once
 * it is on the disk.
 */

import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { DatabaseSync } from "@photostructure/sqlite";
import type { Entry, Held } from "./dedupe.js";

/** What the store is asked. */
export interface Question {
  readonly id: number;
  readonly what:
    | { readonly kind: "find"; readonly key: string }
    | { readonly kind: "put"; readonly key: string; readonly entry: Entry }
    | { readonly kind: "held"; readonly limit: number }
    | { readonly kind: "close" };
}

/** What it answers. */
export interface Answer {
  readonly id: number;
  readonly entry?: Entry | undefined;
  readonly held?: Held[];
  readonly error?: string;
}

interface Row {
  readonly state: Entry["state"];
  readonly epoch: string;
  readonly attempt: number;
  readonly digest: string;
  readonly result: Uint8Array;
}

/** The file. Times are milliseconds since 1970. */
class Store {
  readonly #retentionMs: number;
  readonly #database: InstanceType<typeof DatabaseSync>;

  constructor(path: string, retentionSeconds: number) {
    this.#retentionMs = retentionSeconds * 1e3;
    this.#database = new DatabaseSync(path);
    this.#database.exec("PRAGMA busy_timeout = 5000");
    this.#database.exec("PRAGMA journal_mode = WAL");
    this.#database.exec("PRAGMA synchronous = FULL");
    // An epoch is an unsigned number of 64 bits, which SQLite has not.
    this.#database.exec(
      "CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, state TEXT NOT NULL, epoch TEXT NOT NULL," +
        " attempt INTEGER NOT NULL, digest TEXT NOT NULL, result BLOB NOT NULL, change_time INTEGER NOT NULL)",
    );
    this.#database.exec("CREATE INDEX IF NOT EXISTS calls_by_time ON calls (change_time)");
  }

  /** Answers all questions in one transaction. */
  answer(questions: readonly Question[]): Answer[] {
    this.#database.exec("BEGIN IMMEDIATE");
    try {
      const oldest = Date.now() - this.#retentionMs;
      this.#database.prepare("DELETE FROM calls WHERE change_time < ?").run(oldest);
      const answers = questions.map((question) => this.#answer(question));
      this.#database.exec("COMMIT");
      return answers;
    } catch (error) {
      if (this.#database.isTransaction) {
        this.#database.exec("ROLLBACK");
      }
      return questions.map(({ id }) => ({ id, error: String(error) }));
    }
  }

  close(): void {
    this.#database.close();
  }

  #answer({ id, what }: Question): Answer {
    switch (what.kind) {
      case "find":
        return { id, entry: this.#find(what.key) };
      case "put":
        this.#put(what.key, what.entry);
        return { id };
      case "held":
        return { id, held: this.#held(what.limit) };
      case "close":
        return { id };
    }
  }

  #find(key: string): Entry | undefined {
    const found = this.#database
      .prepare("SELECT state, epoch, attempt, digest, result FROM calls WHERE key = ?")
      .get(key) as Row | undefined;
    return found && { ...found, epoch: BigInt(found.epoch) };
  }

  #put(key: string, { state, epoch, attempt, digest, result }: Entry): void {
    this.#database
      .prepare("INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?)")
      .run(key, state, String(epoch), attempt, digest, result, Date.now());
  }

  #held(limit: number): Held[] {
    const rows = this.#database
      .prepare("SELECT key, state FROM calls WHERE state <> 'buried' ORDER BY change_time DESC LIMIT ?")
      .all(limit) as unknown as { key: string; state: Entry["state"] }[];
    return rows.map(({ key, state }) => ({ key, isDone: state === "done" }));
  }
}

function serve(port: MessagePort, store: Store): void {
  port.on("message", (first: Question) => {
    const questions = [first];
    for (let next = receiveMessageOnPort(port); next !== undefined; next = receiveMessageOnPort(port)) {
      questions.push(next.message);
    }
    const answers = store.answer(questions);
    if (questions.some(({ what }) => what.kind === "close")) {
      store.close();
    }
    port.postMessage(answers);
  });
}

if (parentPort !== null) {
  serve(parentPort, new Store(workerData.path, workerData.retentionSeconds));
}
