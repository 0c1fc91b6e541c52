package main

import (
	"os"

	"shunt/e2e/bench"
)

func main() {
	r, err := bench.Read(os.Args[1])
	if err != nil {
		panic(err)
	}
	r.Table(os.Stdout)
	if err := r.WriteHTML(os.Args[2]); err != nil {
		panic(err)
	}
}
