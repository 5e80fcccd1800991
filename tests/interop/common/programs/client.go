// Command client does by the Go client what its arguments say, and prints what it sees as lines of JSON.
//
//	client ADDRESS follow TEXT        orders a run and follows it
//	client ADDRESS watch RUN AFTER    follows a run from behind an event on
//	client ADDRESS cancel TEXT        orders a run and cancels it
//	client ADDRESS watches RUN COUNT  follows a run by many watches at once
//
// A line is an event's sequence, a piece of text or that the text was taken back; the last one is how the run ended. Of
// many watches a line is the number of the watch and a sequence.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"behest"
)

type line struct {
	Watch     *int   `json:"watch,omitempty"`
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

var telling sync.Mutex

func tell(seen any) {
	telling.Lock()
	defer telling.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(seen); err != nil {
		log.Fatal(err)
	}
}

func main() {
	address, order, subject := os.Args[1], os.Args[2], os.Args[3]
	options := []behest.Option{
		behest.WithPatience(behest.Patience{Pause: 500 * time.Millisecond}), behest.WithToken(os.Getenv("TOKEN")),
	}
	if ca := os.Getenv("CA_FILE"); ca != "" {
		secured, err := credentials.NewClientTLSFromFile(ca, "")
		if err != nil {
			log.Fatal(err)
		}
		options = append(options, behest.WithCredentials(secured))
	}
	client, err := behest.NewClient(address, options...)
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
	if order == "watches" {
		run, err = followByMany(ctx, client, subject, os.Args[4])
	} else {
		err = follow(ctx, run, order == "cancel")
	}
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

func followByMany(ctx context.Context, client *behest.Client, runID, text string) (*behest.Run, error) {
	count, err := strconv.Atoi(text)
	if err != nil {
		log.Fatal(err)
	}
	runs, failures := make([]*behest.Run, count), make([]error, count)
	var group sync.WaitGroup
	for number := range count {
		runs[number] = client.Watch(runID, 0)
		group.Add(1)
		go func() {
			defer group.Done()
			for update, err := range runs[number].Updates(ctx) {
				if err != nil {
					failures[number] = err
				} else if update.Event != nil {
					tell(line{Watch: &number, Sequence: update.Event.GetSequence()})
				}
			}
		}()
	}
	group.Wait()
	return runs[0], errors.Join(failures...)
}

func failure(run *behest.Run, err error) end {
	told := end{Run: run.ID(), Reason: behest.ReasonOf(err)}
	var ended *behest.RunError
	if errors.As(err, &ended) {
		told.End = strings.ToLower(strings.TrimPrefix(ended.State.String(), "RUN_STATE_"))
	}
	return told
}
