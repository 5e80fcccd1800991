package tools

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"behest"
	behestv1 "behest/v1"
)

const (
	artifactChunkBytes = 512 * 1024
	// How often a daemon that cannot be reached is tried.
	artifactAttempts = 10
)

var errNoDaemon = errors.New("artifacts need a server that is attached to its daemon")

// Artifact stores what is too large for a result, up to 2 GiB, in the session of the run, and gives it once it is
// safe. The same content of the same call is stored once, whatever the attempt. It fails where the server is not
// attached, since a dialled one knows no daemon, and when the daemon refuses.
func (c *Call) Artifact(ctx context.Context, content []byte, name, mediaType string) (*behestv1.Artifact, error) {
	stub := c.running.origin.artifacts
	if stub == nil {
		return nil, errNoDaemon
	}
	digest := sha256.Sum256(content)
	header := &behestv1.WriteArtifactHeader{
		RequestId: rand.Text(), SessionId: c.SessionID(), Name: name, MediaType: mediaType,
		SizeBytes: proto.Int64(int64(len(content))), Sha256: digest[:],
	}
	if key := c.IdempotencyKey(); key != "" {
		same := sha256.Sum256([]byte(key + "\x00" + name + "\x00" + mediaType + "\x00" + string(digest[:])))
		header.RequestId = hex.EncodeToString(same[:])
	}
	for attempt := 1; ; attempt++ {
		made, err := upload(ctx, stub, header, content)
		var failed *behest.Error
		isLost := errors.As(err, &failed) && failed.Code == codes.Unavailable
		if !isLost || attempt == artifactAttempts {
			return made, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(min(longestPause, 100*time.Millisecond<<attempt)):
		}
	}
}

// upload sends an artifact once. A repeat of the request id gets what the first one made.
func upload(
	ctx context.Context, stub behestv1.ArtifactServiceClient, header *behestv1.WriteArtifactHeader, content []byte,
) (*behestv1.Artifact, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := stub.WriteArtifact(ctx)
	if err != nil {
		return nil, behest.FromRPC(err)
	}
	frame := &behestv1.WriteArtifactRequest{Frame: &behestv1.WriteArtifactRequest_Header{Header: header}}
	// A stream that the daemon has ended tells why when it is closed.
	err = stream.Send(frame)
	for start := 0; start < len(content) && err == nil; start += artifactChunkBytes {
		chunk := content[start:min(start+artifactChunkBytes, len(content))]
		err = stream.Send(&behestv1.WriteArtifactRequest{Frame: &behestv1.WriteArtifactRequest_Chunk{Chunk: chunk}})
	}
	told, err := stream.CloseAndRecv()
	if err != nil {
		return nil, behest.FromRPC(err)
	}
	return told.GetArtifact(), nil
}
