package tools

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	behestv1 "behest/v1"
)

var validName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Server serves functions as tools. Add tools before it serves.
type Server struct {
	path        string
	retention   time.Duration
	token       string
	daemonToken string
	grace       time.Duration
	concurrency int
	serve       []grpc.ServerOption
	dial        []grpc.DialOption
	credentials credentials.TransportCredentials
	log         *slog.Logger
	functions   map[string]*function
	models      models

	mu sync.Mutex
	// How many Serve and Attach are open: the first opens the calls, the last closes them.
	users int
	calls *calls
	// When what runs is let go of. Zero: at once.
	until time.Time
}

// Option changes how a Server is made.
type Option func(*Server)

// RememberIn keeps calls in a file, over restarts. Without, they are remembered in memory, which is enough for pure
// tools: the server then never promises that an unknown call was not executed.
func RememberIn(path string) Option { return func(s *Server) { s.path = path } }

// Retention sets how long a call is remembered after its last change. Default 72 h; a daemon asks for 48 h at least.
func Retention(retention time.Duration) Option { return func(s *Server) { s.retention = retention } }

// DaemonToken sets the bearer token that Attach shows to the daemon: over TLS, or to this machine.
func DaemonToken(token string) Option { return func(s *Server) { s.daemonToken = token } }

// Token sets the bearer token that callers of Serve must bring.
func Token(token string) Option { return func(s *Server) { s.token = token } }

// Grace sets how long the calls that run may go on when the server is to end. Default 10 s. Those that outlast it are
// lost, and remembered as such with RememberIn.
func Grace(grace time.Duration) Option { return func(s *Server) { s.grace = grace } }

// Concurrency sets how many calls an attached server takes at once. Default: the daemon's limit.
func Concurrency(calls int) Option { return func(s *Server) { s.concurrency = calls } }

// Credentials secure the connections that Attach opens. Without, they are plain. For Serve, use
// ServerOptions(grpc.Creds(…)).
func Credentials(given credentials.TransportCredentials) Option {
	return func(s *Server) { s.credentials = given }
}

// ServerOptions adds options of gRPC for Serve.
func ServerOptions(options ...grpc.ServerOption) Option {
	return func(s *Server) { s.serve = append(s.serve, options...) }
}

// DialOptions adds options of gRPC for Attach.
func DialOptions(options ...grpc.DialOption) Option {
	return func(s *Server) { s.dial = append(s.dial, options...) }
}

// Logger sets where the server tells what it does. Default: slog.Default().
func Logger(log *slog.Logger) Option { return func(s *Server) { s.log = log } }

// NewServer makes a server without tools.
func NewServer(options ...Option) *Server {
	server := &Server{
		retention: defaultRetention, grace: 10 * time.Second, credentials: insecure.NewCredentials(),
		log: slog.Default(), functions: map[string]*function{},
	}
	for _, option := range options {
		option(server)
	}
	return server
}

// ToolOption changes how a tool is described.
type ToolOption func(*behestv1.Tool)

// SideEffect claims a class for the tool. It is a hint for the operator of the daemon; here it decides whether a call
// that a crash of this server interrupted is executed again when it is repeated.
func SideEffect(class behestv1.SideEffect) ToolOption {
	return func(tool *behestv1.Tool) { tool.Hints = &behestv1.ToolHints{SideEffect: class} }
}

// Pure claims that the tool changes nothing.
func Pure() ToolOption { return SideEffect(behestv1.SideEffect_SIDE_EFFECT_PURE) }

// Idempotent claims that the tool changes something once per key, however often it is called.
func Idempotent() ToolOption { return SideEffect(behestv1.SideEffect_SIDE_EFFECT_IDEMPOTENT) }

// Add makes a function a tool. The schema of its arguments comes from A, a struct: names from the json tags, fields
// without omitempty or omitzero required, descriptions from jsonschema tags. A string that it returns is text for the
// model, a *behestv1.Part and a *behestv1.ToolResult are what they are, anything else is JSON; an error is a result
// that the model is told. Its context ends when the call is cancelled, its deadline is over or the server stops;
// CallOf tells of the call. Add panics for a name that is taken or not allowed, and a type without a schema.
func Add[A, R any](
	server *Server, name, description string, do func(context.Context, A) (R, error), options ...ToolOption,
) {
	reads, err := newReader[A]()
	if err != nil {
		panic(fmt.Sprintf("tools: the arguments of %s have no schema: %v", name, err))
	}
	tool := &behestv1.Tool{Name: name, Description: description, InputSchemaJson: reads.schemaJSON}
	for _, option := range options {
		option(tool)
	}
	tool.Hash = hashOf(tool)
	server.add(&function{tool, func(text string) (func(context.Context) (any, error), error) {
		arguments, err := reads.read(text)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) (any, error) { return do(ctx, arguments) }, nil
	}})
}

// Tools are the tools, by ascending name.
func (s *Server) Tools() []*behestv1.Tool {
	tools := make([]*behestv1.Tool, 0, len(s.functions))
	for _, each := range s.functions {
		tools = append(tools, each.tool)
	}
	slices.SortFunc(tools, func(a, b *behestv1.Tool) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return tools
}

// Serve listens on HOST:PORT, to be dialled by a daemon that the address is registered with, until the context ends;
// then it waits for what runs, and returns nil. Port 0 takes a free one, which is logged.
func (s *Server) Serve(ctx context.Context, address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return s.ServeListener(ctx, listener)
}

// ServeListener is Serve on a listener, which it closes.
func (s *Server) ServeListener(ctx context.Context, listener net.Listener) error {
	calls, err := s.open()
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer s.close()
	guard := &guard{s.token}
	server := grpc.NewServer(append([]grpc.ServerOption{
		grpc.ChainUnaryInterceptor(guard.unary),
		grpc.ChainStreamInterceptor(guard.stream),
		// A daemon asks every 20 s whether the connection lives, also while no call is open.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(frameLimitBytes),
	}, s.serve...)...)
	behestv1.RegisterToolServiceServer(server, &service{functions: s.functions, tools: s.Tools(), calls: calls})
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	s.log.Info("tool server ready", "address", listener.Addr().String())
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	s.drain()
	late := time.AfterFunc(s.grace, server.Stop)
	defer late.Stop()
	server.GracefulStop()
	return <-ended
}

func (s *Server) add(made *function) {
	name := made.tool.GetName()
	if !validName.MatchString(name) {
		panic(fmt.Sprintf("tools: %q is not [A-Za-z0-9_-]{1,64}", name))
	}
	if s.functions[name] != nil {
		panic(fmt.Sprintf("tools: %s is there already", name))
	}
	s.functions[name] = made
}

// find finds the function of a request that may begin now.
func (s *Server) find(request *behestv1.CallToolRequest) (*function, error) {
	found := s.functions[request.GetToolName()]
	if found == nil {
		return nil, notFound(request.GetToolName())
	}
	if hash := request.GetToolHash(); len(hash) > 0 && string(hash) != string(found.tool.GetHash()) {
		text := fmt.Sprintf("tool %s is not what the caller pinned", request.GetToolName())
		return nil, &refusal{codes.FailedPrecondition, "TOOL_CHANGED", text, true}
	}
	if start := request.GetStartBy(); start != nil && start.AsTime().Before(time.Now()) {
		return nil, &refusal{codes.FailedPrecondition, "TOOL_START_EXPIRED", "the time to begin is over", true}
	}
	return found, nil
}

// open gives the calls that all ways of serving share.
func (s *Server) open() (*calls, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 {
		var remembers store = newMemory(s.retention)
		if s.path != "" {
			opened, err := openFile(s.path, s.retention)
			if err != nil {
				return nil, err
			}
			remembers = opened
		}
		s.calls, s.until = newCalls(s.find, remembers, s.log), time.Time{}
	}
	s.users++
	return s.calls, nil
}

// drain begins no more calls, when the last way of serving is to end.
func (s *Server) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 1 {
		s.calls.isDraining.Store(true)
		if s.until.IsZero() {
			s.until = time.Now().Add(s.grace)
		}
	}
}

func (s *Server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users--
	if s.users > 0 {
		return
	}
	s.calls.end(time.Until(s.until))
	if err := s.calls.store.close(); err != nil {
		s.log.Error("the store of calls could not be closed", "error", err)
	}
}

// hashOf is SHA-256 over name, description and both schemas, each as its length in 8 bytes and its UTF-8.
func hashOf(tool *behestv1.Tool) []byte {
	sum := sha256.New()
	texts := []string{tool.GetName(), tool.GetDescription(), tool.GetInputSchemaJson(), tool.GetOutputSchemaJson()}
	for _, text := range texts {
		sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(text))))
		sum.Write([]byte(text))
	}
	return sum.Sum(nil)
}
