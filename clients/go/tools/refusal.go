package tools

import (
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// notExecuted is the trailer that proves, with an error, that nothing was executed.
var notExecuted = metadata.Pairs("behest-not-executed", "1")

// refusal says that a call is not made, or how it ended without a result. With isProof it promises that nothing was
// executed.
type refusal struct {
	code    codes.Code
	reason  string
	message string
	isProof bool
}

func (r *refusal) Error() string { return r.message }

// GRPCStatus is the status that carries the reason.
func (r *refusal) GRPCStatus() *status.Status {
	told := status.New(r.code, r.message)
	detailed, err := told.WithDetails(&errdetails.ErrorInfo{Reason: r.reason, Domain: "behest"})
	if err != nil {
		return told
	}
	return detailed
}

func notFound(name string) *refusal {
	text := fmt.Sprintf("tool %.64s not found", name)
	return &refusal{codes.NotFound, "TOOL_NOT_FOUND", text, true}
}

func outcomeUnknown(text string) *refusal {
	return &refusal{codes.Aborted, "TOOL_OUTCOME_UNKNOWN", text, false}
}

func stopping() *refusal {
	return &refusal{codes.Unavailable, "TOOL_UNAVAILABLE", "the server is stopping", false}
}
