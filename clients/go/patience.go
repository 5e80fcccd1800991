package behest

import (
	"context"
	"math/rand/v2"
	"time"
)

// Patience says how long a client waits and tries again. A field that is 0 has its default.
type Patience struct {
	// Call is the deadline of one attempt of a call that answers once. Default 30 s.
	Call time.Duration
	// Repeat is how long a repeatable call is repeated while the daemon cannot be reached. Default 10 s.
	Repeat time.Duration
	// Watch is how long a watch is resumed without one frame from the daemon. Default 60 s.
	Watch time.Duration
	// Silence is the longest silence of an open watch. Default 45 s, three heartbeats.
	Silence time.Duration
	// Pause is the longest pause between two attempts; the first ones are shorter. Default 5 s.
	Pause time.Duration
}

func (p Patience) orDefaults() Patience {
	for _, each := range []struct {
		value    *time.Duration
		standard time.Duration
	}{
		{&p.Call, 30 * time.Second},
		{&p.Repeat, 10 * time.Second},
		{&p.Watch, 60 * time.Second},
		{&p.Silence, 45 * time.Second},
		{&p.Pause, 5 * time.Second},
	} {
		if *each.value <= 0 {
			*each.value = each.standard
		}
	}
	return p
}

// longestDrain is how long a daemon may drain and count as heard.
const longestDrain = time.Minute

// pauses are those between attempts, with full jitter, until patience is over.
type pauses struct {
	longest       time.Duration
	attempts      int
	failingSince  time.Time
	drainingSince time.Time
}

func newPauses(longest time.Duration) *pauses { return &pauses{longest: longest} }

// heard notes that the daemon is there; with progress, pauses are short again.
func (p *pauses) heard(hasProgress bool) {
	p.failingSince = time.Time{}
	if hasProgress {
		p.attempts = 0
	}
}

// wait waits before the next attempt. It gives the failure back when the daemon was not heard for longer than is
// bearable, and the caller's own end of waiting.
func (p *pauses) wait(ctx context.Context, failure *Error, bearable time.Duration) error {
	now := time.Now()
	if p.failingSince.IsZero() {
		p.failingSince, p.drainingSince = now, now
	}
	// A daemon that drains says so: it was heard, and is about to be started again.
	if failure.Reason == "RUNTIME_DRAINING" && now.Before(p.drainingSince.Add(longestDrain)) {
		p.failingSince = now
	}
	delay := rand.N(min(p.longest, 100*time.Millisecond<<min(p.attempts, 16)) + 1)
	delay += min(failure.RetryAfter, p.longest)
	p.attempts++
	if now.Add(delay).After(p.failingSince.Add(bearable)) {
		return failure
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(delay):
		return nil
	}
}
