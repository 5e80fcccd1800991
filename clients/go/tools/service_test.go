package tools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"behest"
	behestv1 "behest/v1"
)

type word struct {
	Word string `json:"word"`
}

// bench is what the functions of a test server do, and what they have done.
type bench struct {
	executed  atomic.Int64
	waiting   chan struct{}
	goOn      chan struct{}
	cancelled chan error
}

func newBench() *bench {
	return &bench{waiting: make(chan struct{}, 100), goOn: make(chan struct{}), cancelled: make(chan error, 100)}
}

func (b *bench) server(options ...Option) *Server {
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	server := NewServer(append([]Option{Logger(quiet), Grace(10 * time.Second)}, options...)...)
	Add(server, "echo", "Say it again.", func(_ context.Context, given word) (string, error) {
		b.executed.Add(1)
		return given.Word, nil
	})
	Add(server, "wait", "Wait.", func(ctx context.Context, given word) (string, error) {
		b.executed.Add(1)
		CallOf(ctx).Progress("waiting")
		b.waiting <- struct{}{}
		select {
		case <-b.goOn:
			return given.Word, nil
		case <-ctx.Done():
			b.cancelled <- context.Cause(ctx)
			return "", ctx.Err()
		}
	})
	Add(server, "fail", "Fail.", func(context.Context, struct{}) (any, error) { return nil, errors.New("no tea") }, Pure())
	Add(server, "panic", "Panic.", func(context.Context, struct{}) (any, error) { panic("no pot") })
	Add(server, "pair", "Give a pair.", func(ctx context.Context, _ struct{}) (map[string]int, error) {
		fmt.Fprint(CallOf(ctx), "two")
		return map[string]int{"a": 1}, nil
	})
	Add(server, "big", "Give much.", func(context.Context, struct{}) (string, error) {
		return strings.Repeat("ä", 1_500_000), nil
	})
	return server
}

// served serves until the test ends, and gives a stub.
func served(t *testing.T, server *Server) behestv1.ToolServiceClient {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- server.ServeListener(ctx, listener) }()
	connection, err := behest.Dial(listener.Addr().String(), insecure.NewCredentials())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = connection.Close()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return behestv1.NewToolServiceClient(connection)
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// answer is what came of a call.
type answer struct {
	progress []string
	text     string
	result   *behestv1.ToolResult
	err      error
	isProof  bool
}

func (a answer) reason() string { return behest.ReasonOf(a.err) }

func read(stream grpc.ServerStreamingClient[behestv1.CallToolResponse], err error) answer {
	if err != nil {
		return answer{err: behest.FromRPC(err)}
	}
	var got answer
	for {
		frame, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			got.err = behest.FromRPC(err)
			got.isProof = len(stream.Trailer().Get("behest-not-executed")) == 1
			return got
		}
		if shown := frame.GetProgress(); shown != nil {
			got.progress = append(got.progress, shown.GetText())
		}
		got.text += string(frame.GetChunk())
		if got.result = frame.GetResult(); got.result != nil {
			for _, part := range got.result.GetParts() {
				got.text += part.GetText().GetText() + part.GetJson().GetJson()
			}
		}
	}
}

func ask(name, arguments, key string) *behestv1.CallToolRequest {
	return &behestv1.CallToolRequest{
		ToolName: name, ArgumentsJson: arguments, IdempotencyKey: key, Attempt: 1, Epoch: 1, CallId: "call_1",
	}
}

func call(t *testing.T, stub behestv1.ToolServiceClient, request *behestv1.CallToolRequest) answer {
	t.Helper()
	return read(stub.CallTool(bounded(t), request))
}

func TestToolsAreListedWithTheirSchemas(t *testing.T) {
	stub := served(t, newBench().server())
	page, err := stub.ListTools(bounded(t), &behestv1.ListToolsRequest{PageSize: 2})
	if err != nil || len(page.GetTools()) != 2 || page.GetTools()[0].GetName() != "big" || page.GetNextPageToken() != "echo" {
		t.Fatalf("%v, %v", page, err)
	}
	page, err = stub.ListTools(bounded(t), &behestv1.ListToolsRequest{PageToken: "echo", NameGlob: "p*"})
	if err != nil || len(page.GetTools()) != 2 || page.GetNextPageToken() != "" {
		t.Errorf("%v, %v", page, err)
	}
	one, err := stub.GetTool(bounded(t), &behestv1.GetToolRequest{ToolName: "echo"})
	if err != nil || !json.Valid([]byte(one.GetTool().GetInputSchemaJson())) || len(one.GetTool().GetHash()) != 32 {
		t.Errorf("%v, %v", one, err)
	}
	_, err = stub.GetTool(bounded(t), &behestv1.GetToolRequest{ToolName: "none"})
	if behest.ReasonOf(behest.FromRPC(err)) != "TOOL_NOT_FOUND" {
		t.Errorf("%v", err)
	}
}

func TestWhatAFunctionGivesIsTheResult(t *testing.T) {
	stub := served(t, newBench().server())
	for _, each := range []struct {
		name, arguments, text string
		isError               bool
	}{
		{"echo", `{"word": "tea"}`, "tea", false},
		{"echo", `{"word": 1}`, `"path":"/word"`, true},
		{"fail", ``, "no tea", true},
		{"panic", `{}`, "panic: no pot", true},
		{"pair", `{}`, `two{"a":1}`, false},
		{"big", `{}`, strings.Repeat("ä", 1_500_000), false},
	} {
		got := call(t, stub, ask(each.name, each.arguments, ""))
		if got.err != nil || !strings.Contains(got.text, each.text) || got.result.GetIsError() != each.isError {
			t.Errorf("%s: %.200q, %v", each.name, got.text, got.err)
		}
		if got.result.GetCallId() != "call_1" || got.result.GetName() != each.name {
			t.Errorf("%s: the result is that of %q of %q", each.name, got.result.GetName(), got.result.GetCallId())
		}
	}
}

func TestWhatMayNotBeginIsRefusedWithProof(t *testing.T) {
	does := newBench()
	stub := served(t, does.server())
	late, changed := ask("echo", `{"word": "tea"}`, "l"), ask("echo", `{"word": "tea"}`, "c")
	late.StartBy = timestamppb.New(time.Now().Add(-time.Second))
	changed.ToolHash = []byte("other")
	for reason, request := range map[string]*behestv1.CallToolRequest{
		"TOOL_NOT_FOUND": ask("none", `{}`, "n"), "TOOL_START_EXPIRED": late, "TOOL_CHANGED": changed,
	} {
		if got := call(t, stub, request); got.reason() != reason || !got.isProof {
			t.Errorf("%s: %v, proof %v", reason, got.err, got.isProof)
		}
	}
	if does.executed.Load() != 0 {
		t.Errorf("executed %d times", does.executed.Load())
	}
}

func TestATokenIsAskedOfEveryCaller(t *testing.T) {
	stub := served(t, newBench().server(Token("secret")))
	if got := call(t, stub, ask("echo", `{"word": "tea"}`, "k")); got.reason() != "AUTH_REQUIRED" || !got.isProof {
		t.Errorf("%v", got.err)
	}
	if _, err := stub.ListTools(bounded(t), &behestv1.ListToolsRequest{}); behest.ReasonOf(behest.FromRPC(err)) != "AUTH_REQUIRED" {
		t.Errorf("%v", err)
	}
	known := metadata.AppendToOutgoingContext(bounded(t), "authorization", "Bearer secret")
	if _, err := stub.ListTools(known, &behestv1.ListToolsRequest{}); err != nil {
		t.Errorf("%v", err)
	}
}

func TestAServerThatStopsWaitsForWhatRuns(t *testing.T) {
	does := newBench()
	server := does.server()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- server.ServeListener(ctx, listener) }()
	connection, err := behest.Dial(listener.Addr().String(), insecure.NewCredentials())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	stream, err := behestv1.NewToolServiceClient(connection).CallTool(bounded(t), ask("wait", `{"word": "tea"}`, "k"))
	if err != nil {
		t.Fatal(err)
	}
	<-does.waiting
	stop()
	close(does.goOn)
	if got := read(stream, nil); got.text != "tea" {
		t.Errorf("%+v", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestANameThatIsTakenOrNotAllowedPanics(t *testing.T) {
	for _, name := range []string{"echo", "a b", ""} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q is taken", name)
				}
			}()
			Add(newBench().server(), name, "", func(context.Context, struct{}) (any, error) { return nil, nil })
		}()
	}
}
