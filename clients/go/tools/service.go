package tools

import (
	"context"
	"crypto/subtle"
	"errors"
	"path"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	behestv1 "behest/v1"
)

const longestWait = 30 * time.Second

// service is the contract that a daemon dials.
type service struct {
	behestv1.UnimplementedToolServiceServer
	functions map[string]*function
	tools     []*behestv1.Tool
	calls     *calls
}

func (s *service) ListTools(
	_ context.Context, request *behestv1.ListToolsRequest,
) (*behestv1.ListToolsResponse, error) {
	size := int(min(request.GetPageSize(), 1000))
	if size < 0 {
		return nil, &refusal{codes.InvalidArgument, "REQUEST_INVALID", "page_size must not be negative", true}
	}
	if size == 0 {
		size = 50
	}
	page := &behestv1.ListToolsResponse{}
	for _, tool := range s.tools {
		if tool.GetName() <= request.GetPageToken() {
			continue
		}
		if glob := request.GetNameGlob(); glob != "" {
			if matches, err := path.Match(glob, tool.GetName()); err != nil || !matches {
				continue
			}
		}
		if len(page.Tools) == size {
			page.NextPageToken = page.Tools[size-1].GetName()
			break
		}
		page.Tools = append(page.Tools, tool)
	}
	return page, nil
}

func (s *service) GetTool(_ context.Context, request *behestv1.GetToolRequest) (*behestv1.GetToolResponse, error) {
	found := s.functions[request.GetToolName()]
	if found == nil {
		return nil, notFound(request.GetToolName())
	}
	return &behestv1.GetToolResponse{Tool: found.tool}, nil
}

func (s *service) CallTool(
	request *behestv1.CallToolRequest, stream grpc.ServerStreamingServer[behestv1.CallToolResponse],
) error {
	pairs, _ := metadata.FromIncomingContext(stream.Context())
	to := reply{
		from: origin{traceparent: strings.Join(pairs.Get("traceparent"), "")}, frameLimit: frameLimitBytes,
		send: stream.Send, accepted: func() error { return nil },
	}
	err := s.calls.answer(stream.Context(), request, to)
	var refused *refusal
	if errors.As(err, &refused) && refused.isProof {
		stream.SetTrailer(notExecuted)
	}
	return err
}

func (s *service) GetCallStatus(
	ctx context.Context, request *behestv1.GetCallStatusRequest,
) (*behestv1.GetCallStatusResponse, error) {
	return s.calls.answerStatus(ctx, request)
}

func (s *service) CancelCall(
	_ context.Context, request *behestv1.CancelCallRequest,
) (*behestv1.CancelCallResponse, error) {
	isTold := s.calls.cancelKey(request.GetIdempotencyKey(), request.GetEpoch())
	return &behestv1.CancelCallResponse{Acknowledged: isTold}, nil
}

// reply is where a call comes from, and its answer goes.
type reply struct {
	from       origin
	frameLimit int
	send       func(*behestv1.CallToolResponse) error
	// Told once, when the function is about to run or runs already.
	accepted func() error
}

// answer makes or joins a call and sends what it tells, to its result. A caller that leaves cancels nothing, unless
// the call has no key, and so belongs to its caller.
func (c *calls) answer(ctx context.Context, request *behestv1.CallToolRequest, to reply) error {
	running, err := c.join(request, to.from)
	if err != nil {
		return err
	}
	result, err := running.follow(ctx, to)
	if err != nil {
		return err
	}
	for _, frame := range framesOf(result, to.frameLimit) {
		if err := to.send(frame); err != nil {
			return err
		}
	}
	return nil
}

// answerStatus answers GetCallStatus.
func (c *calls) answerStatus(
	ctx context.Context, request *behestv1.GetCallStatusRequest,
) (*behestv1.GetCallStatusResponse, error) {
	wait := min(request.GetWait().AsDuration(), longestWait)
	running, known, err := c.status(ctx, request, wait)
	switch {
	case err != nil:
		c.log.Error("the store of calls failed", "error", err)
		return nil, &refusal{codes.Internal, "TOOL_FAILED", "the server failed", false}
	case running != nil:
		return &behestv1.GetCallStatusResponse{State: behestv1.CallState_CALL_STATE_RUNNING}, nil
	case known == nil:
		text := "this server forgets its calls when it stops, and does not know this one"
		return nil, &refusal{codes.Unimplemented, "REQUEST_UNSUPPORTED", text, false}
	case known.state == stateBuried:
		return &behestv1.GetCallStatusResponse{State: behestv1.CallState_CALL_STATE_NEVER_SEEN}, nil
	case known.state == stateRunning:
		return nil, outcomeUnknown("the server stopped while the call ran; whether it took effect is not known")
	}
	result := &behestv1.ToolResult{}
	if err := proto.Unmarshal(known.result, result); err != nil {
		return nil, &refusal{codes.Internal, "TOOL_FAILED", "the stored result cannot be read", false}
	}
	return &behestv1.GetCallStatusResponse{State: behestv1.CallState_CALL_STATE_DONE, Result: cut(result)}, nil
}

// follow sends progress until there is an outcome.
func (r *running) follow(ctx context.Context, to reply) (*behestv1.ToolResult, error) {
	position, isAccepted := 0, false
	for {
		now := r.since(position)
		position = now.position
		if now.hasBegun && !isAccepted {
			isAccepted = true
			if err := to.accepted(); err != nil {
				return nil, r.left(err)
			}
		}
		for _, progress := range now.progress {
			frame := &behestv1.CallToolResponse_Progress{Progress: progress}
			if err := to.send(&behestv1.CallToolResponse{Frame: frame}); err != nil {
				return nil, r.left(err)
			}
		}
		switch {
		case now.refused != nil:
			return nil, now.refused
		case now.isEnded:
			return now.result, nil
		}
		select {
		case <-now.changed:
		case <-ctx.Done():
			return nil, r.left(ended(ctx))
		}
	}
}

// ended says why a caller's context has ended.
func ended(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &refusal{codes.DeadlineExceeded, "TOOL_TIMEOUT", "the deadline of the call is over", false}
	}
	return &refusal{codes.Canceled, "TOOL_CANCELLED", "the caller has left", false}
}

// left notes that a caller has left before the end.
func (r *running) left(err error) error {
	if r.key == "" {
		r.cancel(errCancelled)
	}
	return err
}

// guard checks the token before anything else.
type guard struct{ token string }

func (g *guard) unary(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := g.check(ctx); err != nil {
		// It fails outside of a call only.
		_ = grpc.SetTrailer(ctx, notExecuted)
		return nil, err
	}
	return next(ctx, request)
}

func (g *guard) stream(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := g.check(stream.Context()); err != nil {
		stream.SetTrailer(notExecuted)
		return err
	}
	return next(server, stream)
}

func (g *guard) check(ctx context.Context) error {
	if g.token == "" {
		return nil
	}
	pairs, _ := metadata.FromIncomingContext(ctx)
	given := strings.Join(pairs.Get("authorization"), "")
	if subtle.ConstantTimeCompare([]byte(given), []byte("Bearer "+g.token)) == 1 {
		return nil
	}
	return &refusal{codes.Unauthenticated, "AUTH_REQUIRED", "the bearer token is missing or wrong", true}
}
