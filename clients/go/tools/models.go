package tools

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	behestv1 "behest/v1"
)

// models are what an attached server answers beside its tools.
type models struct {
	listed     []*behestv1.Model
	chat       behestv1.ChatServiceServer
	embeddings behestv1.EmbeddingServiceServer
}

// Models has an attached server offer models too, answered by the services of the contract: what serves a daemon that
// dials, registered with grpc.NewServer, serves one that is attached to as it is. The ids are the server's own names.
// Either service may be nil. The context of a call ends when its answer is not wanted any more; its metadata has the
// traceparent.
func Models(
	listed []*behestv1.Model, chat behestv1.ChatServiceServer, embeddings behestv1.EmbeddingServiceServer,
) Option {
	return func(s *Server) { s.models = models{listed, chat, embeddings} }
}

// answerModel answers a call of a model. A panic costs one call.
func (s *session) answerModel(taken *pending) (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			s.link.server.log.Error("model panicked", "panic", fmt.Sprint(fault))
			err = status.Error(codes.Internal, "the model failed")
		}
	}()
	call, served := taken.call, s.link.server.models
	ctx := taken.context
	if trace := call.GetTraceparent(); trace != "" {
		ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("traceparent", trace))
	}
	switch asked := call.GetRequest().(type) {
	case *behestv1.AttachCall_StreamChat:
		if served.chat == nil {
			return unserved()
		}
		err = served.chat.StreamChat(asked.StreamChat, &chatStream{context: ctx, session: s, number: call.GetCallNumber()})
	case *behestv1.AttachCall_Embed:
		if served.embeddings == nil {
			return unserved()
		}
		var told *behestv1.EmbedResponse
		if told, err = served.embeddings.Embed(ctx, asked.Embed); err == nil {
			return s.reply(&behestv1.AttachReply{
				CallNumber: call.GetCallNumber(), Response: &behestv1.AttachReply_Embed{Embed: told},
			})
		}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return status.FromContextError(err).Err()
	}
	return err
}

func unserved() error {
	return &refusal{codes.Unimplemented, "REQUEST_UNSUPPORTED", "this server does not offer that", true}
}

// chatStream is the stream of a StreamChat, as a part of the stream of an attached server. It has no headers.
type chatStream struct {
	grpc.ServerStream
	context context.Context
	session *session
	number  int64
}

func (c *chatStream) Context() context.Context { return c.context }

func (c *chatStream) Send(frame *behestv1.StreamChatResponse) error {
	if err := c.context.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	return c.session.reply(&behestv1.AttachReply{
		CallNumber: c.number, Response: &behestv1.AttachReply_StreamChat{StreamChat: frame},
	})
}

func (c *chatStream) SetHeader(metadata.MD) error  { return nil }
func (c *chatStream) SendHeader(metadata.MD) error { return nil }
func (c *chatStream) SetTrailer(metadata.MD)       {}
