// Package peers measures natsfabric beside others, on one machine and in one run, with
// the systems taking turns: elections beside etcd's client and a plain KV bucket,
// members beside hashicorp/memberlist. It is a module of its own, so that nobody who
// uses natsfabric has their dependencies.
//
//	cd tests/peers
//	go test -run '^$' -bench Election -benchtime 20x -timeout 30m -etcd /usr/bin/etcd
//	go test -run '^$' -bench Members -benchtime 5x -timeout 60m -members 100,1000
//	go test -run '^$' -bench Evictions -benchtime 1x -timeout 60m -evictions 10m
//
// etcd is a real one, as a process: that of Debian's package etcd-server, or any other
// of version 3.4 or later. Without it the figures of etcd are missing, and the output
// says so. The directory of the servers' stores is made in TMPDIR: it should be on a
// disk, since every server here syncs each write to it.
//
// What was measured, and what is unfair to whom, is in docs/BENCHMARKS.md.
package peers
