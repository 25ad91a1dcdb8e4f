package fence_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/natsfabric/natsfabric/election/fence"
)

// The owner of a printer refuses what a deposed leader sends.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	gate, err := fence.Open(filepath.Join(dir, "printer"))
	if err != nil {
		log.Fatal(err)
	}
	defer gate.Close()
	ctx := context.Background()
	for _, job := range []struct {
		token uint64
		text  string
	}{{17, "from the first leader"}, {42, "from the second"}, {17, "late, from the first"}} {
		err := gate.Do(ctx, job.token, func() error {
			fmt.Println(job.text)
			return nil
		})
		if err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// from the first leader
	// from the second
	// fence: token 17 is stale, 42 was admitted
}
