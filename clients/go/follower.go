package behest

import (
	"cmp"
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

// attempt numbers an attempt of a step, or a piece of progress of an attempt.
type attempt struct{ step, number int64 }

func (a attempt) compare(b attempt) int {
	return cmp.Or(cmp.Compare(a.step, b.step), cmp.Compare(a.number, b.number))
}

type growthKey struct {
	part int32
	kind string
}

// follower turns frames into updates, from one sequence of one run on. Events come out in sequence, each once; a
// piece of the open step comes out once, however often a new stream sends the step from its start; what an attempt
// has shown that counts no more is taken back before anything of the next one comes.
type follower struct {
	runID    string
	sequence uint64
	terminal *behestv1.Event

	// The model attempt that is open or was last, and whether it is over.
	attempt attempt
	isOver  bool
	growths map[growthKey]*growth
	// The latest progress told of each call.
	progress map[string]attempt
}

func newFollower(runID string, after uint64) *follower {
	return &follower{runID: runID, sequence: after, growths: map[growthKey]*growth{}, progress: map[string]attempt{}}
}

// reopened notes that frames come from a new stream, which sends the open step from its start.
func (f *follower) reopened() {
	for _, each := range f.growths {
		each.rewind()
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
	case *behestv1.Event_ModelRequested:
		return f.begin(updates, attemptOf(told.ModelRequested))
	case *behestv1.Event_ModelCompleted:
		// It repeats what deltas have shown: nothing is taken back.
		clear(f.growths)
		f.attempt, f.isOver = attemptOf(told.ModelCompleted), true
	case *behestv1.Event_ModelFailed:
		return f.void(updates, attemptOf(told.ModelFailed))
	case *behestv1.Event_ModelSuperseded:
		return f.void(updates, attemptOf(told.ModelSuperseded))
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

func (f *follower) begin(updates []Update, next attempt) []Update {
	if next.compare(f.attempt) > 0 {
		updates = f.discard(updates)
		f.attempt, f.isOver = next, false
	}
	return updates
}

func (f *follower) void(updates []Update, ended attempt) []Update {
	if ended.compare(f.attempt) >= 0 {
		updates = f.discard(updates)
		f.attempt, f.isOver = ended, true
	}
	return updates
}

func (f *follower) discard(updates []Update) []Update {
	if len(f.growths) == 0 {
		return updates
	}
	clear(f.growths)
	return append(updates, Update{Discarded: &Discarded{int32(f.attempt.step), int32(f.attempt.number)}})
}

func (f *follower) grown(updates []Update, delta *behestv1.Delta) []Update {
	kind, piece := pieceOf(delta)
	if kind == "tool_progress" {
		told := attempt{int64(delta.GetAttempt()), delta.GetIndex()}
		if last, ok := f.progress[delta.GetCallId()]; !ok || told.compare(last) > 0 {
			f.progress[delta.GetCallId()] = told
			updates = append(updates, Update{Delta: delta})
		}
		return updates
	}
	updates = f.begin(updates, attemptOf(delta))
	if attemptOf(delta) != f.attempt || f.isOver || kind == "" {
		return updates
	}
	key := growthKey{delta.GetPart(), kind}
	_, isKnown := f.growths[key]
	fresh, fits := f.growth(key).grow(piece)
	if !fits {
		// Not what was held: another process goes on with the attempt. The committed message has it all.
		updates = f.discard(updates)
		fresh, _ = f.growth(key).grow(piece)
	}
	switch {
	case fresh == piece && (piece != "" || !isKnown):
		updates = append(updates, Update{Delta: delta})
	case fresh != "":
		updates = append(updates, Update{Delta: shortened(delta, fresh)})
	}
	return updates
}

func (f *follower) growth(key growthKey) *growth {
	if f.growths[key] == nil {
		f.growths[key] = &growth{}
	}
	return f.growths[key]
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

// speech is the text of the answers, in pieces, made whole by the committed messages.
type speech map[int32]*strings.Builder

// take gives the text that an update adds.
func (s speech) take(update Update) string {
	switch {
	case update.Discarded != nil:
		clear(s)
	case update.Delta != nil:
		if kind, piece := pieceOf(update.Delta); kind == "text" {
			part := update.Delta.GetPart()
			if s[part] == nil {
				s[part] = &strings.Builder{}
			}
			s[part].WriteString(piece)
			return piece
		}
	case update.Event.GetModelCompleted() != nil:
		var rest strings.Builder
		for number, part := range update.Event.GetModelCompleted().GetMessage().GetParts() {
			if text := part.GetText(); text != nil {
				var said string
				if told := s[int32(number)]; told != nil {
					said = told.String()
				}
				rest.WriteString(strings.TrimPrefix(text.GetText(), said))
			}
		}
		clear(s)
		return rest.String()
	}
	return ""
}

func attemptOf(told interface {
	GetStep() int32
	GetAttempt() int32
}) attempt {
	return attempt{int64(told.GetStep()), int64(told.GetAttempt())}
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
