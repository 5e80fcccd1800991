// Command toolserver serves one tool, until it is interrupted.
//
//	go run ./examples/toolserver 127.0.0.1:7801
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"behest/tools"
)

type text struct {
	Text string `json:"text" jsonschema:"what to count in"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	server := tools.NewServer()
	tools.Add(server, "count_words", "Count the words of a text.", func(_ context.Context, given text) (int, error) {
		return len(strings.Fields(given.Text)), nil
	}, tools.Pure())
	if err := server.Serve(ctx, os.Args[1]); err != nil {
		log.Fatal(err)
	}
}
