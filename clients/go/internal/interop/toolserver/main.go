// Command toolserver serves tools that take effect, fail, wait and tell, as the interop tests need them, and writes
// each effect to a ledger before it answers.
//
//	toolserver [-serve HOST:PORT | -attach HOST:PORT -name NAME] [-remember FILE] -ledger FILE
//
// A token in BEHEST_TOOL_TOKEN is asked of every caller.
package main

import (
	"context"
	"errors"
	"flag"
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

type sum struct {
	A int `json:"a"`
	B int `json:"b"`
}

type payment struct {
	Amount int `json:"amount"`
	// How long the call goes on after its effect.
	DelayMS int `json:"delay_ms,omitempty"`
}

type words struct {
	Text string `json:"text"`
}

type pause struct {
	MS int `json:"ms"`
}

type size struct {
	Size int `json:"size"`
}

type nothing struct{}

// ledger is the truth about effects, kept outside of what is tested.
type ledger struct{ file *os.File }

func (l ledger) write(ctx context.Context, tool string) error {
	call := tools.CallOf(ctx)
	if _, err := fmt.Fprintf(l.file, "%s %s %d\n", tool, call.IdempotencyKey(), call.Attempt()); err != nil {
		return err
	}
	return l.file.Sync()
}

func main() {
	serve := flag.String("serve", "", "address to listen on")
	attach := flag.String("attach", "", "address of the daemon to attach to")
	name := flag.String("name", "go", "name to attach under")
	remember := flag.String("remember", "", "file that remembers calls over restarts")
	path := flag.String("ledger", "", "file that effects are written to")
	flag.Parse()
	file, err := os.OpenFile(*path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	server := tools.NewServer(tools.RememberIn(*remember), tools.Token(os.Getenv("BEHEST_TOOL_TOKEN")), tools.Grace(2*time.Second))
	add(server, ledger{file})
	if *attach != "" {
		err = server.Attach(ctx, *attach, *name)
	} else {
		err = server.Serve(ctx, *serve)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func add(server *tools.Server, effects ledger) {
	tools.Add(server, "add", "Add two integers.", func(_ context.Context, given sum) (int, error) {
		return given.A + given.B, nil
	}, tools.Pure())
	tools.Add(server, "pay", "Pay an amount.", func(ctx context.Context, given payment) (string, error) {
		if err := effects.write(ctx, "pay"); err != nil {
			return "", err
		}
		// On purpose deaf to the context: a payment that was made is made.
		time.Sleep(time.Duration(given.DelayMS) * time.Millisecond)
		return fmt.Sprintf("paid %d", given.Amount), nil
	})
	tools.Add(server, "fail", "Fail.", func(context.Context, nothing) (string, error) {
		return "", errors.New("the till is empty")
	}, tools.Pure())
	tools.Add(server, "panic", "Panic.", func(context.Context, nothing) (string, error) {
		panic("no till at all")
	}, tools.Pure())
	tools.Add(server, "wait", "Wait to be cancelled.", func(ctx context.Context, _ nothing) (string, error) {
		tools.CallOf(ctx).Progress("waiting")
		<-ctx.Done()
		if err := effects.write(ctx, "cancelled"); err != nil {
			return "", err
		}
		return "", ctx.Err()
	})
	tools.Add(server, "steps", "Tell three steps.", func(ctx context.Context, _ nothing) (string, error) {
		for step := range 3 {
			tools.CallOf(ctx).ProgressOf(fmt.Sprintf("step %d", step+1), float64(step+1), 3)
			time.Sleep(100 * time.Millisecond)
		}
		return "three steps", nil
	}, tools.Pure())
	var count atomic.Int64
	tools.Add(server, "tick", "Count on.", func(context.Context, nothing) (int64, error) {
		return count.Add(1), nil
	})
	tools.Add(server, "echo", "Repeat a text.", func(_ context.Context, given words) (string, error) {
		return given.Text, nil
	})
	tools.Add(server, "nap", "Sleep, then count on.", func(ctx context.Context, given pause) (int64, error) {
		select {
		case <-time.After(time.Duration(given.MS) * time.Millisecond):
			return count.Add(1), nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	})
	tools.Add(server, "big", "Answer with so many letters.", func(_ context.Context, given size) (string, error) {
		return strings.Repeat("x", given.Size), nil
	}, tools.Pure())
}
