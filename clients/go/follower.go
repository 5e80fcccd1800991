package behest

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	behestv1 "behest/v1"
)

// Update is one of three things: an event, a delta, or that deltas are taken back.
type Update struct {
	// Event is a committed fact, the next one of the run.
	Event *behestv1.Event
	// Delta is a volatile piece of the open step, shown once.
	Delta *behestv1.Delta
	// Discarded says that everything that deltas have shown of a model attempt counts no more.
	Discarded *Discarded
}

// Discarded names a model attempt that counts no more.
type Discarded struct {
	Step    int32
	Attempt int32
}

// More steps than can be open, so that what comes late of one that is over is known as that.
const rememberedSteps = 256

// told numbers a piece of progress of an attempt.
type told struct{ attempt, index int64 }

func (t told) compare(other told) int {
	return cmp.Or(cmp.Compare(t.attempt, other.attempt), cmp.Compare(t.index, other.index))
}

type growthKey struct {
	part int32
	kind string
}

// step is the model attempt of a step that is open or was last: its number, whether it is over, what it has shown.
type step struct {
	// The visit of a graph's node that the step belongs to; 0 when it is none's, or not known.
	visit   int32
	attempt int32
	isOver  bool
	growths map[growthKey]*growth
}

// follower turns frames into updates, from one sequence of one run on. Events come out in sequence, each once; a
// piece of an open step comes out once, however often a new stream sends the step from its start; what an attempt
// has shown that counts no more is taken back before anything of the next one comes. Nodes of a graph have steps
// beside each other.
type follower struct {
	runID    string
	sequence uint64
	terminal *behestv1.Event

	// The steps that are open, and of those that are over the latest ones.
	steps map[int32]*step
	// The latest progress told of each call.
	progress map[string]told
}

func newFollower(runID string, after uint64) *follower {
	return &follower{runID: runID, sequence: after, steps: map[int32]*step{}, progress: map[string]told{}}
}

// reopened notes that frames come from a new stream, which sends the open steps from their start.
func (f *follower) reopened() {
	for _, each := range f.steps {
		for _, grown := range each.growths {
			grown.rewind()
		}
	}
}

// apply gives what is new in a frame, and an error after a gap, a repeat, an event of another run or after the end.
func (f *follower) apply(got frame) ([]Update, error) {
	var updates []Update
	for _, event := range got.GetEvents() {
		f.runID = cmp.Or(f.runID, event.GetRunId())
		if event.GetSequence() != f.sequence+1 || f.terminal != nil || event.GetRunId() != f.runID {
			return updates, orderBroken(f.runID, f.sequence+1, event.GetSequence())
		}
		updates = f.before(updates, event)
		f.sequence = event.GetSequence()
		if isTerminal(event) {
			f.terminal = event
		}
		updates = append(updates, Update{Event: event})
	}
	for _, delta := range got.GetDeltas() {
		updates = f.grown(updates, delta)
	}
	return updates, nil
}

func (f *follower) before(updates []Update, event *behestv1.Event) []Update {
	switch told := event.GetPayload().(type) {
	case *behestv1.Event_ContextBuilt:
		f.step(told.ContextBuilt.GetStep()).visit = told.ContextBuilt.GetVisit()
	case *behestv1.Event_ModelRequested:
		return f.begin(updates, told.ModelRequested.GetStep(), told.ModelRequested.GetAttempt())
	case *behestv1.Event_ModelCompleted:
		// It repeats what deltas have shown: nothing is taken back.
		done := f.step(told.ModelCompleted.GetStep())
		clear(done.growths)
		done.attempt, done.isOver = told.ModelCompleted.GetAttempt(), true
	case *behestv1.Event_ModelFailed:
		return f.void(updates, told.ModelFailed.GetStep(), told.ModelFailed.GetAttempt())
	case *behestv1.Event_ModelSuperseded:
		return f.void(updates, told.ModelSuperseded.GetStep(), told.ModelSuperseded.GetAttempt())
	case *behestv1.Event_NodeCompleted:
		return f.left(updates, told.NodeCompleted.GetVisit())
	case *behestv1.Event_NodeFailed:
		return f.left(updates, told.NodeFailed.GetVisit())
	case *behestv1.Event_NodeSkipped:
		return f.left(updates, told.NodeSkipped.GetVisit())
	case *behestv1.Event_ToolCompleted:
		delete(f.progress, told.ToolCompleted.GetCallId())
	case *behestv1.Event_ToolFailed:
		delete(f.progress, told.ToolFailed.GetCallId())
	case *behestv1.Event_ToolDenied:
		delete(f.progress, told.ToolDenied.GetCallId())
	case *behestv1.Event_ToolOutcomeUnknown:
		delete(f.progress, told.ToolOutcomeUnknown.GetCallId())
	}
	return updates
}

func (f *follower) step(number int32) *step {
	if known := f.steps[number]; known != nil {
		return known
	}
	if len(f.steps) >= rememberedSteps {
		over := slices.Sorted(maps.Keys(f.steps))
		over = slices.DeleteFunc(over, func(each int32) bool { return !f.steps[each].isOver })
		for _, each := range over[:min(len(over), rememberedSteps/2)] {
			delete(f.steps, each)
		}
	}
	f.steps[number] = &step{growths: map[growthKey]*growth{}}
	return f.steps[number]
}

func (f *follower) begin(updates []Update, number, attempt int32) []Update {
	begun := f.step(number)
	if attempt > begun.attempt {
		updates = discard(updates, number, begun)
		begun.attempt, begun.isOver = attempt, false
	}
	return updates
}

func (f *follower) void(updates []Update, number, attempt int32) []Update {
	ended := f.step(number)
	if attempt >= ended.attempt {
		updates = discard(updates, number, ended)
		ended.attempt, ended.isOver = attempt, true
	}
	return updates
}

// left ends the steps of a visit of a node.
func (f *follower) left(updates []Update, visit int32) []Update {
	for number, each := range f.steps {
		if visit != 0 && each.visit == visit {
			updates = f.void(updates, number, each.attempt)
		}
	}
	return updates
}

func discard(updates []Update, number int32, voided *step) []Update {
	if len(voided.growths) == 0 {
		return updates
	}
	clear(voided.growths)
	return append(updates, Update{Discarded: &Discarded{number, voided.attempt}})
}

func (f *follower) grown(updates []Update, delta *behestv1.Delta) []Update {
	kind, piece := pieceOf(delta)
	if kind == "tool_progress" {
		next := told{int64(delta.GetAttempt()), delta.GetIndex()}
		if last, ok := f.progress[delta.GetCallId()]; !ok || next.compare(last) > 0 {
			f.progress[delta.GetCallId()] = next
			updates = append(updates, Update{Delta: delta})
		}
		return updates
	}
	updates = f.begin(updates, delta.GetStep(), delta.GetAttempt())
	open := f.step(delta.GetStep())
	if delta.GetAttempt() != open.attempt || open.isOver || kind == "" {
		return updates
	}
	key := growthKey{delta.GetPart(), kind}
	_, isKnown := open.growths[key]
	fresh, fits := open.growth(key).grow(piece)
	if !fits {
		// Not what was held: another process goes on with the attempt. The committed message has it all.
		updates = discard(updates, delta.GetStep(), open)
		fresh, _ = open.growth(key).grow(piece)
	}
	switch {
	case fresh == piece && (piece != "" || !isKnown):
		updates = append(updates, Update{Delta: delta})
	case fresh != "":
		updates = append(updates, Update{Delta: shortened(delta, fresh)})
	}
	return updates
}

func (s *step) growth(key growthKey) *growth {
	if s.growths[key] == nil {
		s.growths[key] = &growth{}
	}
	return s.growths[key]
}

// growth is one growing text of the open attempt, and how much of it the present stream has repeated.
type growth struct {
	text     strings.Builder
	held     string
	repeated int
}

// rewind expects the text from its start again.
func (g *growth) rewind() { g.held, g.repeated = g.text.String(), 0 }

// grow gives what is new in a piece, and whether the text is still the one that was held.
func (g *growth) grow(piece string) (string, bool) {
	if g.repeated < len(g.held) {
		known := g.held[g.repeated:min(g.repeated+len(piece), len(g.held))]
		rest, fits := strings.CutPrefix(piece, known)
		if !fits {
			return "", false
		}
		g.repeated += len(known)
		piece = rest
	}
	g.text.WriteString(piece)
	return piece, true
}

func pieceOf(delta *behestv1.Delta) (kind, piece string) {
	switch told := delta.GetKind().(type) {
	case *behestv1.Delta_Text:
		return "text", told.Text
	case *behestv1.Delta_Reasoning:
		return "reasoning", told.Reasoning
	case *behestv1.Delta_ToolCall:
		return "tool_call", told.ToolCall.GetArgumentsJson()
	case *behestv1.Delta_ToolProgress:
		return "tool_progress", ""
	}
	return "", ""
}

// shortened gives the delta with only the end of its piece.
func shortened(delta *behestv1.Delta, piece string) *behestv1.Delta {
	short := proto.CloneOf(delta)
	switch short.GetKind().(type) {
	case *behestv1.Delta_Text:
		short.Kind = &behestv1.Delta_Text{Text: piece}
	case *behestv1.Delta_Reasoning:
		short.Kind = &behestv1.Delta_Reasoning{Reasoning: piece}
	case *behestv1.Delta_ToolCall:
		short.Kind = &behestv1.Delta_ToolCall{ToolCall: &behestv1.ToolCallDelta{ArgumentsJson: piece}}
	}
	return short
}

func isTerminal(event *behestv1.Event) bool {
	switch event.GetPayload().(type) {
	case *behestv1.Event_RunCompleted, *behestv1.Event_RunFailed,
		*behestv1.Event_RunCancelled, *behestv1.Event_RunTimedOut:
		return true
	}
	return false
}
