package behest

import (
	"context"
	"iter"

	behestv1 "behest/v1"
)

// Reason makes the order of a run that follows a reasoning graph, from the text that it works on. Its other fields are
// there to be set: Task for more than a text.
func Reason(graph *behestv1.Graph, text string) *behestv1.RunSpec {
	spec := Say(text)
	spec.Graph = graph
	return spec
}

// Follow is Reason for a strategy, by its name and what it is made with; parameters that are not named have their
// defaults.
func Follow(strategy string, parameters map[string]string, text string) *behestv1.RunSpec {
	spec := Say(text)
	spec.Strategy = &behestv1.StrategyChoice{Name: strategy, Parameters: parameters}
	return spec
}

// Node makes a node of a graph that does what an operator says.
func Node(id, operator string) *behestv1.GraphNode {
	return &behestv1.GraphNode{Id: id, Work: &behestv1.GraphNode_Operator{Operator: operator}}
}

// Then makes an edge of a graph: the second node follows the first.
func Then(from, to string) *behestv1.GraphEdge {
	kind := &behestv1.GraphEdge_Pipeline{Pipeline: &behestv1.Pipeline{}}
	return &behestv1.GraphEdge{From: from, To: to, Kind: kind}
}

// NodeChange is that a node of a run's graph has another state now. The rest is in the event.
type NodeChange struct {
	// Node is the node, with the subgraphs that it is in: "solve" or "inner/solve".
	Node string
	// Visit is counted from 1 within the run; 0 for a node that is left out before it began.
	Visit int32
	State behestv1.NodeState
	Event *behestv1.Event
}

// Nodes gives how the nodes of the run's graph fare, in order, until the run has ended.
func (r *Run) Nodes(ctx context.Context) iter.Seq2[NodeChange, error] {
	return func(yield func(NodeChange, error) bool) {
		for event, err := range r.Events(ctx) {
			change := changeOf(event)
			if (err != nil || change.Event != nil) && !yield(change, err) {
				return
			}
		}
	}
}

// changeOf gives what an event says of a node; nothing when it says nothing of one.
func changeOf(event *behestv1.Event) NodeChange {
	switch told := event.GetPayload().(type) {
	case *behestv1.Event_NodeStarted:
		node := told.NodeStarted
		return NodeChange{node.GetNode(), node.GetVisit(), behestv1.NodeState_NODE_STATE_RUNNING, event}
	case *behestv1.Event_NodeCompleted:
		node := told.NodeCompleted
		return NodeChange{node.GetNode(), node.GetVisit(), behestv1.NodeState_NODE_STATE_COMPLETED, event}
	case *behestv1.Event_NodeFailed:
		node := told.NodeFailed
		return NodeChange{node.GetNode(), node.GetVisit(), behestv1.NodeState_NODE_STATE_FAILED, event}
	case *behestv1.Event_NodeSkipped:
		node := told.NodeSkipped
		return NodeChange{node.GetNode(), node.GetVisit(), behestv1.NodeState_NODE_STATE_SKIPPED, event}
	}
	return NodeChange{}
}
