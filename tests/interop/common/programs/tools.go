// Command tools serves, by the Go client, the tools that the suites of all languages call, dialled or attached.
//
//	tools serve|attach HOST:PORT STORE TOKEN
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"

	"behest/tools"
)

type nothing struct{}

type number struct {
	N int64 `json:"n"`
}

type phrase struct {
	Text  string `json:"text"`
	Times int    `json:"times,omitempty"`
}

type reason struct {
	Why string `json:"why"`
}

type size struct {
	Bytes int `json:"bytes"`
}

type duration struct {
	Seconds float64 `json:"seconds"`
}

type kept struct {
	ID    string `json:"id"`
	Trace string `json:"trace"`
}

type values struct {
	Text  string   `json:"text"`
	Whole int64    `json:"whole"`
	Ratio float64  `json:"ratio"`
	Yes   bool     `json:"yes"`
	Words []string `json:"words"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	said := tools.Logger(slog.New(slog.NewTextHandler(os.Stdout, nil)))
	options := []tools.Option{tools.RememberIn(os.Args[3]), tools.Token(os.Args[4]), tools.DaemonToken(os.Args[4]), said}
	if ca := os.Getenv("CA_FILE"); ca != "" {
		secured, err := credentials.NewClientTLSFromFile(ca, "")
		if err != nil {
			log.Fatal(err)
		}
		options = append(options, tools.Credentials(secured))
	}
	server := tools.NewServer(options...)
	add(server)
	var err error
	if os.Args[1] == "attach" {
		err = server.Attach(ctx, os.Args[2], "common")
	} else {
		err = server.Serve(ctx, os.Args[2])
	}
	if err != nil {
		log.Fatal(err)
	}
}

func add(server *tools.Server) {
	var counted atomic.Int64
	tools.Add(server, "count", "Count on.", func(context.Context, nothing) (number, error) {
		return number{counted.Add(1)}, nil
	})
	tools.Add(server, "echo", "Repeat a text.", func(_ context.Context, given phrase) (string, error) {
		return strings.Repeat(given.Text, max(given.Times, 1)), nil
	}, tools.Pure())
	tools.Add(server, "fail", "Fail.", func(_ context.Context, given reason) (string, error) {
		return "", errors.New(given.Why)
	})
	tools.Add(server, "large", "Be large.", func(_ context.Context, given size) (string, error) {
		return strings.Repeat("ä", given.Bytes/2), nil
	})
	tools.Add(server, "mirror", "Give back values of every kind.", func(_ context.Context, given values) (values, error) {
		return given, nil
	}, tools.Pure())
	tools.Add(server, "keep", "Keep a text.", func(ctx context.Context, given phrase) (kept, error) {
		call := tools.CallOf(ctx)
		made, err := call.Artifact(ctx, []byte(given.Text), "kept.txt", "text/plain")
		return kept{made.GetId(), call.Traceparent()}, err
	})
	tools.Add(server, "work", "Take time.", func(ctx context.Context, given duration) (string, error) {
		fmt.Printf("began work %s\n", tools.CallOf(ctx).IdempotencyKey())
		for step := range 5 {
			tools.CallOf(ctx).ProgressOf(fmt.Sprintf("step %d", step), float64(step), 4)
			select {
			case <-ctx.Done():
				return "", ctx.Err()
			case <-time.After(time.Duration(given.Seconds * float64(time.Second) / 5)):
			}
		}
		return fmt.Sprintf("worked %d", counted.Add(1)), nil
	})
}
