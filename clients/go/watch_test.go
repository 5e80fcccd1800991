package behest

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	behestv1 "behest/v1"
)

// scripted is a daemon whose watches are written beforehand: each stream plays the next script.
type scripted struct {
	behestv1.UnimplementedRunServiceServer
	scripts []script

	mu    sync.Mutex
	asked []any
}

// script is what one stream brings: frames, then an end.
type script struct {
	frames []*behestv1.WatchRunResponse
	end    error
	// The stream stays open without a word.
	isSilent bool
}

func (s *scripted) next(request any) script {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, request)
	played := s.scripts[0]
	s.scripts = s.scripts[1:]
	return played
}

func (s *scripted) WatchRun(
	request *behestv1.WatchRunRequest, stream grpc.ServerStreamingServer[behestv1.WatchRunResponse],
) error {
	played := s.next(request)
	for _, frame := range played.frames {
		if err := stream.Send(frame); err != nil {
			return err
		}
	}
	if played.isSilent {
		<-stream.Context().Done()
	}
	return played.end
}

func (s *scripted) StreamRun(
	request *behestv1.StreamRunRequest, stream grpc.ServerStreamingServer[behestv1.StreamRunResponse],
) error {
	played := s.next(request)
	if err := stream.SetHeader(metadata.Pairs("behest-replayed", "true")); err != nil {
		return err
	}
	for _, frame := range played.frames {
		same := &behestv1.StreamRunResponse{Events: frame.GetEvents(), Deltas: frame.GetDeltas()}
		if err := stream.Send(same); err != nil {
			return err
		}
	}
	return played.end
}

func clientOf(t *testing.T, daemon *scripted, patience Patience) *Client {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	behestv1.RegisterRunServiceServer(server, daemon)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	client, err := NewClient(listener.Addr().String(), WithPatience(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func frameOf(events ...*behestv1.Event) []*behestv1.WatchRunResponse {
	return []*behestv1.WatchRunResponse{{Events: events}}
}

func refused(code codes.Code, reason string) error {
	told, err := status.New(code, "no").WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "behest"})
	return errors.Join(told.Err(), err)
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func sequences(t *testing.T, ctx context.Context, run *Run) ([]uint64, error) {
	t.Helper()
	var got []uint64
	for event, err := range run.Events(ctx) {
		if err != nil {
			return got, err
		}
		got = append(got, event.GetSequence())
	}
	return got, nil
}

func TestAWatchGoesOnAfterEveryKindOfBreak(t *testing.T) {
	started := &behestv1.RunStarted{}
	daemon := &scripted{scripts: []script{
		{end: status.Error(codes.Unavailable, "away")},
		{frames: frameOf(event(1, started)), end: status.Error(codes.Unavailable, "away")},
		{frames: frameOf(event(2, started)), end: refused(codes.Unavailable, "RUNTIME_DRAINING")},
		{frames: frameOf(event(3, started)), isSilent: true},
		{frames: frameOf(event(4, started)), end: refused(codes.Aborted, "WATCH_STALLED")},
		{frames: frameOf(event(5, &behestv1.RunCompleted{Output: &behestv1.RunOutput{Text: "done"}}))},
	}}
	client := clientOf(t, daemon, Patience{Pause: time.Millisecond, Silence: time.Second})
	run := client.Stream(Say("hello"))
	got, err := sequences(t, bounded(t), run)
	if err != nil || !slices.Equal(got, []uint64{1, 2, 3, 4, 5}) {
		t.Errorf("events %v and %v", got, err)
	}
	output, err := run.Result(bounded(t))
	if err != nil || output.GetText() != "done" || !run.IsReplayed() || run.ID() != runID {
		t.Errorf("%v, %v, replayed %v, id %q", output, err, run.IsReplayed(), run.ID())
	}
	first, second := daemon.asked[0].(*behestv1.StreamRunRequest), daemon.asked[1].(*behestv1.StreamRunRequest)
	if first.GetRequestId() == "" || first.GetRequestId() != second.GetRequestId() {
		t.Errorf("request ids %q and %q", first.GetRequestId(), second.GetRequestId())
	}
	for number, request := range daemon.asked[2:] {
		if after := request.(*behestv1.WatchRunRequest).GetAfterSequence(); after != uint64(number+1) {
			t.Errorf("watch %d asks after %d", number, after)
		}
	}
}

func TestARefusalEndsAWatchWithItsReason(t *testing.T) {
	daemon := &scripted{scripts: []script{{end: refused(codes.NotFound, "RUN_NOT_FOUND")}}}
	_, err := sequences(t, bounded(t), clientOf(t, daemon, Patience{}).Watch(runID, 0))
	var failed *Error
	if !errors.As(err, &failed) || failed.Reason != "RUN_NOT_FOUND" || failed.Code != codes.NotFound {
		t.Errorf("%v", err)
	}
}

func TestARunThatFailedGivesItsReason(t *testing.T) {
	told := status.Convert(refused(codes.ResourceExhausted, "RUN_BUDGET")).Proto()
	end := &behestv1.Event{RunId: runID, Sequence: 1, Payload: &behestv1.Event_RunFailed{
		RunFailed: &behestv1.RunFailed{Error: told},
	}}
	daemon := &scripted{scripts: []script{{frames: frameOf(end)}}}
	_, err := clientOf(t, daemon, Patience{}).Watch(runID, 0).Result(bounded(t))
	var ended *RunError
	if !errors.As(err, &ended) || ended.State != behestv1.RunState_RUN_STATE_FAILED || ReasonOf(err) != "RUN_BUDGET" {
		t.Errorf("%v", err)
	}
}

func TestPatienceIsOverWhenNobodyAnswers(t *testing.T) {
	client, err := NewClient("127.0.0.1:1", WithPatience(Patience{Repeat: 50 * time.Millisecond, Pause: time.Millisecond}))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Run(bounded(t), Say("hello")); ReasonOf(err) != ReasonUnavailable {
		t.Errorf("%v", err)
	}
}

func TestTheCallersOwnEndIsGivenAsItIs(t *testing.T) {
	daemon := &scripted{scripts: []script{{frames: frameOf(event(1, &behestv1.RunStarted{})), isSilent: true}}}
	client := clientOf(t, daemon, Patience{})
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	for _, err := range client.Watch(runID, 0).Events(ctx) {
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		cancel()
	}
}

func TestACallerMayLeaveAWatch(t *testing.T) {
	daemon := &scripted{scripts: []script{{frames: frameOf(event(1, &behestv1.RunStarted{})), isSilent: true}}}
	for range clientOf(t, daemon, Patience{}).Watch(runID, 0).Updates(bounded(t)) {
		break
	}
}

func TestAClosedClientSaysSo(t *testing.T) {
	client := clientOf(t, &scripted{}, Patience{})
	if err := errors.Join(client.Close(), client.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Run(bounded(t), Say("hello")); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}
