package natstest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// given are the ports that freePorts has returned.
var given struct {
	mu    sync.Mutex // guards ports
	ports map[int]bool
}

// FreePort returns a port that nobody listens on, another one at each call. It is below
// the range from which systems take the ports of outgoing connections: it must still be
// free when its server is started a second time.
func FreePort() (int, error) {
	ports, err := freePorts(1)
	if err != nil {
		return 0, err
	}
	return ports[0], nil
}

func freePorts(n int) ([]int, error) {
	given.mu.Lock()
	defer given.mu.Unlock()
	if given.ports == nil {
		given.ports = map[int]bool{}
	}
	var ports []int
	for range 100 * n {
		p := 12_000 + rand.IntN(20_000)
		if given.ports[p] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			continue
		}
		l.Close()
		given.ports[p] = true
		if ports = append(ports, p); len(ports) == n {
			return ports, nil
		}
	}
	return nil, errors.New("natstest: no free ports")
}
