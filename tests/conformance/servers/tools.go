// Command tools serves, by the Go client, a tool for everything that an examination looks for.
//
//	tools HOST:PORT STORE TOKEN
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

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

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	server := tools.NewServer(tools.RememberIn(os.Args[2]), tools.Token(os.Args[3]))
	add(server)
	if err := server.Serve(ctx, os.Args[1]); err != nil {
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
	tools.Add(server, "work", "Take time.", func(ctx context.Context, given duration) (string, error) {
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
