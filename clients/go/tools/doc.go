// Package tools makes a tool server in a few lines: typed functions are tools, served at an address that a daemon
// dials (Serve) or over a stream that the server opens to the daemon (Attach).
//
//	server := tools.NewServer()
//	tools.Add(server, "add", "Add two integers.", func(ctx context.Context, sum Sum) (int, error) {
//		return sum.A + sum.B, nil
//	})
//	err := server.Serve(ctx, "127.0.0.1:7801")
//
// Schemas come from structs. Calls are remembered by their key (RememberIn keeps them over restarts), so that a
// repeated attempt is not executed again. An error that a function returns is a result that the model is told.
package tools
