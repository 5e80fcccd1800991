package behest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	behestv1 "behest/v1"
)

const domain = "behest"

// Reasons that the client gives where the daemon gave none. All others are names of behestv1.ErrorReason without
// their prefix.
const (
	ReasonUnavailable   = "TRANSPORT_UNAVAILABLE"
	ReasonDeadline      = "TRANSPORT_DEADLINE"
	ReasonCancelled     = "TRANSPORT_CANCELLED"
	ReasonTooLarge      = "TRANSPORT_TOO_LARGE"
	ReasonUnimplemented = "TRANSPORT_UNIMPLEMENTED"
	ReasonStreamBroken  = "TRANSPORT_STREAM_BROKEN"
)

// Error says why a call failed. Compare Reason, never texts:
//
//	var failed *behest.Error
//	if errors.As(err, &failed) && failed.Reason == "RUN_NOT_FOUND" { … }
type Error struct {
	// Code is gRPC's.
	Code codes.Code
	// Reason is stable. Empty when the other side is no behestd and gave none.
	Reason string
	// Message is for people.
	Message string
	// Metadata holds every value that the message names.
	Metadata map[string]string
	// RetryAfter says when trying again makes sense. 0 = not said.
	RetryAfter time.Duration
	// Violations says what is wrong with which field.
	Violations []Violation

	// Another attempt cannot help, whatever the reason.
	isFinal bool
}

// Violation is what is wrong with a field of a request.
type Violation struct {
	Field       string
	Description string
}

func (e *Error) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("%s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("%s: %s", e.Reason, e.Message)
}

// IsUndecided says whether it is not known if the call took effect, so that only a repeatable one may be sent again.
func (e *Error) IsUndecided() bool {
	if e.isFinal {
		return false
	}
	switch e.Reason {
	case ReasonUnavailable, ReasonDeadline, ReasonStreamBroken, ReasonCancelled,
		"RUNTIME_DRAINING", "STORAGE_FAILED", "STORAGE_BUSY", "WATCH_STALLED":
		return true
	}
	return false
}

func (e *Error) isResumable() bool {
	isShed := e.Code == codes.ResourceExhausted && e.RetryAfter > 0
	return !e.isFinal && (e.Code == codes.Unavailable || isShed || e.IsUndecided())
}

// RunError says that a run ended, and not well. It unwraps to the Error that the run ended with.
type RunError struct {
	RunID string
	// State is RUN_STATE_FAILED, RUN_STATE_CANCELLED or RUN_STATE_TIMED_OUT.
	State behestv1.RunState
	// Cause carries the reason; that of a cancelled run has none unless a failure forced the end.
	Cause *Error
}

func (e *RunError) Error() string {
	return fmt.Sprintf("run %s ended %s: %v", e.RunID, e.State.String()[len("RUN_STATE_"):], e.Cause)
}

// Unwrap gives the cause.
func (e *RunError) Unwrap() error { return e.Cause }

// ErrClosed is what calls fail with after Client.Close.
var ErrClosed = errors.New("behest: the client is closed")

// ReasonOf gives the stable reason of an error, or "" when it has none.
func ReasonOf(err error) string {
	var failed *Error
	if errors.As(err, &failed) {
		return failed.Reason
	}
	return ""
}

// FromRPC makes an error of a generated stub an *Error. An error that is none of gRPC's, and nil, stay what they are.
func FromRPC(err error) error {
	told, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	failed := fromStatus(told.Proto())
	if failed.Reason == "" {
		failed.Reason = transportReasons[failed.Code]
	}
	return failed
}

// What gRPC answers by itself. It makes UNKNOWN and INTERNAL of a connection that dies at the wrong moment.
var transportReasons = map[codes.Code]string{
	codes.Unavailable:       ReasonUnavailable,
	codes.DeadlineExceeded:  ReasonDeadline,
	codes.Canceled:          ReasonCancelled,
	codes.ResourceExhausted: ReasonTooLarge,
	codes.Unimplemented:     ReasonUnimplemented,
	codes.Unknown:           ReasonStreamBroken,
	codes.Internal:          ReasonStreamBroken,
}

func fromStatus(told *spb.Status) *Error {
	failed := &Error{Code: codes.Code(told.GetCode()), Message: told.GetMessage()}
	for _, detail := range told.GetDetails() {
		// Details of types that are not known here are passed over.
		message, err := detail.UnmarshalNew()
		if err != nil {
			continue
		}
		switch known := message.(type) {
		case *errdetails.ErrorInfo:
			if known.GetDomain() == domain {
				failed.Reason, failed.Metadata = known.GetReason(), known.GetMetadata()
			}
		case *errdetails.RetryInfo:
			failed.RetryAfter = known.GetRetryDelay().AsDuration()
		case *errdetails.BadRequest:
			for _, each := range known.GetFieldViolations() {
				failed.Violations = append(failed.Violations, Violation{each.GetField(), each.GetDescription()})
			}
		}
	}
	return failed
}

func brokenStream(message string) *Error {
	return &Error{Code: codes.Unavailable, Reason: ReasonStreamBroken, Message: message}
}

func orderBroken(runID string, expected, received uint64) *Error {
	message := fmt.Sprintf("the watch of run %s brought event %d where %d is next", runID, received, expected)
	return &Error{Code: codes.DataLoss, Reason: ReasonStreamBroken, Message: message, isFinal: true}
}

// told gives the caller's own end of waiting as it is, and everything else as *Error.
func (c *Client) told(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if c.isClosed.Load() {
		return ErrClosed
	}
	return FromRPC(err)
}
