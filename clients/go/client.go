package behest

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	behestv1 "behest/v1"
)

const (
	defaultAddress = "127.0.0.1:7717"
	// gRPC's default of 4 MiB is less than one frame of a watch may hold.
	maxReceiveBytes = 16 << 20
)

// Client is a connection to a daemon. Safe for use by several goroutines.
type Client struct {
	connection *grpc.ClientConn
	runs       behestv1.RunServiceClient
	patience   Patience
	isClosed   atomic.Bool
}

// Option changes how a Client is made.
type Option func(*settings)

type settings struct {
	credentials credentials.TransportCredentials
	token       string
	patience    Patience
	dial        []grpc.DialOption
}

// WithCredentials sets how the connection is secured. Without, it is plain.
func WithCredentials(given credentials.TransportCredentials) Option {
	return func(s *settings) { s.credentials = given }
}

// WithTLS secures the connection with TLS, as the configuration says: authorities, and for mutual TLS a certificate.
func WithTLS(config *tls.Config) Option {
	return WithCredentials(credentials.NewTLS(config))
}

// WithToken sends a bearer token with each call: over TLS, or to this machine.
func WithToken(token string) Option {
	return func(s *settings) { s.token = token }
}

// WithPatience sets how long the client waits and tries again. Fields that are 0 have their defaults.
func WithPatience(patience Patience) Option {
	return func(s *settings) { s.patience = patience }
}

// WithDialOptions adds options of gRPC; they win over the client's own.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(s *settings) { s.dial = append(s.dial, options...) }
}

// NewClient makes a client of the daemon at HOST:PORT or unix:PATH; "" stands for what BEHEST_ADDRESS says, else
// 127.0.0.1:7717, with the token that BEHEST_TOKEN says. Nothing is connected before the first call. It fails for an
// address that is none, and for a token that would leave this machine in the clear.
func NewClient(address string, options ...Option) (*Client, error) {
	chosen := settings{credentials: insecure.NewCredentials()}
	for _, option := range options {
		option(&chosen)
	}
	if address == "" {
		chosen.token = cmp.Or(chosen.token, os.Getenv("BEHEST_TOKEN"))
	}
	if chosen.token != "" {
		bearer, err := DialToken(chosen.token, address, chosen.credentials)
		if err != nil {
			return nil, err
		}
		chosen.dial = append([]grpc.DialOption{bearer}, chosen.dial...)
	}
	connection, err := Dial(address, chosen.credentials, chosen.dial...)
	if err != nil {
		return nil, err
	}
	return &Client{
		connection: connection,
		runs:       behestv1.NewRunServiceClient(connection),
		patience:   chosen.patience.orDefaults(),
	}, nil
}

// Dial opens a bare connection with the client's settings, for generated stubs alone.
func Dial(
	address string, secured credentials.TransportCredentials, more ...grpc.DialOption,
) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(secured),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceiveBytes)),
		// Each attempt is ours, so that it can be counted and resumed.
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		// A daemon on this machine is never behind the proxy that the environment names.
		grpc.WithNoProxy(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		// gRPC waits up to two minutes between connections; a daemon is back in a second.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second,
			},
			MinConnectTimeout: 2 * time.Second,
		}),
	}
	return grpc.NewClient(targetOf(address), append(options, more...)...)
}

func targetOf(address string) string {
	return cmp.Or(address, os.Getenv("BEHEST_ADDRESS"), defaultAddress)
}

// Conn is the connection, for generated stubs: behestv1.NewSessionServiceClient(client.Conn()). FromRPC reads their
// errors.
func (c *Client) Conn() *grpc.ClientConn { return c.connection }

// Close closes the connection. What is still open ends with ErrClosed.
func (c *Client) Close() error {
	if c.isClosed.Swap(true) {
		return nil
	}
	return c.connection.Close()
}

// Say makes the order of a run from a text. Its other fields are there to be set.
func Say(text string) *behestv1.RunSpec {
	return &behestv1.RunSpec{Input: []*behestv1.Part{TextPart(text)}}
}

// TextPart makes a part of a message from a text.
func TextPart(text string) *behestv1.Part {
	return &behestv1.Part{Kind: &behestv1.Part_Text{Text: &behestv1.TextPart{Text: text}}}
}

// Stream orders a run that is created and followed in one call, made when the handle is first used.
func (c *Client) Stream(spec *behestv1.RunSpec) *Run {
	return c.StreamAs(spec, NewRequestID())
}

// StreamAs is Stream under a request id: the same id with the same order is the same run, however often it is asked
// for.
func (c *Client) StreamAs(spec *behestv1.RunSpec, requestID string) *Run {
	return &Run{client: c, order: &behestv1.StreamRunRequest{Spec: spec, RequestId: requestID}}
}

// Run creates a run, and returns once it is durable.
func (c *Client) Run(ctx context.Context, spec *behestv1.RunSpec) (*Run, error) {
	run := c.Stream(spec)
	_, err := run.Create(ctx)
	return run, err
}

// Watch gives the handle of a run that exists; its events begin after the given sequence.
func (c *Client) Watch(runID string, after uint64) *Run {
	return &Run{client: c, id: runID, start: after, sequence: after}
}

// NewRequestID makes a request id that nobody else makes.
func NewRequestID() string { return "req_" + strings.ToLower(rand.Text()) }

// unary makes a call that answers once and whose repeat has no further effect: it is sent again while the daemon
// cannot be reached or does not answer.
func unary[Q, A any](
	ctx context.Context, c *Client, method func(context.Context, Q, ...grpc.CallOption) (A, error), request Q,
) (A, error) {
	pauses := newPauses(c.patience.Pause)
	for {
		attempt, cancel := context.WithTimeout(ctx, c.patience.Call)
		answer, err := method(attempt, request)
		cancel()
		if err == nil {
			return answer, nil
		}
		err = c.told(ctx, err)
		var failed *Error
		if !errors.As(err, &failed) || !failed.IsUndecided() {
			return answer, err
		}
		if err := pauses.wait(ctx, failed, c.patience.Repeat); err != nil {
			return answer, err
		}
	}
}
