// Command client does what its arguments say against a daemon, and prints what it sees as lines of JSON. It is what
// the interop tests run.
//
//	client ADDRESS stream TEXT        order a run, follow it to its end, tell its result
//	client ADDRESS watch RUN AFTER    follow a run that exists, tell its result
//	client ADDRESS cancel TEXT        order a run, cancel it at its first text, tell its result
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"behest"
)

// seen is a line: one of these.
type seen struct {
	RunID     string `json:"run_id,omitempty"`
	Sequence  uint64 `json:"sequence,omitempty"`
	Event     []byte `json:"event,omitempty"`
	Text      string `json:"text,omitempty"`
	Progress  string `json:"progress,omitempty"`
	Discarded bool   `json:"discarded,omitempty"`
	Result    string `json:"result,omitempty"`
	State     string `json:"state,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Error     string `json:"error,omitempty"`
}

func tell(line seen) {
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		log.Fatal(err)
	}
}

func main() {
	address, order, subject := os.Args[1], os.Args[2], os.Args[3]
	client, err := behest.NewClient(address, behest.WithPatience(behest.Patience{Pause: 500 * time.Millisecond}))
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	run := client.Stream(behest.Say(subject))
	if order == "watch" {
		after, err := strconv.ParseUint(os.Args[4], 10, 64)
		if err != nil {
			log.Fatal(err)
		}
		run = client.Watch(subject, after)
	}
	if err := follow(ctx, run, order == "cancel"); err != nil {
		tell(failure(err))
	}
	output, err := run.Result(ctx)
	if err != nil {
		tell(failure(err))
		return
	}
	tell(seen{RunID: run.ID(), State: "COMPLETED", Result: output.GetText()})
}

func follow(ctx context.Context, run *behest.Run, isCancelling bool) error {
	for update, err := range run.Updates(ctx) {
		if err != nil {
			return err
		}
		switch {
		case update.Event != nil:
			data, err := proto.Marshal(update.Event)
			if err != nil {
				return err
			}
			tell(seen{RunID: run.ID(), Sequence: update.Event.GetSequence(), Event: data})
		case update.Discarded != nil:
			tell(seen{Discarded: true})
		case update.Delta.GetToolProgress() != nil:
			tell(seen{Progress: update.Delta.GetToolProgress().GetText()})
		case update.Delta.GetText() != "":
			tell(seen{Text: update.Delta.GetText()})
			if isCancelling {
				isCancelling = false
				if _, err := run.Cancel(ctx); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func failure(err error) seen {
	line := seen{Reason: behest.ReasonOf(err), Error: err.Error()}
	var ended *behest.RunError
	if errors.As(err, &ended) {
		line.RunID, line.State = ended.RunID, ended.State.String()
	}
	return line
}
