package natstest

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// Traffic asks the server over a connection of its system account how many messages it
// has taken in from clients, and given out to them, so far.
func Traffic(system *nats.Conn) (in, out int64, err error) {
	m, err := system.Request("$SYS.REQ.SERVER.PING.VARZ", nil, 5*time.Second)
	if err != nil {
		return 0, 0, fmt.Errorf("ask for the server's counts: %w", err)
	}
	var answer struct {
		Data struct {
			In  int64 `json:"in_msgs"`
			Out int64 `json:"out_msgs"`
		} `json:"data"`
	}
	err = json.Unmarshal(m.Data, &answer)
	return answer.Data.In, answer.Data.Out, err
}
