package behest

import (
	"slices"
	"strings"
	"testing"

	behestv1 "behest/v1"
)

const runID = "run_1"

func event(sequence uint64, payload any) *behestv1.Event {
	made := &behestv1.Event{RunId: runID, Sequence: sequence}
	switch told := payload.(type) {
	case *behestv1.ModelRequested:
		made.Payload = &behestv1.Event_ModelRequested{ModelRequested: told}
	case *behestv1.ModelSuperseded:
		made.Payload = &behestv1.Event_ModelSuperseded{ModelSuperseded: told}
	case *behestv1.ModelCompleted:
		made.Payload = &behestv1.Event_ModelCompleted{ModelCompleted: told}
	case *behestv1.RunCompleted:
		made.Payload = &behestv1.Event_RunCompleted{RunCompleted: told}
	case *behestv1.NodeStarted:
		made.Payload = &behestv1.Event_NodeStarted{NodeStarted: told}
	case *behestv1.NodeSkipped:
		made.Payload = &behestv1.Event_NodeSkipped{NodeSkipped: told}
	case *behestv1.ContextBuilt:
		made.Payload = &behestv1.Event_ContextBuilt{ContextBuilt: told}
	case *behestv1.RunStarted:
		made.Payload = &behestv1.Event_RunStarted{RunStarted: told}
	}
	return made
}

func text(attempt int32, pieces ...string) []*behestv1.Delta {
	var deltas []*behestv1.Delta
	for _, piece := range pieces {
		kind := &behestv1.Delta_Text{Text: piece}
		deltas = append(deltas, &behestv1.Delta{Step: 1, Attempt: attempt, Kind: kind})
	}
	return deltas
}

// shown applies frames and gives the text pieces, with "!" for what is taken back.
func shown(t *testing.T, following *follower, frames ...*behestv1.WatchRunResponse) []string {
	t.Helper()
	var told []string
	for _, frame := range frames {
		updates, err := following.apply(frame)
		if err != nil {
			t.Fatal(err)
		}
		for _, update := range updates {
			if update.Discarded != nil {
				told = append(told, "!")
			} else if update.Delta != nil {
				told = append(told, update.Delta.GetText())
			}
		}
	}
	return told
}

func TestAPieceComesOnceHoweverOftenTheStepIsSentAgain(t *testing.T) {
	following := newFollower(runID, 0)
	begun := &behestv1.WatchRunResponse{
		Events: []*behestv1.Event{event(1, &behestv1.ModelRequested{Step: 1, Attempt: 1})},
		Deltas: text(1, "grü", "ß "),
	}
	got := shown(t, following, begun)
	following.reopened()
	got = append(got, shown(t, following, &behestv1.WatchRunResponse{Deltas: text(1, "g", "rüß d", "ich")})...)
	following.reopened()
	got = append(got, shown(t, following, &behestv1.WatchRunResponse{Deltas: text(1, "grüß dich!")})...)
	if want := []string{"grü", "ß ", "d", "ich", "!"}; !slices.Equal(got, want) {
		t.Errorf("shown %q, want %q", got, want)
	}
}

func TestAnAttemptThatCountsNoMoreIsTakenBackBeforeTheNextOneIsShown(t *testing.T) {
	following := newFollower(runID, 0)
	got := shown(t, following,
		&behestv1.WatchRunResponse{
			Events: []*behestv1.Event{event(1, &behestv1.ModelRequested{Step: 1, Attempt: 1})}, Deltas: text(1, "one"),
		},
		&behestv1.WatchRunResponse{Events: []*behestv1.Event{
			event(2, &behestv1.ModelSuperseded{Step: 1, Attempt: 1}), event(3, &behestv1.ModelRequested{Step: 1, Attempt: 2}),
		}},
		&behestv1.WatchRunResponse{Deltas: append(text(1, " late"), text(2, "two")...)},
	)
	if want := []string{"one", "!", "two"}; !slices.Equal(got, want) {
		t.Errorf("shown %q, want %q", got, want)
	}
}

func TestAnotherTextOfTheSameAttemptTakesTheFirstBack(t *testing.T) {
	following := newFollower(runID, 0)
	got := shown(t, following, &behestv1.WatchRunResponse{Deltas: text(1, "abc")})
	following.reopened()
	got = append(got, shown(t, following, &behestv1.WatchRunResponse{Deltas: text(1, "abX")})...)
	if want := []string{"abc", "!", "abX"}; !slices.Equal(got, want) {
		t.Errorf("shown %q, want %q", got, want)
	}
}

func TestAGapARepeatAnotherRunAndAnEventAfterTheEndAreErrors(t *testing.T) {
	other := event(2, &behestv1.RunStarted{})
	other.RunId = "run_2"
	for name, next := range map[string]*behestv1.Event{
		"gap": event(3, &behestv1.RunStarted{}), "repeat": event(1, &behestv1.RunStarted{}), "run": other,
	} {
		following := newFollower(runID, 0)
		frame := &behestv1.WatchRunResponse{Events: []*behestv1.Event{event(1, &behestv1.RunStarted{}), next}}
		updates, err := following.apply(frame)
		if ReasonOf(err) != ReasonStreamBroken || len(updates) != 1 {
			t.Errorf("%s: %d updates and %v", name, len(updates), err)
		}
	}
	following := newFollower(runID, 0)
	frame := &behestv1.WatchRunResponse{
		Events: []*behestv1.Event{event(1, &behestv1.RunCompleted{}), event(2, &behestv1.RunStarted{})},
	}
	if _, err := following.apply(frame); err == nil {
		t.Error("an event after the end is taken")
	}
}

// ofStep gives text deltas of a step's first attempt.
func ofStep(step int32, pieces ...string) []*behestv1.Delta {
	deltas := text(1, pieces...)
	for _, delta := range deltas {
		delta.Step = step
	}
	return deltas
}

func TestStepsSideBySideAreToldEachToItsEnd(t *testing.T) {
	following := newFollower(runID, 0)
	got := shown(t, following,
		&behestv1.WatchRunResponse{Events: []*behestv1.Event{
			event(1, &behestv1.ContextBuilt{Step: 1, Visit: 1}), event(2, &behestv1.ContextBuilt{Step: 2, Visit: 2}),
			event(3, &behestv1.ModelRequested{Step: 1, Attempt: 1}), event(4, &behestv1.ModelRequested{Step: 2, Attempt: 1}),
		}, Deltas: append(ofStep(2, "b"), ofStep(1, "a")...)},
		&behestv1.WatchRunResponse{Deltas: append(ofStep(2, "bb"), ofStep(1, "aa")...)},
		&behestv1.WatchRunResponse{Events: []*behestv1.Event{event(5, &behestv1.NodeSkipped{Visit: 2})}},
		&behestv1.WatchRunResponse{Deltas: append(ofStep(2, "late"), ofStep(1, "aaa")...)},
	)
	if want := []string{"b", "a", "bb", "aa", "!", "aaa"}; !slices.Equal(got, want) {
		t.Errorf("shown %q, want %q", got, want)
	}
}

func TestTheTextOfAGraphIsThatOfTheNodeWhichAnswers(t *testing.T) {
	following, said, whole := newFollower(runID, 0), newSpeech(), strings.Builder{}
	message := &behestv1.Message{Parts: []*behestv1.Part{TextPart("four")}}
	output := &behestv1.RunOutput{Text: "four"}
	for _, frame := range []*behestv1.WatchRunResponse{
		{Events: []*behestv1.Event{
			event(1, &behestv1.NodeStarted{Visit: 1, Node: "solve", Operator: "solve"}),
			event(2, &behestv1.NodeStarted{Visit: 2, Node: "answer", Operator: "answer"}),
			event(3, &behestv1.ContextBuilt{Step: 1, Visit: 1}), event(4, &behestv1.ContextBuilt{Step: 2, Visit: 2}),
		}, Deltas: append(ofStep(1, "no"), ofStep(2, "fo")...)},
		{Events: []*behestv1.Event{
			event(5, &behestv1.ModelCompleted{Step: 1, Attempt: 1, Message: &behestv1.Message{
				Parts: []*behestv1.Part{TextPart("nothing")},
			}}),
			event(6, &behestv1.ModelCompleted{Step: 2, Attempt: 1, Message: message}),
			event(7, &behestv1.RunCompleted{Output: output}),
		}},
	} {
		updates, err := following.apply(frame)
		if err != nil {
			t.Fatal(err)
		}
		for _, update := range updates {
			whole.WriteString(said.take(update))
		}
	}
	if whole.String() != "four" {
		t.Errorf("said %q", whole.String())
	}
}

func TestTheCommittedMessageMakesTheTextWhole(t *testing.T) {
	following, said, whole := newFollower(runID, 0), newSpeech(), strings.Builder{}
	message := &behestv1.Message{Parts: []*behestv1.Part{TextPart("hello you")}}
	for _, frame := range []*behestv1.WatchRunResponse{
		{Events: []*behestv1.Event{event(1, &behestv1.ModelRequested{Step: 1, Attempt: 1})}, Deltas: text(1, "hel", "lo")},
		{Events: []*behestv1.Event{event(2, &behestv1.ModelCompleted{Step: 1, Attempt: 1, Message: message})}},
	} {
		updates, err := following.apply(frame)
		if err != nil {
			t.Fatal(err)
		}
		for _, update := range updates {
			whole.WriteString(said.take(update))
		}
	}
	if whole.String() != "hello you" {
		t.Errorf("said %q", whole.String())
	}
}
