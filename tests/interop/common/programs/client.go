// Command client does by the Go client what its arguments say, and prints what it sees as lines of JSON.
//
//	client ADDRESS follow TEXT        orders a run and follows it
//	client ADDRESS watch RUN AFTER    follows a run from behind an event on
//	client ADDRESS cancel TEXT        orders a run and cancels it
//
// A line is an event's sequence, a piece of text or that the text was taken back; the last one is how the run ended.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"behest"
)

type line struct {
	Sequence  uint64 `json:"sequence,omitempty"`
	Text      string `json:"text,omitempty"`
	Discarded bool   `json:"discarded,omitempty"`
}

type end struct {
	End    string `json:"end"`
	Run    string `json:"run"`
	Output string `json:"output"`
	Reason string `json:"reason"`
}

func tell(seen any) {
	if err := json.NewEncoder(os.Stdout).Encode(seen); err != nil {
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
	err = follow(ctx, run, order == "cancel")
	output, failed := run.Result(ctx)
	if err = errors.Join(err, failed); err != nil {
		tell(failure(run, failed))
		return
	}
	tell(end{End: "completed", Run: run.ID(), Output: output.GetText()})
}

func follow(ctx context.Context, run *behest.Run, isCancelling bool) error {
	for update, err := range run.Updates(ctx) {
		if err != nil {
			return err
		}
		switch {
		case update.Event != nil:
			tell(line{Sequence: update.Event.GetSequence()})
			if isCancelling {
				isCancelling = false
				if _, err := run.Cancel(ctx); err != nil {
					return err
				}
			}
		case update.Discarded != nil:
			tell(line{Discarded: true})
		case update.Delta.GetText() != "":
			tell(line{Text: update.Delta.GetText()})
		}
	}
	return nil
}

func failure(run *behest.Run, err error) end {
	told := end{Run: run.ID(), Reason: behest.ReasonOf(err)}
	var ended *behest.RunError
	if errors.As(err, &ended) {
		told.End = strings.ToLower(strings.TrimPrefix(ended.State.String(), "RUN_STATE_"))
	}
	return told
}
