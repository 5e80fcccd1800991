package tools

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"behest"
	behestv1 "behest/v1"
)

const (
	// How many keys of calls that are done a hello reports, the latest.
	heldAtMost = 10_000
	// How long the daemon may take to welcome.
	welcomeWait     = 15 * time.Second
	longestPause    = 5 * time.Second
	beatsUntilDeath = 3
)

var errSilent = errors.New("the daemon fell silent")

// Reasons that no other attempt to attach will change.
var final = []string{
	"TOOL_SERVER_NAME_TAKEN", "TOOL_NAME_TAKEN", "TOOL_NAME_INVALID", "TOOL_SCHEMA_INVALID", "TOOL_ENDPOINT_REFUSED",
	"AUTH_REQUIRED", "AUTH_CREDENTIAL_INVALID", "AUTH_CREDENTIAL_EXPIRED", "AUTH_CREDENTIAL_REVOKED",
	"AUTH_SCOPE_MISSING", "REQUEST_INVALID", "REQUEST_UNSUPPORTED", behest.ReasonUnimplemented,
}

// Attach serves over a stream to the daemon at HOST:PORT, under a name, until the context ends; then it takes no more
// calls, waits for what runs, and returns nil. A stream that breaks is opened again, for as long as it takes: what
// ran meanwhile goes on, and what ended is answered then. It fails when the daemon refuses it for good, or gives the
// name to another attachment of the same principal.
func (s *Server) Attach(ctx context.Context, target, name string) error {
	calls, err := s.open()
	if err != nil {
		return err
	}
	defer s.close()
	dial := s.dial
	if s.daemonToken != "" {
		bearer, err := behest.DialToken(s.daemonToken, target, s.credentials)
		if err != nil {
			return err
		}
		dial = append([]grpc.DialOption{bearer}, dial...)
	}
	connection, err := behest.Dial(target, s.credentials, dial...)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	link := &link{
		server: s, calls: calls, name: name, owed: map[string]bool{},
		registry:  behestv1.NewRegistryServiceClient(connection),
		artifacts: behestv1.NewArtifactServiceClient(connection),
	}
	return link.keep(ctx)
}

// link is an attachment over all its streams.
type link struct {
	server   *Server
	calls    *calls
	name     string
	registry behestv1.RegistryServiceClient
	// Where the artifacts of its calls go.
	artifacts behestv1.ArtifactServiceClient
	lease     string

	mu sync.Mutex
	// Keys whose call came and whose end was not sent.
	owed map[string]bool
}

func (l *link) owe(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if key != "" {
		l.owed[key] = true
	}
}

func (l *link) paid(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.owed, key)
}

func (l *link) owes() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.owed) > 0
}

// keep attaches again and again, also for the grace after the context, while an answer is owed.
func (l *link) keep(ctx context.Context) error {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-lasting.Done():
		case <-time.After(l.server.grace):
			cancel()
		}
	})()
	for failures := 0; ; failures++ {
		wasWelcome, err := l.attach(ctx, lasting)
		if ctx.Err() != nil && (lasting.Err() != nil || !l.owes()) {
			return nil
		}
		var failed *behest.Error
		if errors.As(err, &failed) && (slices.Contains(final, failed.Reason) || failed.Code == codes.Aborted) {
			return failed
		}
		if wasWelcome {
			failures = 0
		}
		delay := rand.N(min(longestPause, 100*time.Millisecond<<min(failures, 16)) + 1)
		if err != nil {
			l.server.log.Warn("tool server is not attached", "server", l.name, "error", err, "again_in", delay)
		}
		stopped := ctx.Done()
		if ctx.Err() != nil {
			stopped = lasting.Done()
		}
		select {
		case <-stopped:
			if !l.owes() {
				return nil
			}
		case <-time.After(delay):
		}
	}
}

// attach serves over one stream to its end: whether the daemon welcomed it, and what ended it; nil for a drain.
func (l *link) attach(ctx, lasting context.Context) (bool, error) {
	hello, err := l.hello()
	if err != nil {
		return false, err
	}
	open, cancel := context.WithCancelCause(lasting)
	defer cancel(nil)
	stream, err := l.registry.AttachServer(open)
	if err != nil {
		return false, behest.FromRPC(err)
	}
	session := newSession(l, stream, open)
	defer session.tasks.Wait()
	defer cancel(nil)
	silence := time.AfterFunc(welcomeWait, func() { cancel(errSilent) })
	defer silence.Stop()
	// A stream that is broken already tells why when it is read.
	_ = session.send(&behestv1.AttachServerRequest{Frame: &behestv1.AttachServerRequest_Hello{Hello: hello}})
	defer context.AfterFunc(ctx, session.drain)()
	for {
		frame, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return session.isWelcome, nil
		case err != nil && errors.Is(context.Cause(open), errSilent):
			return session.isWelcome, errSilent
		case err != nil:
			return session.isWelcome, behest.FromRPC(err)
		}
		session.take(frame)
		silence.Reset(beatsUntilDeath * session.beat)
	}
}

func (l *link) hello() (*behestv1.AttachHello, error) {
	keys, err := l.calls.held(heldAtMost)
	if err != nil {
		return nil, err
	}
	hello := &behestv1.AttachHello{
		ServerName: l.name, Tools: l.server.Tools(), Models: l.server.models.listed,
		MaxConcurrentCalls: int32(l.server.concurrency), LeaseId: l.lease, TakesChunkedArguments: true,
	}
	if l.calls.store.isDurable() {
		hello.DedupeRetention = durationpb.New(l.server.retention)
	}
	isHeld := map[string]bool{}
	for _, each := range keys {
		isHeld[each.key] = true
		hello.Held = append(hello.Held, &behestv1.AttachHeld{IdempotencyKey: each.key, IsDone: each.isDone})
	}
	// What is not held any more can be given to nobody.
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.owed, func(key string, _ bool) bool { return !isHeld[key] })
	return hello, nil
}
