// Command run says something to an agent, prints the answer as it comes, then how the run ended.
//
//	go run ./examples/run say hello
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"strings"

	"behest"
)

func main() {
	address := flag.String("address", "", "address of the daemon")
	flag.Parse()
	client, err := behest.NewClient(*address)
	if err != nil {
		log.Fatal(err)
	}
	run := client.Stream(behest.Say(strings.Join(flag.Args(), " ")))
	for piece, err := range run.Text(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(piece)
	}
	if _, err := run.Result(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("\n%s completed\n", run.ID())
}
