package tools

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	behestv1 "behest/v1"
)

var (
	errCancelled = errors.New("the call was cancelled")
	errLate      = errors.New("the deadline of the call is over")
	errStopping  = errors.New("the server is stopping")
)

type digest [sha256.Size]byte

func digestOf(request *behestv1.CallToolRequest) digest {
	return sha256.Sum256([]byte(request.GetToolName() + "\x00" + request.GetArgumentsJson()))
}

// function is a registered tool. Its call gives an error of the function, or a *mismatch before it began.
type function struct {
	tool *behestv1.Tool
	bind func(arguments string) (func(context.Context) (any, error), error)
}

// isRepeatable says whether a call may be executed again. Where the author says nothing, the operator's word counts.
func (f *function) isRepeatable(request *behestv1.CallToolRequest) bool {
	effect := cmp.Or(f.tool.GetHints().GetSideEffect(), request.GetSideEffect())
	return effect == behestv1.SideEffect_SIDE_EFFECT_PURE || effect == behestv1.SideEffect_SIDE_EFFECT_IDEMPOTENT
}

// calls are all calls of a server. Each is a goroutine that outlives the streams of those who wait for it: a call
// with a key goes on when its caller is gone, since the caller, or its successor, comes back with the same key.
type calls struct {
	find  func(*behestv1.CallToolRequest) (*function, error)
	store store
	log   *slog.Logger

	root context.Context
	stop context.CancelCauseFunc
	// Counts what is running.
	group sync.WaitGroup

	// No call is begun any more. Results are still given.
	isDraining atomic.Bool

	mu    sync.Mutex
	byKey map[string]*running
}

func newCalls(find func(*behestv1.CallToolRequest) (*function, error), store store, log *slog.Logger) *calls {
	root, stop := context.WithCancelCause(context.Background())
	return &calls{find: find, store: store, log: log, root: root, stop: stop, byKey: map[string]*running{}}
}

// join begins a call, or joins the one that runs with its key. It refuses a stale epoch, and a key that runs with
// other arguments.
func (c *calls) join(request *behestv1.CallToolRequest, from origin) (*running, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := request.GetIdempotencyKey()
	if found := c.byKey[key]; found != nil {
		return found, found.join(request)
	}
	begun := newRunning(c.root, request, from)
	if key != "" {
		c.byKey[key] = begun
	}
	c.group.Go(func() { c.make(begun, request) })
	return begun, nil
}

// cancelKey stops the call of a key: whether it is running and was told.
func (c *calls) cancelKey(key string, epoch uint64) bool {
	c.mu.Lock()
	found := c.byKey[key]
	c.mu.Unlock()
	return found != nil && found.stop(epoch)
}

// status tells what became of a key: it runs, an entry, or neither when this server cannot tell. A key that was never
// seen is buried before the answer, for the epoch with the attempt (0: with all) and for what came before. A later
// attempt is the call sent again, and is made.
func (c *calls) status(
	ctx context.Context, request *behestv1.GetCallStatusRequest, wait time.Duration,
) (*running, *entry, error) {
	key := request.GetIdempotencyKey()
	c.mu.Lock()
	found := c.byKey[key]
	if found == nil {
		defer c.mu.Unlock()
		known, err := c.bury(request)
		return nil, known, err
	}
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if !found.ended(ctx) {
		return found, nil, nil
	}
	known, err := c.store.find(key)
	if known == nil && err == nil {
		// It ended before it was begun, and may be sent again.
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.byKey[key] == nil || c.byKey[key] == found {
			known, err = c.bury(request)
		}
	}
	return nil, known, err
}

// bury forbids a key that was never seen, under the lock: no call of it may begin meanwhile.
func (c *calls) bury(request *behestv1.GetCallStatusRequest) (*entry, error) {
	key, epoch, attempt := request.GetIdempotencyKey(), request.GetEpoch(), cmp.Or(request.GetAttempt(), everyAttempt)
	known, err := c.store.find(key)
	if err != nil {
		return nil, err
	}
	if known == nil || (known.state == stateBuried && !known.covers(epoch, attempt)) {
		known = &entry{state: stateBuried, epoch: epoch, attempt: attempt}
		if err := c.store.put(key, *known); err != nil {
			return nil, err
		}
	}
	if known.state == stateBuried && !c.store.isDurable() {
		return nil, nil
	}
	return known, nil
}

// held gives the keys of all calls that run, and of those that were begun the latest, at most so many.
func (c *calls) held(limit int) ([]heldKey, error) {
	c.mu.Lock()
	runs := make(map[string]bool, len(c.byKey))
	for key := range c.byKey {
		runs[key] = true
	}
	c.mu.Unlock()
	keys := make([]heldKey, 0, len(runs))
	for key := range runs {
		keys = append(keys, heldKey{key, false})
	}
	known, err := c.store.held(limit)
	for _, each := range known {
		if !runs[each.key] {
			keys = append(keys, each)
		}
	}
	return keys, err
}

// end waits for what is running, at most for the grace, then lets go of it: what it did by then is not known. No call
// may be joined any more.
func (c *calls) end(grace time.Duration) {
	over := make(chan struct{})
	go func() {
		c.group.Wait()
		close(over)
	}()
	select {
	case <-over:
	case <-time.After(grace):
		c.stop(errStopping)
		select {
		case <-over:
		case <-time.After(time.Second):
		}
	}
	c.stop(errStopping)
}

// make makes a call from start to end, and remembers what came of it.
func (c *calls) make(running *running, request *behestv1.CallToolRequest) {
	result, err := c.outcome(running, request)
	var refused *refusal
	if err != nil && !errors.As(err, &refused) {
		c.log.Error("tool call failed", "tool", request.GetToolName(), "error", err)
		refused = &refusal{codes.Internal, "TOOL_FAILED", "the server failed", false}
	}
	c.mu.Lock()
	if running.key != "" {
		delete(c.byKey, running.key)
	}
	c.mu.Unlock()
	running.end(result, refused)
}

func (c *calls) outcome(running *running, request *behestv1.CallToolRequest) (*behestv1.ToolResult, error) {
	if running.key != "" {
		known, err := c.store.find(running.key)
		if err != nil {
			return nil, err
		}
		if result, err := c.remembered(known, request); result != nil || err != nil {
			return result, err
		}
	}
	if c.isDraining.Load() {
		text := "the server is stopping and begins no more calls"
		return nil, &refusal{codes.Unavailable, "RUNTIME_DRAINING", text, true}
	}
	found, err := c.find(request)
	if err != nil {
		return nil, err
	}
	work, err := found.bind(request.GetArgumentsJson())
	var unfit *mismatch
	if errors.As(err, &unfit) {
		return misfit(request, unfit), nil
	}
	if err := c.put(running, entry{state: stateRunning, epoch: request.GetEpoch()}); err != nil {
		return nil, err
	}
	running.begin()
	result, err := c.execute(running, request, work)
	if err != nil {
		return nil, err
	}
	// What was cut short and may be repeated is not remembered: the next attempt begins anew.
	isCut := context.Cause(running.context) != nil && result.GetIsError() && found.isRepeatable(request)
	if isCut {
		return result, nil
	}
	data, err := proto.Marshal(result)
	if err == nil {
		err = c.put(running, entry{state: stateDone, epoch: running.lastEpoch(), result: data})
	}
	return result, err
}

func (c *calls) put(running *running, change entry) error {
	if running.key == "" {
		return nil
	}
	change.digest = running.digest
	return c.store.put(running.key, change)
}

// remembered tells what a known key means for a request: its result, or neither to execute it.
func (c *calls) remembered(known *entry, request *behestv1.CallToolRequest) (*behestv1.ToolResult, error) {
	if known == nil {
		return nil, nil
	}
	if known.state == stateBuried {
		if known.covers(request.GetEpoch(), request.GetAttempt()) {
			text := fmt.Sprintf("the key is buried up to attempt %d of epoch %d", known.attempt, known.epoch)
			return nil, &refusal{codes.FailedPrecondition, "TOOL_START_EXPIRED", text, true}
		}
		return nil, nil
	}
	if err := checkSame(known.digest, known.epoch, request); err != nil {
		return nil, err
	}
	if known.state == stateDone {
		result := &behestv1.ToolResult{}
		return result, proto.Unmarshal(known.result, result)
	}
	found, err := c.find(request)
	if err == nil && !found.isRepeatable(request) {
		err = outcomeUnknown("the server stopped while the call ran; whether it took effect is not known")
	}
	return nil, err
}

// execute runs the function; what it returns as an error, and a panic, become an error result.
func (c *calls) execute(
	running *running, request *behestv1.CallToolRequest, work func(context.Context) (any, error),
) (result *behestv1.ToolResult, err error) {
	if cause := context.Cause(running.context); cause != nil {
		return errorResult(request, cause.Error()+" before it began"), nil
	}
	call := &Call{request: request, running: running}
	defer func() {
		if thrown := recover(); thrown != nil {
			c.log.Error("tool panicked", "tool", request.GetToolName(), "panic", thrown, "stack", string(debug.Stack()))
			result, err = errorResult(request, fmt.Sprintf("panic: %v", thrown)), nil
		}
	}()
	value, failure := work(context.WithValue(running.context, callKey{}, call))
	if failure == nil {
		return resultOf(request, call.text(), value), nil
	}
	cause := context.Cause(running.context)
	ends := []error{context.Canceled, context.DeadlineExceeded, cause}
	isEnd := func(end error) bool { return errors.Is(failure, end) }
	switch {
	case cause == nil || !slices.ContainsFunc(ends, isEnd):
		return errorResult(request, failure.Error()), nil
	case errors.Is(cause, errStopping):
		return nil, stopping()
	}
	return errorResult(request, cause.Error()+"; part of its work may have been done"), nil
}

// checkSame refuses a key that was used for something else, and an epoch that is over.
func checkSame(seen digest, epoch uint64, request *behestv1.CallToolRequest) error {
	if seen != digestOf(request) {
		text := "the key was used with another tool or other arguments"
		return &refusal{codes.AlreadyExists, "REQUEST_ID_REUSED", text, false}
	}
	if request.GetEpoch() < epoch {
		return outcomeUnknown(fmt.Sprintf("epoch %d was seen for this key", epoch))
	}
	return nil
}
