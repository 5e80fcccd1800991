/** What is sent on a stream, in order. Above: `link`. The transport pulls; a sender waits until its frame was taken. */

interface Letter<T> {
  readonly frame: T;
  readonly taken: (isTaken: boolean) => void;
}

/** An outgoing stream of frames. Ended or broken, it takes nothing any more, and tells senders so. */
export class Outbox<T> implements AsyncIterable<T> {
  readonly #letters: Letter<T>[] = [];
  #wake: () => void = () => {};
  #isEnded = false;

  /** Sends a frame; resolves to whether the transport took it. */
  async send(frame: T): Promise<boolean> {
    if (this.#isEnded) {
      return false;
    }
    return new Promise<boolean>((taken) => {
      this.#letters.push({ frame, taken });
      this.#wake();
    });
  }

  /** Ends the stream after what is in it. */
  end(): void {
    this.#isEnded = true;
    this.#wake();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    try {
      for (;;) {
        const letter = this.#letters.shift();
        if (letter !== undefined) {
          let isTaken = false;
          try {
            yield letter.frame;
            isTaken = true;
          } finally {
            letter.taken(isTaken);
          }
        } else if (this.#isEnded) {
          return;
        } else {
          await new Promise<void>((resolve) => {
            this.#wake = resolve;
          });
        }
      }
    } finally {
      this.break();
    }
  }

  /** Ends the stream at once: what is in it was not taken. */
  break(): void {
    this.#isEnded = true;
    for (const { taken } of this.#letters.splice(0)) {
      taken(false);
    }
    this.#wake();
  }
}
