package tools

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"behest"
	behestv1 "behest/v1"
)

// switchboard is a daemon that gives each stream that attaches to the test, which plays the daemon's side of it.
type switchboard struct {
	behestv1.UnimplementedRegistryServiceServer
	address string
	lines   chan *line
}

// line is one stream. The test ends it by end.
type line struct {
	grpc.BidiStreamingServer[behestv1.AttachServerRequest, behestv1.AttachServerResponse]
	hello *behestv1.AttachHello
	end   chan error
}

func (s *switchboard) AttachServer(
	stream grpc.BidiStreamingServer[behestv1.AttachServerRequest, behestv1.AttachServerResponse],
) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	opened := &line{stream, first.GetHello(), make(chan error, 1)}
	s.lines <- opened
	select {
	case err := <-opened.end:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func newSwitchboard(t *testing.T) *switchboard {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	board := &switchboard{address: listener.Addr().String(), lines: make(chan *line, 10)}
	server := grpc.NewServer()
	behestv1.RegisterRegistryServiceServer(server, board)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return board
}

func (s *switchboard) attached(t *testing.T, server *Server) (stop context.CancelFunc, ended chan error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended = make(chan error, 1)
	go func() { ended <- server.Attach(ctx, s.address, "till") }()
	t.Cleanup(stop)
	return stop, ended
}

func (s *switchboard) next(t *testing.T) *line {
	t.Helper()
	select {
	case opened := <-s.lines:
		return opened
	case <-time.After(30 * time.Second):
		t.Fatal("nobody attaches")
		return nil
	}
}

func (l *line) welcome(t *testing.T, told *behestv1.AttachWelcome) {
	t.Helper()
	l.say(t, &behestv1.AttachServerResponse{Frame: &behestv1.AttachServerResponse_Welcome{Welcome: told}})
}

func (l *line) call(t *testing.T, number int64, request *behestv1.CallToolRequest) {
	t.Helper()
	l.say(t, &behestv1.AttachServerResponse{Frame: &behestv1.AttachServerResponse_Call{Call: &behestv1.AttachCall{
		CallNumber: number, Request: &behestv1.AttachCall_CallTool{CallTool: request},
	}}})
}

func (l *line) say(t *testing.T, frame *behestv1.AttachServerResponse) {
	t.Helper()
	if err := l.Send(frame); err != nil {
		t.Fatal(err)
	}
}

// heard gives the frames up to one that is wanted, heartbeats left out.
func (l *line) heard(t *testing.T, wanted func(*behestv1.AttachServerRequest) bool) []*behestv1.AttachServerRequest {
	t.Helper()
	var frames []*behestv1.AttachServerRequest
	for {
		frame, err := l.Recv()
		if err != nil {
			t.Fatalf("after %v: %v", frames, err)
		}
		if frame.GetFrame() != nil {
			frames = append(frames, frame)
		}
		if wanted(frame) {
			return frames
		}
	}
}

// answered gives what the answer to a call holds, to its end.
func (l *line) answered(t *testing.T, number int64) (kinds []string, text string, end *behestv1.AttachEnd) {
	t.Helper()
	for _, frame := range l.heard(t, func(frame *behestv1.AttachServerRequest) bool {
		return frame.GetReply().GetCallNumber() == number && frame.GetReply().GetEnd() != nil
	}) {
		reply := frame.GetReply()
		if reply.GetCallNumber() != number {
			continue
		}
		switch {
		case reply.GetAccepted() != nil:
			kinds = append(kinds, "accepted")
		case reply.GetCallTool().GetProgress() != nil:
			kinds = append(kinds, "progress")
		case reply.GetCallTool().GetChunk() != nil:
			kinds = append(kinds, "chunk")
			text += string(reply.GetCallTool().GetChunk())
		case reply.GetCallTool().GetResult() != nil:
			kinds = append(kinds, "result")
			for _, part := range reply.GetCallTool().GetResult().GetParts() {
				text += part.GetText().GetText()
			}
		case reply.GetEnd() != nil:
			end = reply.GetEnd()
		}
	}
	return kinds, text, end
}

func accepted(number int64) func(*behestv1.AttachServerRequest) bool {
	return func(frame *behestv1.AttachServerRequest) bool {
		return frame.GetReply().GetCallNumber() == number && frame.GetReply().GetAccepted() != nil
	}
}

func TestAnAttachedServerOffersItsToolsAndAnswersCalls(t *testing.T) { // C025
	board := newSwitchboard(t)
	board.attached(t, newBench().server(Concurrency(3)))
	line := board.next(t)
	if line.hello.GetServerName() != "till" || len(line.hello.GetTools()) != 6 || line.hello.GetMaxConcurrentCalls() != 3 {
		t.Errorf("%v", line.hello)
	}
	if line.hello.GetLeaseId() != "" || line.hello.GetDedupeRetention() != nil || !line.hello.GetTakesChunkedArguments() {
		t.Errorf("%v", line.hello)
	}
	line.welcome(t, &behestv1.AttachWelcome{LeaseId: "one", MaxFrameBytes: 1 << 20})
	line.call(t, 1, ask("echo", `{"word": "tea"}`, "k"))
	if kinds, text, end := line.answered(t, 1); text != "tea" || end.GetError() != nil || kinds[0] != "accepted" {
		t.Errorf("%v %q %v", kinds, text, end)
	}
	line.call(t, 2, ask("big", `{}`, "b"))
	if kinds, text, _ := line.answered(t, 2); len(text) != 3_000_000 || slices.Index(kinds, "chunk") != 1 {
		t.Errorf("%v, %d bytes", kinds, len(text))
	}
	line.call(t, 3, ask("none", `{}`, "n"))
	if _, _, end := line.answered(t, 3); !end.GetNotExecuted() || end.GetError().GetCode() != int32(codes.NotFound) {
		t.Errorf("%v", end)
	}
}

func TestArgumentsInPartsAreJoined(t *testing.T) {
	board := newSwitchboard(t)
	board.attached(t, newBench().server())
	line := board.next(t)
	line.welcome(t, &behestv1.AttachWelcome{})
	line.say(t, &behestv1.AttachServerResponse{Frame: &behestv1.AttachServerResponse_Call{Call: &behestv1.AttachCall{
		CallNumber: 1, More: true, Request: &behestv1.AttachCall_CallTool{CallTool: ask("echo", "", "k")},
	}}})
	data := []byte(`{"word": "grüß"}`)
	cut := strings.Index(string(data), "ü") + 1
	for number, chunk := range [][]byte{data[:cut], data[cut:]} {
		more := &behestv1.AttachArguments{CallNumber: 1, Chunk: chunk, More: number == 0}
		line.say(t, &behestv1.AttachServerResponse{Frame: &behestv1.AttachServerResponse_Arguments{Arguments: more}})
	}
	if _, text, _ := line.answered(t, 1); text != "grüß" {
		t.Errorf("%q", text)
	}
}

func TestACancelledCallOfAnAttachedServerEnds(t *testing.T) {
	for _, key := range []string{"k", ""} {
		does, board := newBench(), newSwitchboard(t)
		board.attached(t, does.server())
		line := board.next(t)
		line.welcome(t, &behestv1.AttachWelcome{})
		line.call(t, 1, ask("wait", `{"word": "tea"}`, key))
		<-does.waiting
		cancel := &behestv1.AttachCancel{CallNumber: 1}
		line.say(t, &behestv1.AttachServerResponse{Frame: &behestv1.AttachServerResponse_Cancel{Cancel: cancel}})
		_, text, end := line.answered(t, 1)
		if cause := <-does.cancelled; !errors.Is(cause, errCancelled) {
			t.Errorf("%v", cause)
		}
		if isTold := strings.HasPrefix(text, "the call was cancelled") || end.GetError() != nil; !isTold {
			t.Errorf("key %q: %q, %v", key, text, end)
		}
	}
}

func TestWhatRunsWhenTheStreamBreaksIsReportedAndJoined(t *testing.T) { // C025
	does, board := newBench(), newSwitchboard(t)
	board.attached(t, does.server())
	first := board.next(t)
	first.welcome(t, &behestv1.AttachWelcome{LeaseId: "one"})
	first.call(t, 1, ask("echo", `{"word": "done"}`, "d"))
	first.answered(t, 1)
	first.call(t, 2, ask("wait", `{"word": "tea"}`, "k"))
	first.heard(t, accepted(2))
	first.end <- status.Error(codes.Unavailable, "gone")
	second := board.next(t)
	held := map[string]bool{}
	for _, each := range second.hello.GetHeld() {
		held[each.GetIdempotencyKey()] = each.GetIsDone()
	}
	if isDone, isHeld := held["k"]; second.hello.GetLeaseId() != "one" || !isHeld || isDone || !held["d"] {
		t.Errorf("%v", second.hello)
	}
	second.welcome(t, &behestv1.AttachWelcome{LeaseId: "one"})
	second.call(t, 1, ask("wait", `{"word": "tea"}`, "k"))
	second.heard(t, accepted(1))
	close(does.goOn)
	if _, text, _ := second.answered(t, 1); text != "tea" {
		t.Errorf("%q", text)
	}
	second.call(t, 2, ask("echo", `{"word": "done"}`, "d"))
	if _, text, _ := second.answered(t, 2); text != "done" || does.executed.Load() != 2 {
		t.Errorf("%q, executed %d times", text, does.executed.Load())
	}
}

func TestASilentDaemonIsLeftAndBothSidesAreHeard(t *testing.T) {
	board := newSwitchboard(t)
	board.attached(t, newBench().server())
	line := board.next(t)
	line.welcome(t, &behestv1.AttachWelcome{Heartbeat: durationpb.New(50 * time.Millisecond)})
	line.heard(t, func(frame *behestv1.AttachServerRequest) bool { return frame.GetFrame() == nil })
	board.next(t)
}

func TestADrainOfTheDaemonEndsTheStreamAndTheServerComesBack(t *testing.T) {
	does, board := newBench(), newSwitchboard(t)
	board.attached(t, does.server())
	line := board.next(t)
	line.welcome(t, &behestv1.AttachWelcome{})
	line.call(t, 1, ask("wait", `{"word": "tea"}`, "k"))
	<-does.waiting
	drain := &behestv1.AttachDrain{}
	line.say(t, &behestv1.AttachServerResponse{Frame: &behestv1.AttachServerResponse_Drain{Drain: drain}})
	close(does.goOn)
	if _, text, _ := line.answered(t, 1); text != "tea" {
		t.Errorf("%q", text)
	}
	if _, err := line.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	line.end <- nil
	board.next(t)
}

func TestAServerThatStopsDrainsAndGivesWhatItOwes(t *testing.T) {
	does, board := newBench(), newSwitchboard(t)
	stop, ended := board.attached(t, does.server())
	first := board.next(t)
	first.welcome(t, &behestv1.AttachWelcome{})
	first.call(t, 1, ask("wait", `{"word": "tea"}`, "k"))
	<-does.waiting
	stop()
	first.heard(t, func(frame *behestv1.AttachServerRequest) bool { return frame.GetDrain() != nil })
	first.call(t, 2, ask("echo", `{"word": "late"}`, "l"))
	if _, _, end := first.answered(t, 2); !end.GetNotExecuted() {
		t.Errorf("%v", end)
	}
	first.end <- status.Error(codes.Unavailable, "gone")
	second := board.next(t)
	second.welcome(t, &behestv1.AttachWelcome{})
	second.call(t, 1, ask("wait", `{"word": "tea"}`, "k"))
	close(does.goOn)
	if _, text, _ := second.answered(t, 1); text != "tea" {
		t.Errorf("%q", text)
	}
	second.end <- nil
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestARefusalForGoodEndsTheAttachment(t *testing.T) {
	board := newSwitchboard(t)
	_, ended := board.attached(t, newBench().server())
	told := status.New(codes.AlreadyExists, "no")
	told, err := told.WithDetails(&errdetails.ErrorInfo{Reason: "TOOL_SERVER_NAME_TAKEN", Domain: "behest"})
	if err != nil {
		t.Fatal(err)
	}
	board.next(t).end <- told.Err()
	if err := <-ended; behest.ReasonOf(err) != "TOOL_SERVER_NAME_TAKEN" {
		t.Errorf("%v", err)
	}
}
