package balance_test

import (
	"context"
	"fmt"

	"github.com/natsfabric/natsfabric/balance"
)

// A member whose place is fixed by configuration: indices 2 and 3 out of 0 to 6.
func ExampleStatic() {
	ctx := context.Background()
	g, err := balance.Static(ctx, 2, 2, 7, balance.Config{
		OnChange: func(s balance.Share) { fmt.Println("now:", s) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	share := g.Share()
	for row := range 10 {
		if share.Has(row % share.Total) {
			fmt.Println("row", row, "is ours")
		}
	}
	if err := g.Leave(ctx); err != nil {
		fmt.Println(err)
	}
	// Output:
	// now: 2..3 of 7 (epoch 1)
	// row 2 is ours
	// row 3 is ours
	// row 9 is ours
	// now: none of 7 (epoch 1)
}

// A range that does not fit is refused before anything happens.
func ExampleStatic_refused() {
	_, err := balance.Static(context.Background(), 6, 2, 7, balance.Config{})
	fmt.Println(err)
	// Output: balance: Workers: 2 from index 6 on exceed the total of 7
}

// One loop does the work of the current share until the group ends.
func ExampleGroup_Shares() {
	ctx := context.Background()
	g, err := balance.Static(ctx, 0, 1, 4, balance.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for share, err := range g.Shares(ctx) {
		if err != nil {
			fmt.Println("ended:", err)
			break
		}
		fmt.Println("share:", share)
		switch {
		case share.First < 0: // the end, and here no more work
		case share.Workers < 3:
			err = g.SetWorkers(ctx, share.Workers+1)
		default:
			err = g.Leave(ctx)
		}
		if err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// share: 0 of 4 (epoch 1)
	// share: 0..1 of 4 (epoch 2)
	// share: 0..2 of 4 (epoch 3)
	// share: none of 4 (epoch 3)
	// ended: balance: group closed
}

func ExampleShare_Indices() {
	share := balance.Share{First: 3, Workers: 4, Total: 7, Epoch: 1}
	for i := range share.Indices() {
		fmt.Print(i, " ")
	}
	// Output: 3 4 5 6
}
