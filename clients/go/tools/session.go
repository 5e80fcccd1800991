package tools

import (
	"context"
	"errors"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	behestv1 "behest/v1"
)

const (
	argumentsLimitBytes = 16 << 20
	standardBeat        = 10 * time.Second
)

// session is one stream of an attachment. One goroutine reads its frames; each call has one that answers it.
type session struct {
	link    *link
	stream  grpc.BidiStreamingClient[behestv1.AttachServerRequest, behestv1.AttachServerResponse]
	context context.Context
	// Counts the goroutines that write.
	tasks sync.WaitGroup

	// Of the goroutine that reads.
	isWelcome  bool
	beat       time.Duration
	frameLimit int

	sending sync.Mutex

	mu   sync.Mutex
	open map[int64]*pending
	// Most calls of tools and models at once; 0 for any number.
	limit int
	// The stream is to end once nothing is open.
	isEnding bool
	// The server is to end: not before it has given what it owes.
	isStopping bool
	isClosed   bool
}

// pending is a call on a stream that has not ended.
type pending struct {
	call *behestv1.AttachCall
	// What has come of arguments that come in parts.
	arguments []byte
	isGiven   bool
	// Ends when the answer is no longer wanted.
	context context.Context
	cancel  context.CancelFunc
}

func newSession(
	link *link, stream grpc.BidiStreamingClient[behestv1.AttachServerRequest, behestv1.AttachServerResponse],
	lasting context.Context,
) *session {
	return &session{
		link: link, stream: stream, context: lasting,
		beat: standardBeat, frameLimit: frameLimitBytes, open: map[int64]*pending{},
	}
}

// take takes a frame from the daemon.
func (s *session) take(frame *behestv1.AttachServerResponse) {
	switch told := frame.GetFrame().(type) {
	case *behestv1.AttachServerResponse_Welcome:
		s.welcome(told.Welcome)
	case *behestv1.AttachServerResponse_Call:
		s.begin(told.Call)
	case *behestv1.AttachServerResponse_Arguments:
		s.extend(told.Arguments)
	case *behestv1.AttachServerResponse_Cancel:
		s.withdraw(told.Cancel.GetCallNumber())
	case *behestv1.AttachServerResponse_Drain:
		s.endWhenDone()
	}
}

func (s *session) welcome(told *behestv1.AttachWelcome) {
	s.link.lease = told.GetLeaseId()
	if beat := told.GetHeartbeat().AsDuration(); beat > 0 {
		s.beat = beat
	}
	if limit := int(told.GetMaxFrameBytes()); limit > 0 {
		s.frameLimit = limit
	}
	if s.isWelcome {
		return
	}
	s.isWelcome = true
	s.mu.Lock()
	s.limit = int(told.GetMaxConcurrentCalls())
	s.mu.Unlock()
	s.link.server.log.Info("tool server attached", "server", s.link.name, "id", told.GetServer().GetId())
	ticker := time.NewTicker(s.beat / 2)
	s.tasks.Go(func() {
		defer ticker.Stop()
		for {
			select {
			case <-s.context.Done():
				return
			case <-ticker.C:
				_ = s.send(&behestv1.AttachServerRequest{})
			}
		}
	})
}

// begin takes a call, and answers it once its arguments are there.
func (s *session) begin(call *behestv1.AttachCall) {
	taken := &pending{call: call, isGiven: !call.GetMore()}
	if until := call.GetDeadline(); until != nil {
		taken.context, taken.cancel = context.WithDeadline(s.context, until.AsTime())
	} else {
		taken.context, taken.cancel = context.WithCancel(s.context)
	}
	s.mu.Lock()
	// A stream that was closed here answers nothing. The call is not begun.
	isDeaf := s.isClosed || s.open[call.GetCallNumber()] != nil
	isTooMuch := s.limit > 0 && len(s.open) >= s.limit && call.GetGetCallStatus() == nil
	if !isDeaf {
		s.open[call.GetCallNumber()] = taken
	}
	s.mu.Unlock()
	switch {
	case isDeaf:
		taken.cancel()
	case isTooMuch:
		taken.isGiven = true
		s.end(taken, &refusal{codes.ResourceExhausted, "RUNTIME_OVERLOADED", "more calls at once than were agreed", true})
	case taken.isGiven:
		s.start(taken)
	}
}

// extend takes more of the arguments of a call.
func (s *session) extend(more *behestv1.AttachArguments) {
	taken := s.find(more.GetCallNumber())
	if taken == nil || taken.isGiven {
		return
	}
	taken.arguments = append(taken.arguments, more.GetChunk()...)
	switch {
	case len(taken.arguments) > argumentsLimitBytes:
		taken.isGiven = true
		s.end(taken, &refusal{codes.ResourceExhausted, "REQUEST_TOO_LARGE", "the arguments are too large", true})
	case more.GetMore():
	case !utf8.Valid(taken.arguments):
		taken.isGiven = true
		s.end(taken, &refusal{codes.InvalidArgument, "TOOL_ARGUMENTS_INVALID", "the arguments are not UTF-8", true})
	default:
		taken.isGiven = true
		taken.call.GetCallTool().ArgumentsJson = string(taken.arguments)
		s.start(taken)
	}
}

// withdraw stops the work of a call whose answer is no longer wanted.
func (s *session) withdraw(number int64) {
	taken := s.find(number)
	if taken == nil {
		return
	}
	request := taken.call.GetCallTool()
	switch {
	case !taken.isGiven:
		taken.isGiven = true
		s.end(taken, &refusal{codes.Canceled, "TOOL_CANCELLED", "the call was cancelled", true})
	case request.GetIdempotencyKey() != "":
		// It ends by its result. One that was taken a moment ago may not be known by its key yet.
		s.tasks.Go(func() {
			for s.find(number) == taken && !s.link.calls.cancelKey(request.GetIdempotencyKey(), request.GetEpoch()) {
				select {
				case <-s.context.Done():
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
	default:
		taken.cancel()
	}
}

// start answers a call in a goroutine of its own.
func (s *session) start(taken *pending) {
	frameLimit := s.frameLimit
	s.link.owe(taken.call.GetCallTool().GetIdempotencyKey())
	s.tasks.Go(func() { s.end(taken, s.answer(taken, frameLimit)) })
}

func (s *session) answer(taken *pending, frameLimit int) error {
	number := taken.call.GetCallNumber()
	switch asked := taken.call.GetRequest().(type) {
	case *behestv1.AttachCall_CallTool:
		to := reply{
			from:       origin{taken.call.GetTraceparent(), s.link.artifacts},
			frameLimit: frameLimit,
			send: func(frame *behestv1.CallToolResponse) error {
				return s.reply(&behestv1.AttachReply{
					CallNumber: number, Response: &behestv1.AttachReply_CallTool{CallTool: frame},
				})
			},
			accepted: func() error {
				return s.reply(&behestv1.AttachReply{
					CallNumber: number, Response: &behestv1.AttachReply_Accepted{Accepted: &behestv1.AttachAccepted{}},
				})
			},
		}
		return s.link.calls.answer(taken.context, asked.CallTool, to)
	case *behestv1.AttachCall_GetCallStatus:
		told, err := s.link.calls.answerStatus(taken.context, asked.GetCallStatus)
		if err != nil {
			return err
		}
		return s.reply(&behestv1.AttachReply{
			CallNumber: number, Response: &behestv1.AttachReply_GetCallStatus{GetCallStatus: told},
		})
	case *behestv1.AttachCall_StreamChat, *behestv1.AttachCall_Embed:
		return s.answerModel(taken)
	}
	return unserved()
}

// end ends the answer to a call, and the stream when it was the last one of a drain.
func (s *session) end(taken *pending, err error) {
	taken.cancel()
	end := &behestv1.AttachEnd{}
	if err != nil {
		end.Error = status.Convert(err).Proto()
		var refused *refusal
		end.NotExecuted = errors.As(err, &refused) && refused.isProof
	}
	number := taken.call.GetCallNumber()
	failed := s.reply(&behestv1.AttachReply{CallNumber: number, Response: &behestv1.AttachReply_End{End: end}})
	// When the stream is broken, the answer waits for the next one.
	if failed == nil && s.context.Err() == nil {
		s.link.paid(taken.call.GetCallTool().GetIdempotencyKey())
	}
	s.mu.Lock()
	delete(s.open, number)
	s.mu.Unlock()
	s.closeIfDone()
}

// drain tells the daemon that this server is stopping, and ends the stream once nothing is open or owed.
func (s *session) drain() {
	s.link.server.drain()
	s.mu.Lock()
	s.isStopping = true
	s.mu.Unlock()
	// When the stream is broken, there is nothing to drain.
	_ = s.send(&behestv1.AttachServerRequest{Frame: &behestv1.AttachServerRequest_Drain{Drain: &behestv1.AttachDrain{}}})
	s.endWhenDone()
}

func (s *session) endWhenDone() {
	s.mu.Lock()
	s.isEnding = true
	s.mu.Unlock()
	s.closeIfDone()
}

func (s *session) closeIfDone() {
	s.mu.Lock()
	isDone := s.isEnding && !s.isClosed && len(s.open) == 0 && !(s.isStopping && s.link.owes())
	s.isClosed = s.isClosed || isDone
	s.mu.Unlock()
	if isDone {
		s.sending.Lock()
		defer s.sending.Unlock()
		// It fails on a stream that has ended.
		_ = s.stream.CloseSend()
	}
}

func (s *session) find(number int64) *pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[number]
}

func (s *session) reply(reply *behestv1.AttachReply) error {
	return s.send(&behestv1.AttachServerRequest{Frame: &behestv1.AttachServerRequest_Reply{Reply: reply}})
}

// send sends a frame. A stream that is broken says so to the goroutine that reads.
func (s *session) send(frame *behestv1.AttachServerRequest) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.stream.Send(frame)
}
