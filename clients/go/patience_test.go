package behest

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

func TestADaemonThatDrainsWasHeardAndIsWaitedFor(t *testing.T) {
	draining := &Error{Code: codes.Unavailable, Reason: "RUNTIME_DRAINING", RetryAfter: time.Second}
	pauses := newPauses(5 * time.Millisecond)
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
		if err := pauses.wait(context.Background(), draining, 50*time.Millisecond); err != nil {
			t.Fatalf("gave up on a daemon that drains: %v", err)
		}
	}
	gone := &Error{Code: codes.Unavailable, Reason: ReasonUnavailable}
	var err error
	for err == nil {
		err = pauses.wait(context.Background(), gone, 50*time.Millisecond)
	}
	if !errors.Is(err, gone) {
		t.Fatalf("gave up with %v", err)
	}
}
