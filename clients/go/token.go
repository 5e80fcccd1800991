package behest

import (
	"context"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// DialToken makes the option of Dial that sends a bearer token with each call to an address, which "" stands for as in
// NewClient. It fails for a token that would leave this machine in the clear.
func DialToken(token, address string, secured credentials.TransportCredentials) (grpc.DialOption, error) {
	target := targetOf(address)
	if secured.Info().SecurityProtocol == "insecure" && !isLocal(target) {
		return nil, fmt.Errorf("a token is sent only over TLS or to this machine, and %s is neither", target)
	}
	return grpc.WithPerRPCCredentials(bearer(token)), nil
}

// bearer brings a token with each call. Whether it may be sent is judged by DialToken, not by gRPC, which would refuse
// Unix sockets and loopback too.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (b bearer) RequireTransportSecurity() bool { return false }

// isLocal tells whether an address is a Unix socket or one of loopback.
func isLocal(target string) bool {
	if strings.HasPrefix(target, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return false
	}
	address := net.ParseIP(host)
	return host == "localhost" || address != nil && address.IsLoopback()
}
