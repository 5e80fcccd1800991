/**
 * Opens the connection to a daemon and gathers the generated stubs on it.
 *
 * Above: `client` and `attached`. Below: Connect's gRPC transport on Node's HTTP/2. Nothing is retried here: each
 * attempt is ours, so that it can be counted and resumed.
 */

import type { ClientSessionOptions, SecureClientSessionOptions } from "node:http2";
import { connect, isIPv4 } from "node:net";
import { type Client, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { AgentService } from "./gen/behest/v1/agent_service_pb.js";
import { ApprovalService } from "./gen/behest/v1/approval_service_pb.js";
import { ArtifactService } from "./gen/behest/v1/artifact_service_pb.js";
import { ChatService } from "./gen/behest/v1/chat_service_pb.js";
import { DaemonService } from "./gen/behest/v1/daemon_service_pb.js";
import { EmbeddingService } from "./gen/behest/v1/embedding_service_pb.js";
import { EventService } from "./gen/behest/v1/event_service_pb.js";
import { ModelService } from "./gen/behest/v1/model_service_pb.js";
import { ReasoningService } from "./gen/behest/v1/reasoning_service_pb.js";
import { RegistryService } from "./gen/behest/v1/registry_service_pb.js";
import { RunService } from "./gen/behest/v1/run_service_pb.js";
import { SessionDataService } from "./gen/behest/v1/session_data_service_pb.js";
import { SessionService } from "./gen/behest/v1/session_service_pb.js";
import { ToolCallService } from "./gen/behest/v1/tool_call_service_pb.js";
import { ToolService } from "./gen/behest/v1/tool_service_pb.js";
import { UsageService } from "./gen/behest/v1/usage_service_pb.js";

/** The address that daemons have unless they are told otherwise. */
export const DEFAULT_ADDRESS = "127.0.0.1:7717";
// More than the frame of a watch may hold.
const READ_LIMIT_BYTES = 16 * 1024 * 1024;
// What GetServerInfo recommends by default; pings only while a call is open.
const PINGS = { pingIntervalMs: 20_000, pingTimeoutMs: 10_000 };

/** How a connection is secured. Without `tls` it is plain. */
export interface Security {
  /** Authorities and, for mutual TLS, the client's certificate and key, as Node's `tls.connect` takes them. */
  readonly tls?: SecureClientSessionOptions;
  /** Bearer token that is sent with each call: over TLS, or to this machine. */
  readonly token?: string;
}

/** A connection that is made with the first call, and again after it broke. */
export interface Channel {
  readonly transport: Transport;
  /** Ends the connection and what is open on it. Idempotent. */
  close(): void;
}

/** The generated stubs, for what the client does not wrap. They throw ConnectError: see `fromRpc`. */
export type Stubs = ReturnType<typeof stubsOn>;

/**
 * Opens a channel to HOST:PORT or unix:PATH. Nothing is connected before the first call. Throws RangeError for a token
 * that would leave this machine in the clear.
 */
export function openChannel(address: string, security: Security = {}): Channel {
  const { tls, token } = security;
  if (token && tls === undefined && !isLocal(address)) {
    throw new RangeError(`a token is sent only over TLS or to this machine, and ${address} is neither`);
  }
  const scheme = tls === undefined ? "http" : "https";
  const path = address.startsWith("unix:") ? address.slice("unix:".length).replace(/^\/\//, "") : "";
  const baseUrl = path ? `${scheme}://localhost` : `${scheme}://${address}`;
  // In megabytes, for all streams together: Node's default is less than one frame of a watch.
  const options: ClientSessionOptions | SecureClientSessionOptions = { maxSessionMemory: 256, ...tls };
  if (path) {
    options.createConnection = () => connect(path);
  }
  const sessionManager = new Http2SessionManager(baseUrl, PINGS, options);
  const transport = createGrpcTransport({
    baseUrl,
    sessionManager,
    interceptors: token ? [bearer(token)] : [],
    acceptCompression: [],
    readMaxBytes: READ_LIMIT_BYTES,
  });
  return { transport, close: () => sessionManager.abort() };
}

/** Returns all stubs on one connection. */
export function stubsOn(transport: Transport) {
  return {
    agents: createClient(AgentService, transport),
    approvals: createClient(ApprovalService, transport),
    artifacts: createClient(ArtifactService, transport),
    chat: createClient(ChatService, transport),
    daemon: createClient(DaemonService, transport),
    embeddings: createClient(EmbeddingService, transport),
    events: createClient(EventService, transport),
    models: createClient(ModelService, transport),
    reasoning: createClient(ReasoningService, transport),
    registry: createClient(RegistryService, transport),
    runs: createClient(RunService, transport),
    sessionData: createClient(SessionDataService, transport),
    sessions: createClient(SessionService, transport),
    toolCalls: createClient(ToolCallService, transport),
    tools: createClient(ToolService, transport),
    usage: createClient(UsageService, transport),
  };
}

/** The stub of runs. */
export type RunStub = Client<typeof RunService>;

/** Tells whether an address is a Unix socket or one of loopback. */
export function isLocal(address: string): boolean {
  const host = address.slice(0, Math.max(address.lastIndexOf(":"), 0)).replace(/^\[|\]$/g, "");
  const isLoopback = host === "localhost" || (isIPv4(host) && host.startsWith("127.")) || host === "::1";
  return address.startsWith("unix:") || isLoopback;
}

function bearer(token: string): Interceptor {
  return (next) => (request) => {
    request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
}
