package tools

import (
	"context"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	behestv1 "behest/v1"
)

// Call is what a function may know of its call and tell about it. Safe for use by several goroutines.
type Call struct {
	request *behestv1.CallToolRequest
	running *running

	mu      sync.Mutex
	written strings.Builder
}

type callKey struct{}

// CallOf gives the call that a context belongs to. It panics for a context that a function of a tool was not given.
func CallOf(ctx context.Context) *Call {
	call, ok := ctx.Value(callKey{}).(*Call)
	if !ok {
		panic("tools: CallOf outside of a call")
	}
	return call
}

// IdempotencyKey is equal over all attempts of the call, and different for different calls.
func (c *Call) IdempotencyKey() string { return c.request.GetIdempotencyKey() }

// Attempt is the number of the attempt, from 1.
func (c *Call) Attempt() int { return int(c.request.GetAttempt()) }

// Epoch is the fencing token: of two attempts, the one with the lower epoch is stale.
func (c *Call) Epoch() uint64 { return c.request.GetEpoch() }

// ID is the id of the call; "" for a direct call.
func (c *Call) ID() string { return c.request.GetCallId() }

// RunID is the id of the run that calls; "" for a direct call.
func (c *Call) RunID() string { return c.request.GetRunId() }

// SessionID is the id of the run's session; "" for a direct call.
func (c *Call) SessionID() string { return c.request.GetSessionId() }

// Traceparent is the W3C trace context of the call; may be "".
func (c *Call) Traceparent() string { return c.running.origin.traceparent }

// Progress shows how far the work is. It is also the sign of life of a tool with a heartbeat.
func (c *Call) Progress(text string) {
	c.running.show(&behestv1.Progress{Text: strings.ToValidUTF8(text, "�")})
}

// ProgressOf is Progress with numbers; a total of 0 is not known.
func (c *Call) ProgressOf(text string, current, total float64) {
	progress := &behestv1.Progress{Text: strings.ToValidUTF8(text, "�"), Current: proto.Float64(current)}
	if total != 0 {
		progress.Total = proto.Float64(total)
	}
	c.running.show(progress)
}

// Write adds to the text of the result, before what the function returns. For results made piece by piece.
func (c *Call) Write(text []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written.Write(text)
}

func (c *Call) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written.String()
}

// deadlineOf gives when a result is no longer waited for; zero for never.
func deadlineOf(request *behestv1.CallToolRequest) time.Time {
	if request.GetDeadline() == nil {
		return time.Time{}
	}
	return request.GetDeadline().AsTime()
}
