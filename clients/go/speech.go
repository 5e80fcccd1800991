package behest

import (
	"strings"

	behestv1 "behest/v1"
)

// The operator whose text is the answer of a graph.
const answerOperator = "answer"

// speech is the text of the answers, in pieces, made whole by the committed messages. Of a run that follows a graph it
// is the answer alone, told by one node at a time and made whole by the run's output.
type speech struct {
	said map[int32]*strings.Builder

	// Of a graph: the visits that answer, their steps, the step that is being told, and the last that was.
	isGraph bool
	visits  map[int32]bool
	steps   map[int32]bool
	teller  int32
	answer  string
}

func newSpeech() *speech {
	return &speech{said: map[int32]*strings.Builder{}, visits: map[int32]bool{}, steps: map[int32]bool{}}
}

// take gives the text that an update adds.
func (s *speech) take(update Update) string {
	switch {
	case update.Discarded != nil:
		if s.tells(update.Discarded.Step) {
			s.forget()
		}
	case update.Delta != nil:
		if kind, piece := pieceOf(update.Delta); kind == "text" && s.begins(update.Delta.GetStep()) {
			part := update.Delta.GetPart()
			if s.said[part] == nil {
				s.said[part] = &strings.Builder{}
			}
			s.said[part].WriteString(piece)
			return piece
		}
	case update.Event != nil:
		return s.told(update.Event)
	}
	return ""
}

func (s *speech) told(event *behestv1.Event) string {
	switch told := event.GetPayload().(type) {
	case *behestv1.Event_ModelCompleted:
		if s.begins(told.ModelCompleted.GetStep()) {
			return s.rest(told.ModelCompleted.GetMessage())
		}
	case *behestv1.Event_NodeStarted:
		if told.NodeStarted.GetOperator() == answerOperator && told.NodeStarted.GetScope() == 0 {
			s.visits[told.NodeStarted.GetVisit()] = true
		}
	case *behestv1.Event_ContextBuilt:
		if visit := told.ContextBuilt.GetVisit(); visit != 0 {
			s.isGraph = true
			if s.visits[visit] {
				s.steps[told.ContextBuilt.GetStep()] = true
			}
		}
	case *behestv1.Event_RunCompleted:
		output := told.RunCompleted.GetOutput().GetText()
		if s.isGraph && strings.TrimSpace(output) != strings.TrimSpace(s.answer) {
			return output
		}
	}
	return ""
}

// tells says whether the text of a step is what is being told.
func (s *speech) tells(step int32) bool { return !s.isGraph || step == s.teller }

// begins says whether a step is the one that is told, or becomes it.
func (s *speech) begins(step int32) bool {
	if s.teller == 0 && s.steps[step] {
		s.teller = step
	}
	return s.tells(step)
}

func (s *speech) rest(message *behestv1.Message) string {
	var rest, whole strings.Builder
	for number, part := range message.GetParts() {
		if text := part.GetText(); text != nil {
			var said string
			if told := s.said[int32(number)]; told != nil {
				said = told.String()
			}
			whole.WriteString(text.GetText())
			rest.WriteString(strings.TrimPrefix(text.GetText(), said))
		}
	}
	s.answer = whole.String()
	s.forget()
	return rest.String()
}

func (s *speech) forget() {
	clear(s.said)
	s.teller = 0
}
