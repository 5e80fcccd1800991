// Command modelserver serves a chat model and an embedding model on the generated stubs, until it is interrupted: for
// daemons that dial it, or attached to one under a name.
//
//	go run ./examples/modelserver 127.0.0.1:7802
//	go run ./examples/modelserver attach 127.0.0.1:7717 birds
//
// The model `parrot` repeats what it is told, calls the tools that are named in it, and never ends when it is told
// "for ever". The model `letters` makes vectors of how often letters occur.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"behest/tools"
	v1 "behest/v1"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	parrot     = "parrot"
	letters    = "letters"
	dimensions = 26
)

type server struct {
	v1.UnimplementedChatServiceServer
	v1.UnimplementedEmbeddingServiceServer
	v1.UnimplementedModelServiceServer
}

// models are what is served, by ascending id. The daemon puts the server's name before each.
func models() []*v1.Model {
	return []*v1.Model{
		{
			Id:           letters,
			Capabilities: &v1.ModelCapabilities{Embeddings: true},
			Limits:       &v1.ModelLimits{EmbeddingDimensions: dimensions},
		},
		{
			Id:           parrot,
			Capabilities: &v1.ModelCapabilities{Chat: true, Streaming: true, Tools: true, ParallelToolCalls: true},
			Limits:       &v1.ModelLimits{ContextWindowTokens: 32_000},
		},
	}
}

// ListModels says what is served, in pages.
func (server) ListModels(_ context.Context, asked *v1.ListModelsRequest) (*v1.ListModelsResponse, error) {
	if asked.GetPageSize() < 0 {
		return nil, refused(codes.InvalidArgument, "REQUEST_INVALID", "page_size is negative")
	}
	size := int(asked.GetPageSize())
	if size == 0 {
		size = 50
	}
	wanted, listed := asked.GetCapabilities(), &v1.ListModelsResponse{}
	for _, model := range models() {
		able := model.GetCapabilities()
		if model.GetId() <= asked.GetPageToken() || wanted.GetChat() && !able.GetChat() ||
			wanted.GetEmbeddings() && !able.GetEmbeddings() {
			continue
		}
		if len(listed.Models) == size {
			listed.NextPageToken = listed.Models[size-1].GetId()
			break
		}
		listed.Models = append(listed.Models, model)
	}
	return listed, nil
}

// StreamChat sends the answer as it is made. Its context ends when nobody waits for the answer any more.
func (server) StreamChat(asked *v1.StreamChatRequest, stream grpc.ServerStreamingServer[v1.StreamChatResponse]) error {
	_, err := answer(stream.Context(), asked.GetChat(), stream.Send)
	return err
}

// CompleteChat gives the end alone.
func (server) CompleteChat(ctx context.Context, asked *v1.CompleteChatRequest) (*v1.CompleteChatResponse, error) {
	end, err := answer(ctx, asked.GetChat(), func(*v1.StreamChatResponse) error { return nil })
	return &v1.CompleteChatResponse{End: end}, err
}

func answer(ctx context.Context, chat *v1.Chat, send func(*v1.StreamChatResponse) error) (*v1.ChatEnd, error) {
	if err := checked(chat); err != nil {
		return nil, err
	}
	if chat.GetTimeout() != nil {
		limited, cancel := context.WithTimeout(ctx, chat.GetTimeout().AsDuration())
		defer cancel()
		ctx = limited
	}
	said := lastText(chat)
	for said == "for ever" {
		if err := send(text(0, "again ")); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, refused(codes.DeadlineExceeded, "PROVIDER_TIMEOUT", "the time for the answer is over")
		case <-time.After(50 * time.Millisecond):
		}
	}
	// A piece for each word; together they are what the end repeats.
	for _, word := range strings.SplitAfter(said, " ") {
		if err := send(text(0, word)); err != nil {
			return nil, err
		}
	}
	parts := []*v1.Part{{Kind: &v1.Part_Text{Text: &v1.TextPart{Text: said}}}}
	finish := v1.FinishReason_FINISH_REASON_STOP
	for _, call := range calls(chat, said) {
		finish = v1.FinishReason_FINISH_REASON_TOOL_CALLS
		piece := &v1.ToolCallDelta{Name: call.GetName(), ArgumentsJson: call.GetArgumentsJson()}
		shown := &v1.ChatDelta{Part: int32(len(parts)), Kind: &v1.ChatDelta_ToolCall{ToolCall: piece}}
		if err := send(&v1.StreamChatResponse{Deltas: []*v1.ChatDelta{shown}}); err != nil {
			return nil, err
		}
		parts = append(parts, &v1.Part{Kind: &v1.Part_ToolCall{ToolCall: call}})
	}
	end := &v1.ChatEnd{
		Message:      &v1.Message{Role: v1.Role_ROLE_ASSISTANT, Parts: parts},
		FinishReason: finish,
		Usage:        &v1.Usage{InputTokens: tokens(said), OutputTokens: tokens(said), Attempts: 1},
		UsageSource:  v1.UsageSource_USAGE_SOURCE_REPORTED,
		Model:        chat.GetModel(),
	}
	return end, send(&v1.StreamChatResponse{End: end})
}

// checked refuses what makes no sense, and what the model cannot do.
func checked(chat *v1.Chat) error {
	switch {
	case chat.GetModel() == letters:
		return refused(codes.FailedPrecondition, "PROVIDER_CAPABILITY_MISSING", "letters lacks chat")
	case chat.GetModel() != parrot:
		return refused(codes.NotFound, "PROVIDER_MODEL_NOT_FOUND", fmt.Sprintf("model %.64q not found", chat.GetModel()))
	case len(chat.GetMessages()) == 0:
		return refused(codes.InvalidArgument, "REQUEST_INVALID", "there are no messages")
	}
	for _, message := range chat.GetMessages() {
		if len(message.GetParts()) == 0 {
			return refused(codes.InvalidArgument, "REQUEST_INVALID", "a message has no parts")
		}
	}
	return nil
}

// calls gives a call for each tool that is named in what was said.
func calls(chat *v1.Chat, said string) []*v1.ToolCall {
	var made []*v1.ToolCall
	if chat.GetToolChoice().GetMode() == v1.ToolChoiceMode_TOOL_CHOICE_MODE_NONE {
		return nil
	}
	for number, tool := range chat.GetTools() {
		if !strings.Contains(said, tool.GetName()) {
			continue
		}
		arguments := "{}"
		if strings.Contains(tool.GetInputSchemaJson(), `"id"`) {
			arguments = `{"id": 7}`
		}
		id := fmt.Sprintf("call-%d", number)
		made = append(made, &v1.ToolCall{Name: tool.GetName(), ArgumentsJson: arguments, ProviderCallId: id})
	}
	return made
}

// Embed gives one vector for each text, in order.
func (server) Embed(_ context.Context, asked *v1.EmbedRequest) (*v1.EmbedResponse, error) {
	if asked.GetModel() != letters {
		return nil, refused(codes.NotFound, "PROVIDER_MODEL_NOT_FOUND", fmt.Sprintf("model %.64q not found", asked.GetModel()))
	}
	if size := asked.GetDimensions(); size != 0 && size != dimensions {
		return nil, refused(codes.InvalidArgument, "REQUEST_INVALID", fmt.Sprintf("vectors have %d numbers", dimensions))
	}
	made := &v1.EmbedResponse{Model: asked.GetModel(), Usage: &v1.Usage{Attempts: 1}}
	for _, each := range asked.GetInputs() {
		if each == "" {
			return nil, refused(codes.InvalidArgument, "REQUEST_INVALID", "a text is empty")
		}
		values := make([]float32, dimensions)
		for place, character := range []byte(each) {
			values[(int(character)+place)%dimensions]++
		}
		made.Embeddings = append(made.Embeddings, &v1.Embedding{Values: values})
		made.Usage.InputTokens += tokens(each)
	}
	if len(made.Embeddings) == 0 {
		return nil, refused(codes.InvalidArgument, "REQUEST_INVALID", "there are no texts")
	}
	return made, nil
}

func lastText(chat *v1.Chat) string {
	said := ""
	for _, message := range chat.GetMessages() {
		if message.GetRole() != v1.Role_ROLE_USER {
			continue
		}
		said = ""
		for _, part := range message.GetParts() {
			said += part.GetText().GetText()
		}
	}
	return said
}

func text(part int32, piece string) *v1.StreamChatResponse {
	delta := &v1.ChatDelta{Part: part, Kind: &v1.ChatDelta_Text{Text: piece}}
	return &v1.StreamChatResponse{Deltas: []*v1.ChatDelta{delta}}
}

func tokens(said string) int64 {
	return int64(len(said)+3)/4 + 1
}

// refused makes an error that the daemon understands: it decides by the reason whether to try again.
func refused(code codes.Code, reason, message string) error {
	told := status.New(code, message)
	detailed, err := told.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "behest"})
	if err != nil {
		return told.Err()
	}
	return detailed.Err()
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Args[1] == "attach" {
		attached := tools.NewServer(tools.Models(models(), server{}, server{}))
		if err := attached.Attach(ctx, os.Args[2], os.Args[3]); err != nil {
			log.Fatal(err)
		}
		return
	}
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	serving := grpc.NewServer()
	v1.RegisterChatServiceServer(serving, server{})
	v1.RegisterEmbeddingServiceServer(serving, server{})
	v1.RegisterModelServiceServer(serving, server{})
	go func() {
		<-ctx.Done()
		serving.GracefulStop()
	}()
	log.Printf("model server ready address=%s", listener.Addr())
	if err := serving.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
