package embedded_test

import (
	"os"
	"testing"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

func TestMain(m *testing.M) {
	natstest.Patient()
	os.Exit(m.Run())
}
