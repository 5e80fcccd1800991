// Package behest is the client of a behest daemon: it orders runs, follows them over every way a connection can end,
// and takes their results. Tool servers are made with the package behest/tools; the whole contract is in behest/v1.
//
//	client, err := behest.NewClient("127.0.0.1:7717")
//	run := client.Stream(behest.Say("hello"))
//	for piece, err := range run.Text(ctx) { … }
//	output, err := run.Result(ctx)
package behest
