/**
 * Artifacts that tools make: what is too large for a result, sent to the daemon in chunks.
 *
 * Above: `context`, which names them, and `attached`, whose connection they take. An upload that is reported is whole and
 * durable, since the daemon checks size and hash before it answers; one that broke off is sent again.
 */

import { createHash } from "node:crypto";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type Client, Code } from "@connectrpc/connect";
import { Backoff } from "./calls.js";
import { BehestError, fromRpc } from "./errors.js";
import type { Artifact } from "./gen/behest/v1/artifact_pb.js";
import {
  type ArtifactService,
  type WriteArtifactHeaderSchema,
  type WriteArtifactRequest,
  WriteArtifactRequestSchema,
} from "./gen/behest/v1/artifact_service_pb.js";

const CHUNK_BYTES = 512 * 1024;
const PAUSE_SECONDS = 5;
/** How long a daemon that cannot be reached is waited for. */
const PATIENCE_SECONDS = 60;

/** Whose artifact it is, and how it is called. */
export type Header = MessageInitShape<typeof WriteArtifactHeaderSchema>;

/** Stores content as an artifact, and returns it once it is safe. Throws BehestError. */
export type Upload = (content: Uint8Array, header: Header, signal: AbortSignal) => Promise<Artifact>;

/** Uploads over a connection to a daemon. */
export function uploading(stub: Client<typeof ArtifactService>): Upload {
  return async (content, header, signal) => {
    const sha256 = digestOf(content);
    const whole: Header = { ...header, sizeBytes: BigInt(content.length), sha256 };
    const backoff = new Backoff(PAUSE_SECONDS);
    for (;;) {
      try {
        const { artifact } = await stub.writeArtifact(frames(whole, content), { signal });
        if (artifact === undefined) {
          throw new BehestError(Code.Internal, "", "the daemon named no artifact");
        }
        return artifact;
      } catch (error) {
        const failed = fromRpc(error);
        if (!failed.isResumable) {
          throw failed;
        }
        await backoff.pause(failed, PATIENCE_SECONDS, signal);
      }
    }
  };
}

/** The SHA-256 of texts and bytes, one after the other. */
export function digestOf(...pieces: (string | Uint8Array)[]): Uint8Array<ArrayBuffer> {
  const digest = createHash("sha256");
  for (const piece of pieces) {
    digest.update(piece);
  }
  return new Uint8Array(digest.digest());
}

async function* frames(header: Header, content: Uint8Array): AsyncGenerator<WriteArtifactRequest, void, undefined> {
  yield create(WriteArtifactRequestSchema, { frame: { case: "header", value: header } });
  for (let start = 0; start < content.length; start += CHUNK_BYTES) {
    const chunk = content.slice(start, start + CHUNK_BYTES);
    yield create(WriteArtifactRequestSchema, { frame: { case: "chunk", value: chunk } });
  }
}
