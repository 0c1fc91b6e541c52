// SPDX-License-Identifier: Apache-2.0

//go:build !node

package cmd

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// progressBar redraws one line on a terminal. It draws nothing if the output is not a
// terminal.
type progressBar struct {
	mu    sync.Mutex
	w     io.Writer // nil: not a terminal
	last  time.Time
	width int // of the line that is drawn
}

const (
	progressWidth  = 30
	progressPeriod = 100 * time.Millisecond
)

func newProgressBar(w io.Writer) *progressBar {
	f, ok := w.(*os.File)
	if !ok {
		return &progressBar{}
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return &progressBar{}
	}
	return &progressBar{w: w}
}

func (b *progressBar) show(part float64, what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.w == nil || time.Since(b.last) < progressPeriod {
		return
	}
	b.last = time.Now()
	full := int(part * progressWidth)
	line := fmt.Sprintf("[%s%s] %3.0f%%  %s", strings.Repeat("█", full), strings.Repeat("·", progressWidth-full), part*100, what)
	width := len([]rune(line))
	fmt.Fprintf(b.w, "\r%s%s", line, strings.Repeat(" ", max(0, b.width-width)))
	b.width = width
}

// clear removes the line, so that other output can follow.
func (b *progressBar) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.w != nil && b.width > 0 {
		fmt.Fprintf(b.w, "\r%s\r", strings.Repeat(" ", b.width))
		b.width = 0
	}
}
