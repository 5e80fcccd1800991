package tools

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	behestv1 "behest/v1"
)

const (
	chunkBytes       = 1 << 20
	frameLimitBytes  = 4 << 20
	statusLimitBytes = 3 << 20
	resultLimitBytes = 16 << 20
	maxErrorBytes    = 2000
)

// resultOf makes the result of what a function wrote and returned: a string is text, a *behestv1.Part and a
// *behestv1.ToolResult are what they are, everything else is JSON.
func resultOf(request *behestv1.CallToolRequest, written string, value any) *behestv1.ToolResult {
	result := &behestv1.ToolResult{CallId: request.GetCallId(), Name: request.GetToolName()}
	switch given := value.(type) {
	case *behestv1.ToolResult:
		return given
	case *behestv1.Part:
		result.Parts = append(result.Parts, given)
	case string:
		written += given
	case nil:
		if written == "" {
			result.Parts = append(result.Parts, jsonPart("null"))
		}
	default:
		text, err := writeJSON(value)
		if err != nil {
			return errorResult(request, "the result has no form in JSON: "+err.Error())
		}
		result.Parts = append(result.Parts, jsonPart(text))
	}
	if _, isText := value.(string); written != "" || isText {
		text := &behestv1.TextPart{Text: strings.ToValidUTF8(written, "�")}
		first := &behestv1.Part{Kind: &behestv1.Part_Text{Text: text}}
		result.Parts = append([]*behestv1.Part{first}, result.Parts...)
	}
	if size := proto.Size(result); size > resultLimitBytes {
		limit := fmt.Sprintf("the result of %d bytes exceeds the limit of %d bytes", size, resultLimitBytes)
		return errorResult(request, limit)
	}
	return result
}

// errorResult makes the result of a call that failed.
func errorResult(request *behestv1.CallToolRequest, text string) *behestv1.ToolResult {
	text = strings.ToValidUTF8(text[:min(len(text), maxErrorBytes)], "�")
	part := &behestv1.Part{Kind: &behestv1.Part_Text{Text: &behestv1.TextPart{Text: text}}}
	return &behestv1.ToolResult{
		CallId: request.GetCallId(), Name: request.GetToolName(), Parts: []*behestv1.Part{part}, IsError: true,
	}
}

// misfit makes the result of a call whose arguments do not fit: JSON that says what is wrong, and where.
func misfit(request *behestv1.CallToolRequest, problem *mismatch) *behestv1.ToolResult {
	type fault struct {
		Path    string `json:"path"`
		Message string `json:"message"`
	}
	document := struct {
		Error  string  `json:"error"`
		Tool   string  `json:"tool"`
		Errors []fault `json:"errors"`
	}{"TOOL_ARGUMENTS_INVALID", request.GetToolName(), []fault{{problem.path, problem.message}}}
	result := resultOf(request, "", document)
	result.IsError = true
	return result
}

func jsonPart(text string) *behestv1.Part {
	return &behestv1.Part{Kind: &behestv1.Part_Json{Json: &behestv1.JsonPart{Json: text}}}
}

// framesOf splits a result that is larger than a chunk into chunks of its last part, when that is text or JSON, and
// the rest. A result whose rest exceeds the limit of a frame becomes an error that says so.
func framesOf(result *behestv1.ToolResult, limit int) []*behestv1.CallToolResponse {
	size := min(chunkBytes, limit/2)
	var chunks []*behestv1.CallToolResponse
	rest := result
	if content := lastContent(result); proto.Size(result) > size && content != "" {
		for data := []byte(content); len(data) > 0; data = data[min(size, len(data)):] {
			chunk := &behestv1.CallToolResponse_Chunk{Chunk: data[:min(size, len(data))]}
			chunks = append(chunks, &behestv1.CallToolResponse{Frame: chunk})
		}
		rest = withoutLastContent(result)
	}
	last := &behestv1.CallToolResponse{Frame: &behestv1.CallToolResponse_Result{Result: rest}}
	if proto.Size(last) > limit-1024 {
		request := &behestv1.CallToolRequest{CallId: result.GetCallId(), ToolName: result.GetName()}
		told := errorResult(request, fmt.Sprintf("the result does not fit a frame of %d bytes", limit))
		return []*behestv1.CallToolResponse{{Frame: &behestv1.CallToolResponse_Result{Result: told}}}
	}
	return append(chunks, last)
}

func lastContent(result *behestv1.ToolResult) string {
	if len(result.GetParts()) == 0 {
		return ""
	}
	last := result.GetParts()[len(result.GetParts())-1]
	return last.GetText().GetText() + last.GetJson().GetJson()
}

func withoutLastContent(result *behestv1.ToolResult) *behestv1.ToolResult {
	rest := &behestv1.ToolResult{
		CallId: result.GetCallId(), Name: result.GetName(), IsError: result.GetIsError(),
		Truncated: result.GetTruncated(), ArtifactId: result.GetArtifactId(),
	}
	last := len(result.GetParts()) - 1
	rest.Parts = append(rest.Parts, result.GetParts()[:last]...)
	empty := jsonPart("")
	if result.GetParts()[last].GetText() != nil {
		empty = &behestv1.Part{Kind: &behestv1.Part_Text{Text: &behestv1.TextPart{}}}
	}
	rest.Parts = append(rest.Parts, empty)
	return rest
}

// cut cuts a result to what one message holds: text is shortened, other parts are left out.
func cut(result *behestv1.ToolResult) *behestv1.ToolResult {
	if proto.Size(result) <= statusLimitBytes {
		return result
	}
	short := &behestv1.ToolResult{
		CallId: result.GetCallId(), Name: result.GetName(), IsError: result.GetIsError(), Truncated: true,
	}
	room := statusLimitBytes
	for _, part := range result.GetParts() {
		if told := part.GetText(); told != nil {
			text := strings.ToValidUTF8(told.GetText()[:min(room, len(told.GetText()))], "")
			room -= len(text)
			kept := &behestv1.Part{Kind: &behestv1.Part_Text{Text: &behestv1.TextPart{Text: text}}}
			short.Parts = append(short.Parts, kept)
		}
	}
	return short
}
