package tools

import (
	"context"
	"sync"
	"time"

	behestv1 "behest/v1"
)

const progressKept = 256

// origin is where a call came from: its W3C trace context, and where its artifacts go, nil for a dialled server.
type origin struct {
	traceparent string
	artifacts   behestv1.ArtifactServiceClient
}

// running is a call in progress: its latest progress, its outcome when it has one, and who waits for either.
type running struct {
	key    string
	origin origin
	digest digest
	// Ends when the call is cancelled, its deadline is over or the server stops.
	context context.Context
	cancel  context.CancelCauseFunc

	mu       sync.Mutex
	epoch    uint64
	deadline *time.Timer
	hasBegun bool
	isEnded  bool
	result   *behestv1.ToolResult
	refused  *refusal
	shown    []*behestv1.Progress
	// How much progress there was, what is kept of it and what is not.
	count   int
	changed chan struct{}
}

// news is what happened to a call after a position.
type news struct {
	progress []*behestv1.Progress
	position int
	hasBegun bool
	isEnded  bool
	result   *behestv1.ToolResult
	refused  *refusal
	// Closed at the next change.
	changed <-chan struct{}
}

func newRunning(root context.Context, request *behestv1.CallToolRequest, from origin) *running {
	made := &running{
		key: request.GetIdempotencyKey(), origin: from, digest: digestOf(request),
		epoch: request.GetEpoch(), changed: make(chan struct{}),
	}
	made.context, made.cancel = context.WithCancelCause(root)
	made.bound(request)
	return made
}

// join lets another request wait for the same call, whose deadline it can put off.
func (r *running) join(request *behestv1.CallToolRequest) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := checkSame(r.digest, r.epoch, request); err != nil {
		return err
	}
	r.epoch = request.GetEpoch()
	r.bound(request)
	return nil
}

// bound ends the call at the deadline of its latest request.
func (r *running) bound(request *behestv1.CallToolRequest) {
	if r.deadline != nil {
		r.deadline.Stop()
	}
	if until := deadlineOf(request); !until.IsZero() {
		r.deadline = time.AfterFunc(time.Until(until), func() { r.cancel(errLate) })
	}
}

// stop tells the call to stop, unless it has ended or knows a higher epoch.
func (r *running) stop(epoch uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isEnded || epoch < r.epoch {
		return false
	}
	r.cancel(errCancelled)
	return true
}

func (r *running) lastEpoch() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch
}

// show shows progress to all who wait; the oldest of more than 256 is dropped for those who have not read it.
func (r *running) show(progress *behestv1.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isEnded {
		return
	}
	r.shown = append(r.shown[max(0, len(r.shown)+1-progressKept):], progress)
	r.count++
	r.wake()
}

// begin notes that the function is about to run.
func (r *running) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hasBegun = true
	r.wake()
}

// end sets the outcome.
func (r *running) end(result *behestv1.ToolResult, refused *refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result, r.refused, r.isEnded = result, refused, true
	r.hasBegun = r.hasBegun || result != nil
	if r.deadline != nil {
		r.deadline.Stop()
	}
	r.wake()
	r.cancel(nil)
}

// since gives what happened after a position, 0 for the start.
func (r *running) since(position int) news {
	r.mu.Lock()
	defer r.mu.Unlock()
	missed := min(r.count-position, len(r.shown))
	return news{
		progress: append([]*behestv1.Progress(nil), r.shown[len(r.shown)-missed:]...),
		position: r.count,
		hasBegun: r.hasBegun,
		isEnded:  r.isEnded,
		result:   r.result,
		refused:  r.refused,
		changed:  r.changed,
	}
}

// ended waits for the outcome, and says whether there is one.
func (r *running) ended(ctx context.Context) bool {
	for {
		now := r.since(0)
		if now.isEnded {
			return true
		}
		select {
		case <-now.changed:
		case <-ctx.Done():
			return r.since(0).isEnded
		}
	}
}

// wake wakes all who wait. Under the lock.
func (r *running) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}
