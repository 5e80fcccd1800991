/**
 * A tool server that the daemon dials: ToolService over gRPC.
 *
 * Above: `tools`. Below: `tool_calls`, and Connect's adapter on Node's HTTP/2. Every method checks the token first; every
 * refusal carries a reason, and proof if there is any.
 */

import { createHash, timingSafeEqual } from "node:crypto";
import {
  createSecureServer,
  createServer,
  type Http2SecureServer,
  type Http2Server,
  type SecureServerOptions,
  type ServerHttp2Session,
} from "node:http2";
import type { AddressInfo, ListenOptions } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, type HandlerContext, type Interceptor, type ServiceImpl } from "@connectrpc/connect";
import { compressionGzip, connectNodeAdapter } from "@connectrpc/connect-node";
import { progressFrame, resultFrames, statusOf } from "./answers.js";
import type { Catalog } from "./catalog.js";
import { type CallToolRequest, type CallToolResponse, ToolService } from "./gen/behest/v1/tool_service_pb.js";
import { asError } from "./refusals.js";
import { Refused } from "./running.js";
import type { Calls } from "./tool_calls.js";

const FRAME_LIMIT_BYTES = 4 * 1024 * 1024;
/** What all streams of a connection may hold, in megabytes: Node's default is less than three frames. */
const ROOM = { maxSessionMemory: 256 };

/** A port or a socket that is listened on. */
export class Listener {
  readonly #server: Http2Server | Http2SecureServer;
  readonly #sessions = new Set<ServerHttp2Session>();

  constructor(catalog: Catalog, calls: Calls, token: string, tls: SecureServerOptions | undefined) {
    const handler = connectNodeAdapter({
      routes: (router) => router.service(ToolService, methods(catalog, calls)),
      interceptors: [refusing, ...(token ? [authorizing(token)] : [])],
      acceptCompression: [compressionGzip],
      // Between processes of one site, compressing costs more than it saves.
      compressMinBytes: FRAME_LIMIT_BYTES,
      readMaxBytes: FRAME_LIMIT_BYTES,
      writeMaxBytes: FRAME_LIMIT_BYTES,
      grpcWeb: false,
      connect: false,
    });
    this.#server = tls === undefined ? createServer(ROOM, handler) : createSecureServer({ ...ROOM, ...tls }, handler);
    this.#server.on("session", (session: ServerHttp2Session) => {
      this.#sessions.add(session);
      session.once("close", () => this.#sessions.delete(session));
      // A connection that breaks ends its streams, whose calls are told.
      session.on("error", () => {});
    });
  }

  /** Listens, and returns the port; 0 for a socket of the file system. Throws when the address cannot be taken. */
  async listen(address: string): Promise<number> {
    const server = this.#server;
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(listenOptions(address), () => {
        server.off("error", reject);
        resolve();
      });
    });
    return (server.address() as AddressInfo | null)?.port ?? 0;
  }

  /** Takes no more calls, and lets the streams of those that run end within the grace. */
  async close(graceSeconds: number): Promise<void> {
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
    for (const session of this.#sessions) {
      session.close();
    }
    const over = new AbortController();
    await Promise.race([closed, sleep(graceSeconds * 1e3, undefined, { signal: over.signal }).catch(() => undefined)]);
    over.abort();
    for (const session of this.#sessions) {
      session.destroy();
    }
    await closed;
  }
}

function methods(catalog: Catalog, calls: Calls): ServiceImpl<typeof ToolService> {
  return {
    listTools: (request) => catalog.page(request),
    getTool: (request) => ({ tool: catalog.get(request.toolName).tool }),
    callTool: (request, context) => callTool(calls, request, context),
    getCallStatus: (request) => statusOf(calls, request),
    cancelCall: ({ idempotencyKey, epoch }) => ({ acknowledged: calls.cancelKey(idempotencyKey, epoch) }),
  };
}

async function* callTool(
  calls: Calls,
  request: CallToolRequest,
  { signal, requestHeader }: HandlerContext,
): AsyncGenerator<CallToolResponse, void, undefined> {
  const running = calls.join(request, { traceparent: requestHeader.get("traceparent") ?? "" });
  try {
    for await (const sign of running.signs(signal)) {
      if (sign.type === "progress") {
        yield progressFrame(sign.progress);
      }
    }
  } finally {
    if (!running.key && running.outcome === undefined) {
      running.cancel();
    }
  }
  if (running.outcome instanceof Refused) {
    throw running.outcome;
  }
  if (running.outcome === undefined) {
    // The caller is gone, or its time is over: a stream that ended well would say otherwise.
    signal.throwIfAborted();
    return;
  }
  yield* resultFrames(running.outcome);
}

/** Turns refusals into errors of the call, also those of a stream that has begun. */
const refusing: Interceptor = (next) => async (request) => {
  try {
    const response = await next(request);
    return response.stream ? { ...response, message: translated(response.message) } : response;
  } catch (error) {
    throw error instanceof Refused ? asError(error) : error;
  }
};

async function* translated<T>(messages: AsyncIterable<T>): AsyncGenerator<T, void, undefined> {
  try {
    yield* messages;
  } catch (error) {
    throw error instanceof Refused ? asError(error) : error;
  }
}

function authorizing(token: string): Interceptor {
  const digest = (text: string) => createHash("sha256").update(text).digest();
  const wanted = digest(`Bearer ${token}`);
  return (next) => async (request) => {
    if (!timingSafeEqual(digest(request.header.get("authorization") ?? ""), wanted)) {
      throw new Refused(Code.Unauthenticated, "AUTH_REQUIRED", "the bearer token is missing or wrong");
    }
    return next(request);
  };
}

function listenOptions(address: string): ListenOptions {
  if (address.startsWith("unix:")) {
    return { path: address.slice("unix:".length) };
  }
  const { hostname, port } = new URL(`http://${address}`);
  // A URL leaves the port of its scheme out.
  return { host: hostname.replace(/^\[|\]$/g, ""), port: Number(port || 80) };
}
