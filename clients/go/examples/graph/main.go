// Command graph runs a reasoning graph of three nodes, or a strategy of the daemon, and prints what becomes of the
// nodes, then the answer.
//
//	go run ./examples/graph what is two and two
//	go run ./examples/graph -strategy chain_of_thought what is two and two
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"strings"

	"behest"
	behestv1 "behest/v1"
)

func main() {
	address := flag.String("address", "", "address of the daemon")
	strategy := flag.String("strategy", "", "strategy to follow in the place of the graph")
	flag.Parse()
	client, err := behest.NewClient(*address)
	if err != nil {
		log.Fatal(err)
	}
	text := strings.Join(flag.Args(), " ")
	order := behest.Reason(three(), text)
	if *strategy != "" {
		order = behest.Follow(*strategy, nil, text)
	}
	ctx := context.Background()
	run := client.Stream(order)
	for change, err := range run.Nodes(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		state := strings.TrimPrefix(change.State.String(), "NODE_STATE_")
		fmt.Println(change.Visit, change.Node, strings.ToLower(state))
	}
	output, err := run.Result(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(output.GetText())
}

// three plans, solves and answers: in ten rounds at most, or until the goal is achieved.
func three() *behestv1.Graph {
	rounds, isOver := int32(10), true
	return &behestv1.Graph{
		Id: "three",
		Nodes: []*behestv1.GraphNode{
			behest.Node("plan", "plan"), behest.Node("solve", "solve"), behest.Node("answer", "answer"),
		},
		Edges:       []*behestv1.GraphEdge{behest.Then("plan", "solve"), behest.Then("solve", "answer")},
		Termination: &behestv1.Termination{MaxIterations: &rounds, OnGoalAchieved: &isOver},
	}
}
