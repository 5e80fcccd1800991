package tools

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"behest"
	behestv1 "behest/v1"
)

func TestAKeySentTwiceIsExecutedOnce(t *testing.T) {
	does := newBench()
	stub := served(t, does.server())
	first, second := ask("echo", `{"word": "tea"}`, "k"), ask("echo", `{"word": "tea"}`, "k")
	second.Attempt, second.Epoch = 2, 2
	for _, request := range []*behestv1.CallToolRequest{first, second} {
		if got := call(t, stub, request); got.text != "tea" || got.err != nil {
			t.Errorf("%q, %v", got.text, got.err)
		}
	}
	if does.executed.Load() != 1 {
		t.Errorf("executed %d times", does.executed.Load())
	}
	if got := call(t, stub, ask("echo", `{"word": "coffee"}`, "k")); got.reason() != "REQUEST_ID_REUSED" || got.isProof {
		t.Errorf("other arguments: %v", got.err)
	}
}

func TestARunningCallIsJoinedAndOutlivesItsCaller(t *testing.T) {
	does := newBench()
	stub := served(t, does.server())
	leaving, leave := context.WithCancel(bounded(t))
	first, err := stub.CallTool(leaving, ask("wait", `{"word": "tea"}`, "k"))
	if err != nil {
		t.Fatal(err)
	}
	<-does.waiting
	leave()
	if got := read(first, nil); got.reason() != behest.ReasonCancelled {
		t.Errorf("%v", got.err)
	}
	status, err := stub.GetCallStatus(bounded(t), &behestv1.GetCallStatusRequest{IdempotencyKey: "k", Epoch: 1})
	if err != nil || status.GetState() != behestv1.CallState_CALL_STATE_RUNNING {
		t.Errorf("%v, %v", status, err)
	}
	close(does.goOn)
	got := call(t, stub, ask("wait", `{"word": "tea"}`, "k"))
	if got.text != "tea" || does.executed.Load() != 1 {
		t.Errorf("%+v, executed %d times", got, does.executed.Load())
	}
	wait := durationpb.New(20 * time.Second)
	status, err = stub.GetCallStatus(bounded(t), &behestv1.GetCallStatusRequest{IdempotencyKey: "k", Epoch: 1, Wait: wait})
	if err != nil || status.GetState() != behestv1.CallState_CALL_STATE_DONE {
		t.Errorf("%v, %v", status, err)
	}
}

func TestACallWithoutAKeyEndsWithItsCaller(t *testing.T) {
	does := newBench()
	stub := served(t, does.server())
	leaving, leave := context.WithCancel(bounded(t))
	if _, err := stub.CallTool(leaving, ask("wait", `{"word": "tea"}`, "")); err != nil {
		t.Fatal(err)
	}
	<-does.waiting
	leave()
	if cause := <-does.cancelled; !errors.Is(cause, errCancelled) {
		t.Errorf("%v", cause)
	}
}

func TestACancelledCallEndsByItsOwnStream(t *testing.T) {
	does := newBench()
	stub := served(t, does.server())
	stream, err := stub.CallTool(bounded(t), ask("wait", `{"word": "tea"}`, "k"))
	if err != nil {
		t.Fatal(err)
	}
	<-does.waiting
	for epoch, want := range []bool{false, true} {
		request := &behestv1.CancelCallRequest{IdempotencyKey: "k", Epoch: uint64(epoch)}
		if told, err := stub.CancelCall(bounded(t), request); err != nil || told.GetAcknowledged() != want {
			t.Errorf("epoch %d: %v, %v", epoch, told, err)
		}
	}
	got := read(stream, nil)
	if !got.result.GetIsError() || !strings.HasPrefix(got.text, "the call was cancelled") || len(got.progress) != 1 {
		t.Errorf("%+v", got)
	}
	told, err := stub.CancelCall(bounded(t), &behestv1.CancelCallRequest{IdempotencyKey: "k", Epoch: 1})
	if err != nil || told.GetAcknowledged() {
		t.Errorf("%v, %v", told, err)
	}
}

func TestACallThatWasCutShortIsExecutedAgainIfItMayBe(t *testing.T) {
	for effect, want := range map[behestv1.SideEffect]int64{
		behestv1.SideEffect_SIDE_EFFECT_PURE:           2,
		behestv1.SideEffect_SIDE_EFFECT_IDEMPOTENT:     2,
		behestv1.SideEffect_SIDE_EFFECT_NON_IDEMPOTENT: 1,
		behestv1.SideEffect_SIDE_EFFECT_UNSPECIFIED:    1,
	} {
		for _, isLate := range []bool{false, true} {
			does := newBench()
			stub := served(t, does.server())
			request := ask("wait", `{"word": "tea"}`, "k")
			request.SideEffect = effect
			if isLate {
				request.Deadline = timestamppb.New(time.Now().Add(100 * time.Millisecond))
			}
			stream, err := stub.CallTool(bounded(t), request)
			if err != nil {
				t.Fatal(err)
			}
			<-does.waiting
			if _, err := stub.CancelCall(bounded(t), &behestv1.CancelCallRequest{IdempotencyKey: "k", Epoch: 1}); err != nil {
				t.Fatal(err)
			}
			cut := read(stream, nil)
			if !cut.result.GetIsError() {
				t.Errorf("%v: %+v", effect, cut)
			}
			close(does.goOn)
			request.Attempt, request.Deadline = 2, nil
			again := call(t, stub, request)
			if does.executed.Load() != want || again.result.GetIsError() != (want == 1) {
				t.Errorf("%v, late %v: executed %d times: %+v", effect, isLate, does.executed.Load(), again)
			}
		}
	}
}

func TestADeadlineThatIsOverEndsTheCall(t *testing.T) {
	does := newBench()
	request := ask("wait", `{"word": "tea"}`, "k")
	request.Deadline = timestamppb.New(time.Now().Add(100 * time.Millisecond))
	got := call(t, served(t, does.server()), request)
	if !got.result.GetIsError() || !strings.HasPrefix(got.text, errLate.Error()) {
		t.Errorf("%+v", got)
	}
}

func TestAKeyThatWasNeverSeenIsBuriedBeforeItIsToldSo(t *testing.T) {
	does := newBench()
	stub := served(t, does.server(RememberIn(filepath.Join(t.TempDir(), "calls.db"))))
	request := &behestv1.GetCallStatusRequest{IdempotencyKey: "k", Epoch: 1, Attempt: 1}
	for range 2 {
		status, err := stub.GetCallStatus(bounded(t), request)
		if err != nil || status.GetState() != behestv1.CallState_CALL_STATE_NEVER_SEEN {
			t.Fatalf("%v, %v", status, err)
		}
	}
	if got := call(t, stub, ask("echo", `{"word": "tea"}`, "k")); got.reason() != "TOOL_START_EXPIRED" || !got.isProof {
		t.Errorf("%v", got.err)
	}
	again := ask("echo", `{"word": "tea"}`, "k")
	again.Attempt = 2
	if got := call(t, stub, again); got.text != "tea" {
		t.Errorf("%v", got.err)
	}
	if does.executed.Load() != 1 {
		t.Errorf("executed %d times", does.executed.Load())
	}
}

func TestAServerWithoutAFileCannotTellOfAKeyThatItDoesNotKnow(t *testing.T) {
	stub := served(t, newBench().server())
	_, err := stub.GetCallStatus(bounded(t), &behestv1.GetCallStatusRequest{IdempotencyKey: "k", Epoch: 1})
	if behest.ReasonOf(behest.FromRPC(err)) != "REQUEST_UNSUPPORTED" {
		t.Errorf("%v", err)
	}
}

func TestACallThatACrashInterruptedIsNotGuessed(t *testing.T) {
	path, does := filepath.Join(t.TempDir(), "calls.db"), newBench()
	crashed, err := openFile(path, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"echo", "fail"} {
		lost := entry{state: stateRunning, epoch: 1, digest: digestOf(ask(name, `{}`, ""))}
		if err := crashed.put(name, lost); err != nil {
			t.Fatal(err)
		}
	}
	if err := crashed.close(); err != nil {
		t.Fatal(err)
	}
	stub := served(t, does.server(RememberIn(path)))
	if got := call(t, stub, ask("echo", `{}`, "echo")); got.reason() != "TOOL_OUTCOME_UNKNOWN" || got.isProof {
		t.Errorf("%v", got.err)
	}
	_, err = stub.GetCallStatus(bounded(t), &behestv1.GetCallStatusRequest{IdempotencyKey: "echo", Epoch: 1})
	if behest.ReasonOf(behest.FromRPC(err)) != "TOOL_OUTCOME_UNKNOWN" {
		t.Errorf("%v", err)
	}
	if got := call(t, stub, ask("fail", `{}`, "fail")); got.text != "no tea" {
		t.Errorf("a pure call is not made again: %v", got.err)
	}
}
