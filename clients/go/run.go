package behest

import (
	"context"
	"iter"
	"sync"

	"google.golang.org/grpc/codes"

	behestv1 "behest/v1"
)

// Run is a run as its caller holds it, known by its id or ordered under a request id. Nothing is sent before the
// first method is called. However often its creation is asked for, it is one run; every following sees every event
// once and in order, across broken connections and restarts of the daemon. Safe for use by several goroutines.
type Run struct {
	client *Client
	order  *behestv1.StreamRunRequest
	start  uint64

	mu         sync.Mutex
	id         string
	isReplayed bool
	sequence   uint64
	terminal   *behestv1.Event
}

// ID is the run's id; "" until the daemon has told it: call Create to be sure.
func (r *Run) ID() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id
}

// IsReplayed says whether the run existed already, made by an earlier request with the same request id.
func (r *Run) IsReplayed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.isReplayed
}

// Sequence is that of the last event that has arrived.
func (r *Run) Sequence() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sequence
}

// Create makes sure that the run exists, and returns its id. Idempotent.
func (r *Run) Create(ctx context.Context) (string, error) {
	if id := r.ID(); id != "" {
		return id, nil
	}
	request := &behestv1.CreateRunRequest{Spec: r.order.GetSpec(), RequestId: r.order.GetRequestId()}
	response, err := unary(ctx, r.client, r.client.runs.CreateRun, request)
	if err != nil {
		return "", err
	}
	r.found(response.GetRun().GetId(), response.GetReplayed())
	return r.ID(), nil
}

// Updates gives everything as it happens, until the run has ended: events, deltas and what is taken back. Events
// begin after the sequence that the handle was made with. An error is the last thing it gives.
func (r *Run) Updates(ctx context.Context) iter.Seq2[Update, error] {
	return r.follow(ctx, r.start)
}

// Events gives the committed events, in order, each once, until the run has ended.
func (r *Run) Events(ctx context.Context) iter.Seq2[*behestv1.Event, error] {
	return func(yield func(*behestv1.Event, error) bool) {
		for update, err := range r.Updates(ctx) {
			if (err != nil || update.Event != nil) && !yield(update.Event, err) {
				return
			}
		}
	}
}

// Text gives the text of the model's answers as it comes, whole once the run has ended. When an attempt is given up
// after some of its text was shown, the text of the next one follows from its start; where that matters, read
// Updates. Of a run of a graph it is the answer alone. How the run ended is not judged: ask Result.
func (r *Run) Text(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		said := newSpeech()
		for update, err := range r.Updates(ctx) {
			piece := said.take(update)
			if (err != nil || piece != "") && !yield(piece, err) {
				return
			}
		}
	}
}

// Result waits for the end of the run and returns its output. A run that did not complete gives a *RunError. It may
// be called again, and beside or after any following.
func (r *Run) Result(ctx context.Context) (*behestv1.RunOutput, error) {
	if r.ended() == nil {
		for _, err := range r.follow(ctx, r.Sequence()) {
			if err != nil {
				return nil, err
			}
		}
	}
	if terminal := r.ended(); terminal != nil {
		return outcomeOfEvent(terminal)
	}
	// The run had ended before the sequence that is followed.
	run, err := r.Get(ctx)
	if err != nil {
		return nil, err
	}
	return outcomeOfRun(run)
}

// Get returns the run as it is now, with messages and pending approvals.
func (r *Run) Get(ctx context.Context) (*behestv1.Run, error) {
	id, err := r.Create(ctx)
	if err != nil {
		return nil, err
	}
	response, err := unary(ctx, r.client, r.client.runs.GetRun, &behestv1.GetRunRequest{RunId: id})
	return response.GetRun(), err
}

// Cancel cancels the run, and returns it once that is durable: a promise that it will end, not that it has. It waits
// for the reply of the run's own creation first, so that a run whose creation is in doubt is found and cancelled.
// Idempotent, and no error when the run has ended.
func (r *Run) Cancel(ctx context.Context) (*behestv1.Run, error) {
	return r.cancel(ctx, behestv1.CancelMode_CANCEL_MODE_GRACEFUL)
}

// CancelNow is Cancel without waiting for what is in flight.
func (r *Run) CancelNow(ctx context.Context) (*behestv1.Run, error) {
	return r.cancel(ctx, behestv1.CancelMode_CANCEL_MODE_FORCE)
}

// Send says something to the run, and returns the sequence of its event.
func (r *Run) Send(ctx context.Context, text string) (uint64, error) {
	id, err := r.Create(ctx)
	if err != nil {
		return 0, err
	}
	request := &behestv1.SendInputRequest{
		RunId: id, Input: []*behestv1.Part{TextPart(text)}, RequestId: NewRequestID(),
	}
	response, err := unary(ctx, r.client, r.client.runs.SendInput, request)
	return response.GetSequence(), err
}

func (r *Run) cancel(ctx context.Context, mode behestv1.CancelMode) (*behestv1.Run, error) {
	id, err := r.Create(ctx)
	if err != nil {
		return nil, err
	}
	response, err := unary(ctx, r.client, r.client.runs.CancelRun, &behestv1.CancelRunRequest{RunId: id, Mode: mode})
	return response.GetRun(), err
}

// found notes the id, the first time that it is told.
func (r *Run) found(id string, isReplayed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.id == "" {
		r.id, r.isReplayed = id, isReplayed
	}
}

// arrived notes how far the run was seen.
func (r *Run) arrived(sequence uint64, terminal *behestv1.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sequence = max(r.sequence, sequence)
	if terminal != nil {
		r.terminal = terminal
	}
}

func (r *Run) ended() *behestv1.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.terminal
}

func outcomeOfEvent(event *behestv1.Event) (*behestv1.RunOutput, error) {
	switch end := event.GetPayload().(type) {
	case *behestv1.Event_RunFailed:
		cause := fromStatus(end.RunFailed.GetError())
		return nil, &RunError{event.GetRunId(), behestv1.RunState_RUN_STATE_FAILED, cause}
	case *behestv1.Event_RunCancelled:
		cause := cancelled(fromStatus(end.RunCancelled.GetError()))
		return nil, &RunError{event.GetRunId(), behestv1.RunState_RUN_STATE_CANCELLED, cause}
	case *behestv1.Event_RunTimedOut:
		cause := fromStatus(end.RunTimedOut.GetError())
		return nil, &RunError{event.GetRunId(), behestv1.RunState_RUN_STATE_TIMED_OUT, cause}
	}
	return event.GetRunCompleted().GetOutput(), nil
}

func outcomeOfRun(run *behestv1.Run) (*behestv1.RunOutput, error) {
	cause := fromStatus(run.GetError())
	switch run.GetState() {
	case behestv1.RunState_RUN_STATE_CANCELLED:
		cause = cancelled(cause)
	case behestv1.RunState_RUN_STATE_FAILED, behestv1.RunState_RUN_STATE_TIMED_OUT:
	default:
		return run.GetOutput(), nil
	}
	return nil, &RunError{run.GetId(), run.GetState(), cause}
}

// cancelled gives the error that forced a run's end, or the plain word that it was cancelled.
func cancelled(cause *Error) *Error {
	if cause.Code != codes.OK {
		return cause
	}
	return &Error{Code: codes.Canceled, Message: "the run was cancelled", isFinal: true}
}
