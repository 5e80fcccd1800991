package behest

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	behestv1 "behest/v1"
)

// After the terminal event there is nothing to wait for but the OK.
const endSilence = time.Second

var errSilent = errors.New("the daemon fell silent")

// frame is one of a watch, by either of the two calls that bring them.
type frame interface {
	GetEvents() []*behestv1.Event
	GetDeltas() []*behestv1.Delta
}

// frames is an open watch.
type frames struct {
	receive func() (frame, error)
	header  func() (metadata.MD, error)
}

// follow gives every update after a sequence, over as many streams as it takes: a stream that breaks, falls silent or
// ends without the terminal event is opened again after the last sequence seen, until patience is over.
func (r *Run) follow(ctx context.Context, after uint64) iter.Seq2[Update, error] {
	return func(yield func(Update, error) bool) {
		following := newFollower(r.ID(), after)
		pauses := newPauses(r.client.patience.Pause)
		for {
			goesOn, err := r.followOnce(ctx, following, pauses, yield)
			if !goesOn {
				return
			}
			if err == nil {
				return
			}
			var failed *Error
			if !errors.As(err, &failed) || !r.mayResume(failed) {
				yield(Update{}, err)
				return
			}
			bearable := r.client.patience.Watch
			if r.ID() == "" {
				bearable = r.client.patience.Repeat
			}
			if err := pauses.wait(ctx, failed, bearable); err != nil {
				yield(Update{}, err)
				return
			}
		}
	}
}

func (r *Run) mayResume(failed *Error) bool {
	if r.ID() == "" {
		return failed.IsUndecided()
	}
	return failed.isResumable()
}

// followOnce follows over one stream: whether the caller wants more, and why the stream was not the last; nil when
// there is nothing left to follow.
func (r *Run) followOnce(
	ctx context.Context, following *follower, pauses *pauses, yield func(Update, error) bool,
) (bool, error) {
	goesOn, err := r.read(ctx, following, pauses, yield)
	switch {
	case !goesOn:
		return false, nil
	case following.terminal != nil:
		// Once the end is known, how the stream ends does not matter, unless it went on after the end.
		var failed *Error
		if errors.As(err, &failed) && failed.isFinal {
			return true, failed
		}
		return true, nil
	case err != nil:
		return true, err
	}
	isOver, err := r.hasNothingLeft(ctx, following.sequence)
	if err != nil || isOver {
		return true, err
	}
	return true, brokenStream("the watch ended without its terminal event")
}

// read reads one stream to its end: whether the caller wants more, and the error that it ended with.
func (r *Run) read(
	ctx context.Context, following *follower, pauses *pauses, yield func(Update, error) bool,
) (bool, error) {
	stream, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(r.client.patience.Silence, func() { cancel(errSilent) })
	defer silence.Stop()
	open, err := r.open(stream, following)
	if err != nil {
		return true, r.streamError(ctx, stream, err)
	}
	following.reopened()
	for {
		got, err := open.receive()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return true, r.streamError(ctx, stream, err)
		}
		pauses.heard(len(got.GetEvents()) > 0 || len(got.GetDeltas()) > 0)
		updates, failed := following.apply(got)
		r.learn(following, open)
		for _, update := range updates {
			if !yield(update, nil) {
				return false, nil
			}
		}
		if failed != nil {
			return true, failed
		}
		if following.terminal != nil {
			silence.Reset(endSilence)
		} else {
			silence.Reset(r.client.patience.Silence)
		}
	}
}

// learn notes what a frame told of the run.
func (r *Run) learn(following *follower, open frames) {
	if following.runID != "" && r.ID() == "" {
		header, err := open.header()
		isReplayed := err == nil && len(header.Get("behest-replayed")) > 0 && header.Get("behest-replayed")[0] == "true"
		r.found(following.runID, isReplayed)
	}
	r.arrived(following.sequence, following.terminal)
}

// open opens a watch, of the run if it is known, else of the order: the request id makes it the same run.
func (r *Run) open(ctx context.Context, following *follower) (frames, error) {
	if id := r.ID(); id != "" {
		following.runID = id
		request := &behestv1.WatchRunRequest{RunId: id, AfterSequence: following.sequence}
		stream, err := r.client.runs.WatchRun(ctx, request)
		return framesOf(stream, err)
	}
	stream, err := r.client.runs.StreamRun(ctx, r.order)
	return framesOf(stream, err)
}

func framesOf[F any, P interface {
	*F
	frame
}](stream grpc.ServerStreamingClient[F], err error) (frames, error) {
	if err != nil {
		return frames{}, err
	}
	receive := func() (frame, error) {
		got, err := stream.Recv()
		return P(got), err
	}
	return frames{receive, stream.Header}, nil
}

// streamError tells the daemon's silence and the caller's leave from what the stream ended with.
func (r *Run) streamError(ctx, stream context.Context, err error) error {
	if ctx.Err() == nil && errors.Is(context.Cause(stream), errSilent) {
		return brokenStream(errSilent.Error())
	}
	return r.client.told(ctx, err)
}

// hasNothingLeft says whether the run ended at or before a sequence, so that its end is no event to come.
func (r *Run) hasNothingLeft(ctx context.Context, sequence uint64) (bool, error) {
	if r.ID() == "" {
		return false, nil
	}
	run, err := r.Get(ctx)
	if err != nil {
		return false, err
	}
	switch run.GetState() {
	case behestv1.RunState_RUN_STATE_COMPLETED, behestv1.RunState_RUN_STATE_FAILED,
		behestv1.RunState_RUN_STATE_CANCELLED, behestv1.RunState_RUN_STATE_TIMED_OUT:
		return run.GetHeadSequence() <= sequence, nil
	}
	return false, nil
}
