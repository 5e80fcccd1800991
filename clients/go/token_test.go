package behest

import (
	"crypto/tls"
	"testing"
)

// A token leaves this machine over TLS only. S3
func TestATokenLeavesThisMachineOverTLSOnly(t *testing.T) {
	for _, address := range []string{"127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/run/behestd.sock"} {
		if _, err := NewClient(address, WithToken("secret")); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, address := range []string{"192.0.2.1:1", "example.com:1", "[2001:db8::1]:1", "dns:///localhost:1"} {
		if _, err := NewClient(address, WithToken("secret")); err == nil {
			t.Errorf("%s: a token would be sent in the clear", address)
		}
		if _, err := NewClient(address, WithToken("secret"), WithTLS(&tls.Config{})); err != nil {
			t.Errorf("%s over TLS: %v", address, err)
		}
	}
}
